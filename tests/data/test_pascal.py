"""PF-PASCAL: a miniature of its tree written here, and the real pair lists where they are present."""

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from ditf_probe.data import PFPascal, threshold_base
from ditf_probe.data.pascal_lists import CLASSES, TrainingImages, read_list
from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError

NAN = np.nan
KPS = {
    "2008_000001": [[3.0, 4.0], [NAN, NAN], [20.5, 11.25], [8.0, 9.0]],
    "2008_000002": [[5.0, 6.0], [7.0, 8.0], [NAN, NAN], [30.0, 2.0]],
    "2009_000003": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]],
    "2010_000004": [[2.0, 2.0], [4.0, 4.0], [6.0, 6.0], [9.0, 8.0]],
    "2010_000005": [[2.5, 2.0], [4.5, 4.0], [6.5, 6.0], [9.5, 8.0]],
}
SIZE = (40, 24)
COLUMNS = "source_image,target_image,class"
TRAIN = [(1, 2, 0), (2, 1, 0), (1, 2, 1), (1, 2, 0), (1, 3, 0)]
TEST = [(2, 1), (3, 2), (3, 4), (4, 5)]  # both images and the pair, both images, one, none in training


def path_of(number: int) -> str:
    return f"PF-dataset-PASCAL/JPEGImages/{list(KPS)[number - 1]}.jpg"


def listed_row(source: int, target: int) -> str:
    common = ~np.isnan([KPS[name] for name in (list(KPS)[source - 1], list(KPS)[target - 1])]).any((0, 2))
    cells = [path_of(source), path_of(target), "8"]
    for number in (source, target):
        points = np.array(KPS[list(KPS)[number - 1]])[common]
        cells += [";".join(map(str, points[:, axis].tolist())) for axis in (0, 1)]
    return ",".join(cells)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    inner = tmp_path / "pf-pascal" / "PF-dataset-PASCAL"
    (inner / "JPEGImages").mkdir(parents=True)
    (inner / "Annotations/cat").mkdir(parents=True)
    for seed, (name, points) in enumerate(KPS.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(inner / "JPEGImages" / f"{name}.jpg", quality=95)
        savemat(inner / "Annotations/cat" / f"{name}.mat", {"kps": np.array(points), "bbox": [[1.0, 2.0, 36.0, 20.0]]})
    lists = tmp_path / "pf-pascal"
    rows = [f"{path_of(a)},{path_of(b)},8,{flip}" for a, b, flip in TRAIN]
    (lists / "train_pairs.csv").write_text("\n".join([f"{COLUMNS},flip", *rows]) + "\n")
    (lists / "val_pairs.csv").write_text(f"{COLUMNS},flip\n{path_of(3)},{path_of(1)},8,0\n")
    (lists / "test_pairs.csv").write_text("\n".join([f"{COLUMNS},XA,YA,XB,YB", *(listed_row(*pair) for pair in TEST)]))
    return tmp_path / "pf-pascal"


def test_test_pairs_come_from_the_list(root: Path) -> None:
    dataset = PFPascal(root)
    assert len(dataset) == 4
    pair = dataset[0]
    assert pair.category == "cat"
    assert pair.source.image_id == "pf-pascal/2008_000002.jpg"
    assert pair.unit == pair.source.image_id
    assert pair.source.size == (24, 40)
    assert pair.source.keypoints.tolist() == [[5, 6], [30, 2]]
    assert pair.target.keypoints.tolist() == [[3, 4], [8, 9]]
    assert pair.target.bbox.tolist() == [3, 4, 8, 9]
    assert pair.visible.all()
    assert threshold_base(pair, dataset.threshold) == 40
    assert threshold_base(pair, PFPascal(root, threshold="keypoints").threshold) == 5
    boxed = PFPascal(root, threshold="bbox")
    assert threshold_base(boxed[0], boxed.threshold) == 35
    assert len(dataset.files()) == 5
    with pytest.raises(IndexError):
        dataset[4]


def test_annotations_keep_their_rows(root: Path) -> None:
    inner = root / "PF-dataset-PASCAL"
    for dataset in (PFPascal(root, keypoints="annotations"), PFPascal(inner, "test", root, "annotations")):
        for pair, (source, target) in zip(dataset, TEST, strict=True):
            for side, number in ((pair.source, source), (pair.target, target)):
                for row, place in enumerate(KPS[list(KPS)[number - 1]]):
                    assert bool(side.visible[row]) == (place[0] == place[0])
                    assert side.keypoints[row].tolist() == (place if place[0] == place[0] else [0, 0])
                assert side.bbox.tolist() == [1, 2, 36, 20]
    listed = PFPascal(root)
    for pair, same in zip(listed, dataset, strict=True):
        assert pair.target.keypoints.equal(same.target.keypoints[same.visible])


def test_flipped_rows_mirror_image_and_keypoints(root: Path) -> None:
    dataset = PFPascal(root, "train")
    assert len(dataset) == 5
    plain, mirrored = dataset[0], dataset[2]
    assert mirrored.source.image_id == "pf-pascal/2008_000001.jpg/mirrored"
    assert mirrored.unit == plain.unit
    for before, after in ((plain.source, mirrored.source), (plain.target, mirrored.target)):
        pixels = dataset.image(before.image_id)
        assert dataset.image(after.image_id).equal(pixels.flip(-1))
        assert after.visible.equal(before.visible)
        for (x, y), (mirrored_x, mirrored_y) in zip(
            before.keypoints[before.visible].tolist(), after.keypoints[after.visible].tolist(), strict=True
        ):
            assert (mirrored_x, mirrored_y) == (39 - x, y)
        # The whole pixel under a keypoint is the same one.
        x, y = (int(number) for number in before.keypoints[before.visible][0])
        assert dataset.image(after.image_id)[:, y, 39 - x].equal(pixels[:, y, x])
        assert after.bbox.tolist() == [3, 2, 38, 20]
    assert [pair.attributes for pair in dataset] == [{}] * 5
    assert len(dataset.files()) == 3


def test_leakage_is_told(root: Path) -> None:
    levels = [(pair.attributes["pair in train"], pair.attributes["images in train"]) for pair in PFPascal(root)]
    assert levels == [("yes", "2"), ("no", "2"), ("no", "1"), ("no", "0")]
    assert PFPascal(root, "val")[0].attributes == {"pair in train": "yes", "images in train": "2"}
    (root / "train_pairs.csv").unlink()
    assert PFPascal(root, leakage=False)[0].attributes == {}
    with pytest.raises(InputError, match=r"holds no train_pairs\.csv.* or set `leakage` to false"):
        PFPascal(root)


def damage_row(split: str, number: int, before: str, after: bytes) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / f"{split}_pairs.csv"
        lines = path.read_bytes().splitlines()
        assert before.encode() in lines[number]
        lines[number] = lines[number].replace(before.encode(), after, 1)
        path.write_bytes(b"\n".join(lines))

    return damage


def replace_mat(content: dict[str, object] | bytes | None) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / "PF-dataset-PASCAL/Annotations/cat/2010_000005.mat"
        path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            savemat(path, content)

    return damage


FOUR = np.array(KPS["2010_000005"])
BOX = [[1.0, 2.0, 36.0, 20.0]]
DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    ("line 5': 6 cells where the header has 7", damage_row("test", 4, ",8,", b",")),
    ("class '21' is none of 1 to 20", damage_row("test", 4, ",8,", b",21,")),
    ("class 'x' is none of 1 to 20", damage_row("test", 4, ",8,", b",x,")),
    ("XA, YA, XB and YB differ in length", damage_row("test", 4, ",8,", b",8,1;")),
    ("`XA` is not made of numbers", damage_row("test", 4, ",8,", b",8,a;")),
    (r"keypoint \(200, 2\) outside the 40x24 image", damage_row("test", 4, ",8,2.0;", b",8,200;")),
    ("not UTF-8", damage_row("test", 4, "2010_000005", b"\xff\xfe")),
    ("caf.jpg': no such file", damage_row("test", 4, "2010_000005", b"caf")),
    (
        "pair 2009_000003.jpg, 2010_000004.jpg stands there twice",
        damage_row("test", 4, "", listed_row(3, 4).encode() + b"\n"),
    ),
    ("2010_000005.mat': no such annotation", replace_mat(None)),
    ("2010_000005.mat': no readable `kps` and `bbox`", replace_mat(b"damaged")),
    ("no readable `kps` and `bbox`", replace_mat({"kps": FOUR})),
    (r"`kps` has shape \(2, 4\)", replace_mat({"kps": FOUR.T, "bbox": BOX})),
    (r"empty box \(1, 2, 1, 20\)", replace_mat({"kps": FOUR, "bbox": [[1.0, 2.0, 1.0, 20.0]]})),
    ("no keypoints in it", replace_mat({"kps": FOUR * NAN, "bbox": BOX})),
    ("2010_000004.jpg has 4 keypoints and 2010_000005.jpg has 3", replace_mat({"kps": FOUR[:3], "bbox": BOX})),
    (r"keypoint \(-9, 2\) outside", replace_mat({"kps": np.array([[-9.0, 2.0], *FOUR[1:]]), "bbox": BOX})),
]


@pytest.mark.parametrize(("message", "damage"), DAMAGES, ids=[message for message, _ in DAMAGES])
def test_damage_is_named_and_left_out(root: Path, message: str, damage: Callable[[Path], None]) -> None:
    damage(root)
    options = {"keypoints": "annotations"} if damage.__qualname__.startswith("replace_mat") else {}
    with pytest.raises(InputError, match=message) as stopped:
        PFPascal(root, **options)
    assert "\n" not in str(stopped.value)
    dataset = PFPascal(root, **options, keep_going=True)
    assert [str(problem) for problem in dataset.problems] == [str(stopped.value)]
    whole = "twice" in message
    assert [pair.index for pair in dataset] == list(range(4 if whole else 3))


def test_damage_that_concerns_everything(root: Path, tmp_path: Path) -> None:
    path = root / "test_pairs.csv"
    text = path.read_text()
    path.write_text(text.replace("XA", "xa", 1))
    with pytest.raises(InputError, match="has no column `XA`"):
        PFPascal(root, keep_going=True)
    assert len(PFPascal(root, keypoints="annotations")) == 4
    path.write_text("")
    with pytest.raises(InputError, match="has no column `source_image`"):
        PFPascal(root)
    path.unlink()
    with pytest.raises(InputError, match=r"holds no test_pairs\.csv"):
        PFPascal(root, leakage=False)
    path.with_name("test_pairs_pf_pascal.csv").write_text("\ufeff" + text)
    assert len(PFPascal(root)) == 4
    (root / "train_pairs.csv").write_text(f"{COLUMNS},flip\n{path_of(1)},{path_of(2)},8,2\n")
    with pytest.raises(InputError, match=r"train_pairs\.csv line 2': flip '2' is neither 0 nor 1"):
        PFPascal(root, keep_going=True)
    with pytest.raises(InputError, match="holds no JPEGImages"):
        PFPascal(tmp_path)
    for options, message in (
        ({"split": "trn"}, "`split`"),
        ({"keypoints": "csv"}, "`keypoints`"),
        ({"threshold": "box"}, "`threshold`"),
        ({"split": "val", "keypoints": "list"}, "the val list has no coordinates"),
    ):
        with pytest.raises(InputError, match=message):
            PFPascal(root, **options)


def test_a_cut_photo_is_found_when_it_is_decoded(root: Path) -> None:
    file = root / "PF-dataset-PASCAL/JPEGImages/2008_000002.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    dataset = PFPascal(root)
    with pytest.raises(InputError, match="damaged"):
        dataset.image(dataset[0].source.image_id)


@pytest.fixture(scope="module")
def real_lists(shared_data: Path) -> Path:
    if not (shared_data / "pf-pascal/test_pairs.csv").is_file():
        pytest.skip("needs the pair lists of PF-PASCAL")
    return shared_data / "pf-pascal"


def test_real_lists_leak_a_third(real_lists: Path) -> None:
    training = TrainingImages(real_lists / "train_pairs.csv")
    rows = [row for _, row in read_list(real_lists / "test_pairs.csv", "test", True, Problems())]
    assert len(rows) == 299
    levels = [training.attributes(row.source, row.target) for row in rows]
    assert Counter(level["pair in train"] for level in levels) == {"no": 204, "yes": 95}
    assert Counter(level["images in train"] for level in levels)["0"] == 79
    assert {row.category for row in rows} == set(CLASSES)
    assert sum(len(row.points[0]) for row in rows if row.points) == sum(
        cells["XB"].count(";") + 1 for cells in csv.DictReader((real_lists / "test_pairs.csv").open())
    )
    counts = {
        split: len(list(read_list(real_lists / f"{split}_pairs.csv", split, False, Problems())))
        for split in ("train", "val")
    }
    assert counts == {"train": 2940, "val": 308}


def test_the_real_test_list_over_blank_photos(real_lists: Path, tmp_path: Path) -> None:
    """The whole data set with the real list; the photos are blank, since only their sizes matter to annotations."""
    photos = tmp_path / "PF-dataset-PASCAL/JPEGImages"
    photos.mkdir(parents=True)
    blank = tmp_path / "blank.jpg"
    Image.new("L", (500, 500)).save(blank)
    names = {
        Path(row[name]).name
        for row in csv.DictReader((real_lists / "test_pairs.csv").open())
        for name in ("source_image", "target_image")
    }
    for name in names:
        (photos / name).symlink_to(blank)
    dataset = PFPascal(tmp_path, lists=real_lists)
    assert len(dataset) == 299
    assert len(dataset.image_ids()) == 506
    clean = [pair for pair in dataset if pair.attributes["pair in train"] == "no"]
    unseen = [pair for pair in clean if pair.attributes["images in train"] == "0"]
    assert (len(clean), len(unseen)) == (204, 79)
    assert all(torch.isfinite(pair.source.keypoints).all() and pair.visible.all() for pair in dataset)
