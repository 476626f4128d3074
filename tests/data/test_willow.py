"""PF-WILLOW: a miniature of its tree written here, and the real one where it is present."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from ditf_probe.data import PFWillow, threshold_base
from ditf_probe.errors import InputError

POINTS = np.array([[3.0, 10.5, 20.0], [4.0, 2.0, 15.25]])


def write_photo(folder: Path, name: str, seed: int, points: np.ndarray = POINTS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    savemat(folder / f"{name}.mat", {"pts_coord": points})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """car(G) has photos 0, 1, 2; car(S) has 3, 4, 5; car(M) copies 0, 1 and 3."""
    inner = tmp_path / "pf" / "PF-dataset-WILLOW"
    for seed in range(6):
        write_photo(inner / ("car(G)" if seed < 3 else "car(S)"), f"Cars_{seed}", seed)
    (inner / "car(M)").mkdir()
    for seed in (0, 1, 3):
        for kind in ("png", "mat"):
            shutil.copy(inner / ("car(G)" if seed < 3 else "car(S)") / f"Cars_{seed}.{kind}", inner / "car(M)")
    write_photo(inner / "duck(S)", "Ducks_0", 6)
    write_photo(inner / "duck(S)", "Ducks_1", 7)
    return tmp_path / "pf"


def test_pairs_are_ordered_within_sets(root: Path) -> None:
    dataset = PFWillow(root)
    assert len(dataset) == 3 * 6 + 2
    assert dataset.sets == ("car(G)", "car(M)", "car(S)", "duck(S)")
    assert [pair.index for pair in dataset] == list(range(20))
    assert [pair.unit for pair in dataset] == ["car(G)"] * 6 + ["car(M)"] * 6 + ["car(S)"] * 6 + ["duck(S)"] * 2
    assert {pair.category for pair in dataset} == {"car", "duck"}
    # 8 photos in 11 files: copies share an id.
    assert len(dataset.image_ids()) == 8
    assert PFWillow(root / "PF-dataset-WILLOW")[7].source.image_id == dataset[7].source.image_id
    for index in (20, -1):
        with pytest.raises(IndexError):
            dataset[index]


def test_annotations_are_read_as_they_stand(root: Path) -> None:
    dataset = PFWillow(root)
    pair = dataset[1]
    assert pair.source.size == (24, 32)
    assert pair.source.keypoints.dtype == torch.float32
    assert pair.source.keypoints.tolist() == [[3.0, 4.0], [10.5, 2.0], [20.0, 15.25]]
    assert pair.source.bbox.tolist() == [3, 2, 20, 15.25]
    assert threshold_base(pair, dataset.threshold) == 17.0
    assert threshold_base(pair, PFWillow(root, threshold="image").threshold) == 32.0
    written = np.random.default_rng(2).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    assert (dataset.image(pair.target.image_id).permute(1, 2, 0).numpy() == written).all()


def test_distinct_pairs_keep_the_originals(root: Path) -> None:
    dataset = PFWillow(root, distinct=True)
    # Of the six pairs of car(M), the two between photos 0 and 1 repeat those of car(G).
    assert [pair.unit for pair in dataset] == ["car(G)"] * 6 + ["car(M)"] * 4 + ["car(S)"] * 6 + ["duck(S)"] * 2
    names = [(pair.source.image_id, pair.target.image_id) for pair in dataset]
    assert len(set(names)) == len(names) == 18
    every = {(pair.source.image_id, pair.target.image_id) for pair in PFWillow(root)}
    assert set(names) == every


def test_sets_can_be_chosen(root: Path) -> None:
    assert len(PFWillow(root, sets=["car(S)", "duck(S)"])) == 8
    with pytest.raises(InputError, match=r"`sets` is 'car\(X\)': no such set; choose from car\(G\)"):
        PFWillow(root, sets=["car(X)"])
    with pytest.raises(InputError, match="`sets`"):
        PFWillow(root, sets=[])


def test_missing_keypoints_are_invisible(root: Path) -> None:
    points = POINTS.copy()
    points[1, 2] = np.nan
    write_photo(root / "PF-dataset-WILLOW" / "duck(S)", "Ducks_1", 7, points)
    pair = PFWillow(root, sets=["duck(S)"])[0]
    assert pair.target.visible.tolist() == [True, True, False]
    assert pair.visible.tolist() == [True, True, False]
    assert torch.isfinite(pair.target.keypoints).all()
    assert threshold_base(pair, "keypoints") == 7.5


def test_bad_trees_are_named(root: Path, tmp_path: Path) -> None:
    folder = root / "PF-dataset-WILLOW" / "duck(S)"
    cases = {
        "nowhere": (lambda: None, {"root": tmp_path / "nowhere"}),
        "holds no sets": (lambda: (tmp_path / "empty").mkdir(), {"root": tmp_path / "empty"}),
        "threshold": (lambda: None, {"root": root, "threshold": "bbox"}),
    }
    for message, (prepare, arguments) in cases.items():
        prepare()
        with pytest.raises(InputError, match=message):
            PFWillow(**arguments)
    bad_points = {
        r"Ducks_1\.mat': keypoint \(32, 4\) outside the 32x24 photo": np.array([[32.0, 10, 20], [4, 2, 15]]),
        r"Ducks_1\.mat': keypoint \(inf, 4\) outside": np.array([[np.inf, 10, 20], [4, 2, 15]]),
        r"Ducks_1\.mat': no keypoints": np.full((2, 3), np.nan),
        r"Ducks_1\.mat': has 2 keypoints where its set has 3": POINTS[:, :2],
        r"Ducks_1\.mat': `pts_coord` has shape \(3, 2\)": POINTS.T,
    }
    for message, points in bad_points.items():
        write_photo(folder, "Ducks_1", 7, points)
        with pytest.raises(InputError, match=message):
            PFWillow(root)
    (folder / "Ducks_1.mat").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"Ducks_1\.mat': no readable `pts_coord`"):
        PFWillow(root)
    (folder / "Ducks_1.mat").unlink()
    with pytest.raises(InputError, match=r"Ducks_1\.mat': no such annotation"):
        PFWillow(root)


def test_the_rest_of_a_damaged_tree_stays(root: Path) -> None:
    folder = root / "PF-dataset-WILLOW"
    (folder / "car(G)" / "Cars_1.mat").write_bytes(b"damaged")
    (folder / "car(S)" / "Cars_4.mat").unlink()
    write_photo(folder / "duck(S)", "Ducks_1", 7, POINTS[:, :2])
    dataset = PFWillow(root, keep_going=True)
    assert [pair.unit for pair in dataset] == ["car(G)"] * 2 + ["car(M)"] * 6 + ["car(S)"] * 2
    lines = [str(problem) for problem in dataset.problems]
    assert [name in line for name, line in zip(("Cars_1", "Cars_4", "Ducks_1"), lines, strict=True)] == [True] * 3


def same_position(dataset: PFWillow) -> float:
    """PCK@0.10 per image, in per cent, of the same relative position."""
    scores = []
    for pair in dataset:
        (h, w), (height, width) = pair.source.size, pair.target.size
        scale = torch.tensor([width / w, height / h], dtype=torch.float64)
        gaps = ((pair.source.keypoints.double() + 0.5) * scale - 0.5 - pair.target.keypoints).norm(dim=1)
        right = gaps[pair.visible] <= 0.1 * threshold_base(pair, dataset.threshold)
        scores.append(100 * right.double().mean())
    return float(torch.stack(scores).mean())


def test_real_counts_and_same_position(shared_data: Path) -> None:
    root = shared_data / "pf-willow"
    if not root.is_dir():
        pytest.skip("needs PF-WILLOW")
    dataset = PFWillow(root)
    assert len(dataset) == 900
    assert len(dataset.sets) == 10
    assert len(dataset.image_ids()) == 70
    assert same_position(dataset) == pytest.approx(27.04, abs=0.05)
    assert len(PFWillow(root, distinct=True)) == 780
    bottles = PFWillow(root, sets=["winebottle(woC)"])
    assert len(bottles) == 90
    assert same_position(bottles) == pytest.approx(87.89, abs=0.05)


def test_real_siblings_share_photos_and_families_do_not(shared_data: Path) -> None:
    root = shared_data / "pf-willow"
    if not root.is_dir():
        pytest.skip("needs PF-WILLOW")
    photos: dict[str, set[str]] = {}
    for pair in PFWillow(root):
        photos.setdefault(pair.category, set()).add(pair.source.image_id)
    assert {name: len(ids) for name, ids in photos.items()} == {
        "car": 20, "duck": 10, "motorbike": 20, "winebottle": 20
    }  # fmt: skip
    families = list(photos.values())
    assert not any(a & b for i, a in enumerate(families) for b in families[:i])
