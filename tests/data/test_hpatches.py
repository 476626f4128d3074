"""HPatches in its published layout, whole and damaged."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data.hpatches import LARGE, HPatches
from ditf_probe.data.planar import PlanarDataModule
from ditf_probe.errors import InputError

SEQUENCES = ("i_dome", "v_bird", "v_talent")


def homography(sequence: int, number: int) -> np.ndarray:
    return np.array([[1.0, 0.02 * number, 3.5 * sequence], [0.01, 0.9, number], [1e-5, 0, 1.0]])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three sequences; all images but the first are three pixels wider."""
    generator = np.random.default_rng(0)
    for order, name in enumerate(SEQUENCES):
        folder = tmp_path / "hpatches-sequences-release" / name
        folder.mkdir(parents=True)
        for number in range(1, 7):
            pixels = generator.integers(0, 256, (12, 16 + 3 * (number > 1), 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.ppm")
            if number > 1:
                rows = (" ".join(f"{x:.6g}" for x in row) for row in homography(order, number))
                (folder / f"H_1_{number}").write_text("\n".join(rows) + "\n")
    (tmp_path / "hpatches-sequences-release" / "notes").mkdir()
    return tmp_path


def test_sequences_pairs_and_homographies(root: Path) -> None:
    dataset = HPatches(root)
    assert [sequence.name for sequence in dataset] == ["i_dome", "v_bird"]  # v_talent is large
    assert [sequence.change for sequence in dataset] == ["illumination", "viewpoint"]
    bird = dataset[1]
    assert bird.reference.image_id == "hpatches/v_bird/1.ppm"
    assert bird.reference.size == (12, 16)
    assert [pair.index for pair in bird.pairs] == [5, 6, 7, 8, 9]
    assert bird.pairs[2].target.image_id == "hpatches/v_bird/4.ppm"
    assert bird.pairs[2].target.size == (12, 19)
    np.testing.assert_allclose(bird.pairs[2].homography.numpy(), homography(1, 4))
    assert bird.pairs[2].homography.dtype == torch.float64
    assert dataset.image("hpatches/v_bird/4.ppm").shape == (3, 12, 19)
    assert dataset.counts() == {"sequences": 2, "viewpoint": 1, "illumination": 1, "pairs": 10, "images": 12}
    assert len(dataset.files()) == len(set(dataset.files())) == 12
    assert all(path.is_file() for path in dataset.files())
    with pytest.raises(IndexError):
        dataset[2]


def test_subsets(root: Path) -> None:
    inner = root / "hpatches-sequences-release"
    assert [sequence.name for sequence in HPatches(inner, "all")] == list(SEQUENCES)
    assert [sequence.name for sequence in HPatches(inner, sequences=["v_talent", "i_dome"])] == ["v_talent", "i_dome"]
    assert len(LARGE) == 8
    with pytest.raises(InputError, match="v_nothing"):
        HPatches(root, sequences=["v_nothing"])
    with pytest.raises(InputError, match="subset"):
        HPatches(root, "caps")


DAMAGES = {
    "missing image": lambda f: (f / "3.ppm").unlink(),
    "cut header": lambda f: (f / "3.ppm").write_bytes(b"P6\n16"),
    "missing homography": lambda f: (f / "H_1_3").unlink(),
    "letters": lambda f: (f / "H_1_3").write_text("1 0 0\n0 one 0\n0 0 1\n"),
    "bytes": lambda f: (f / "H_1_3").write_bytes(b"\xff\xfe\x00"),
    "ragged": lambda f: (f / "H_1_3").write_text("1 0 0\n0 1\n0 0 1\n"),
    "two lines": lambda f: (f / "H_1_3").write_text("1 0 0\n0 1 0\n"),
    "empty": lambda f: (f / "H_1_3").write_text(""),
    "nan": lambda f: (f / "H_1_3").write_text("1 0 0\n0 nan 0\n0 0 1\n"),
    "singular": lambda f: (f / "H_1_3").write_text("1 2 300\n2 4 600\n0 0 1\n"),
    "zero": lambda f: (f / "H_1_3").write_text("0 0 0\n0 0 0\n0 0 0\n"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_left_out(root: Path, damage: str) -> None:
    folder = root / "hpatches-sequences-release" / "i_dome"
    DAMAGES[damage](folder)
    with pytest.raises(InputError) as caught:
        HPatches(root)
    assert "\n" not in str(caught.value)
    kept = HPatches(root, keep_going=True)
    assert [str(problem) for problem in kept.problems] == [str(caught.value)]
    named = "3.ppm" if damage in ("missing image", "cut header") else "H_1_3"
    assert str(folder / named) in str(kept.problems[0])
    assert kept.counts()["pairs"] == 9
    assert [pair.index for sequence in kept for pair in sequence.pairs] == list(range(9))
    assert len(kept.files()) == 11


def test_without_its_reference_a_sequence_is_one_problem(root: Path) -> None:
    (root / "hpatches-sequences-release" / "i_dome" / "1.ppm").unlink()
    kept = HPatches(root, keep_going=True)
    assert len(kept.problems) == 1
    assert [sequence.name for sequence in kept] == ["v_bird"]
    assert [pair.index for pair in kept[0].pairs] == list(range(5))


def test_a_sequence_without_pairs_is_left_out(root: Path) -> None:
    for number in range(2, 7):
        (root / "hpatches-sequences-release" / "i_dome" / f"H_1_{number}").unlink()
    kept = HPatches(root, keep_going=True)
    assert len(kept.problems) == 6
    assert [sequence.name for sequence in kept] == ["v_bird"]


def test_wrong_folders(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InputError, match="root"):
            HPatches(folder)


def test_batches_of_one_sequence(root: Path) -> None:
    module = PlanarDataModule({"hpatches": HPatches(root)})
    module.setup("test")
    (loader,) = module.test_dataloader()
    assert [[sequence.name for sequence in batch] for batch in loader] == [["i_dome"], ["v_bird"]]
    with pytest.raises(InputError, match="test"):
        PlanarDataModule({}).setup()


def test_counts_of_the_real_data(shared_data: Path) -> None:
    root = Path(os.environ.get("HPATCHES", shared_data / "hpatches"))
    if not root.is_dir():
        pytest.skip(f"needs the HPatches sequences in {root}, or their folder in $HPATCHES")
    every = HPatches(root, "all").counts()
    assert every == {"sequences": 116, "viewpoint": 59, "illumination": 57, "pairs": 580, "images": 696}
    usual = HPatches(root).counts()
    assert usual == {"sequences": 108, "viewpoint": 56, "illumination": 52, "pairs": 540, "images": 648}
