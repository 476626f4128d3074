"""SPair-71k: a miniature of its tree written here, and the real one where `DITF_PROBE_SPAIR` names it."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data import SPair71k, threshold_base
from ditf_probe.data.spair_keypoints import GROUPS, KEYPOINTS
from ditf_probe.errors import InputError

SIZES = {
    "cat/2008_000001": (32, 24),
    "cat/2008_000002": (40, 30),
    "cat/2009_000003": (20, 28),
    "bus/2008_000001": (36, 24),
    "bus/2010_000004": (30, 30),
}
SHOWN = {
    "cat/2008_000001": [0, 1, 2, 3],
    "cat/2008_000002": [1, 2, 3, 9],
    "cat/2009_000003": [2, 14],
    "bus/2008_000001": [2, 11, 29],
    "bus/2010_000004": [29, 11],
}
PAIRS = {
    # The name says bus where the field says cat, which is what counts.
    "000001-2008_000001-2008_000002:bus": ("cat/2008_000001", "cat/2008_000002"),
    "000002-2008_000002-2009_000003:cat": ("cat/2008_000002", "cat/2009_000003"),
    "000003-2008_000001-2010_000004:bus": ("bus/2008_000001", "bus/2010_000004"),
    "000004-2009_000003-2008_000001:cat": ("cat/2009_000003", "cat/2008_000001"),
}


def place(image: str, keypoint: int) -> list[int]:
    width, height = SIZES[image]
    return [(7 * keypoint + 3 * len(image)) % width, (5 * keypoint + len(SHOWN[image])) % height]


def annotation(name: str) -> dict[str, Any]:
    ends = PAIRS[name]
    common = [keypoint for keypoint in SHOWN[ends[0]] if keypoint in SHOWN[ends[1]]]
    number = int(name[:6])
    found: dict[str, Any] = {
        "pair_id": number, "filename": name, "category": ends[0].split("/")[0], "mirror": 0,
        "kps_ids": [str(keypoint) for keypoint in common], "viewpoint_variation": number % 3,
        "scale_variation": (number + 1) % 3, "truncation": number % 4, "occlusion": (number + 2) % 4,
    }  # fmt: skip
    for end, image in zip(("src", "trg"), ends, strict=True):
        found[f"{end}_imname"] = f"{image.split('/')[1]}.jpg"
        found[f"{end}_imsize"] = [*SIZES[image], 3]
        found[f"{end}_bndbox"] = [2, 1, SIZES[image][0] - 3, SIZES[image][1] - 5]
        found[f"{end}_kps"] = [place(image, keypoint) for keypoint in common]
    return found


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "SPair-71k"
    for seed, (image, (width, height)) in enumerate(SIZES.items()):
        (folder / "JPEGImages" / image).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{image}.jpg", quality=95)
        points = {str(i): place(image, i) if i in SHOWN[image] else None for i in range(KEYPOINTS)}
        whole = {"filename": f"{image.split('/')[1]}.jpg", "kps": points, "bndbox": [2, 1, width - 3, height - 5]}
        write_json(folder / "ImageAnnotation" / f"{image}.json", whole | {"image_width": width, "image_height": height})
    for name in PAIRS:
        write_json(folder / "PairAnnotation/test" / f"{name}.json", annotation(name))
    for size, names in (("large", list(PAIRS)), ("small", list(PAIRS)[2:3])):
        (folder / "Layout" / size).mkdir(parents=True)
        (folder / "Layout" / size / "test.txt").write_text("\n".join(names) + "\n")
    return folder


def test_rows_are_keypoint_ids(root: Path) -> None:
    dataset = SPair71k(root)
    assert [pair.category for pair in dataset] == ["cat", "cat", "bus", "cat"]
    for pair, ends in zip(dataset, PAIRS.values(), strict=True):
        assert pair.unit == pair.source.image_id
        for side, image in ((pair.source, ends[0]), (pair.target, ends[1])):
            assert side.image_id == f"spair-71k/{image}.jpg"
            assert side.size == SIZES[image][::-1]
            for keypoint in range(KEYPOINTS):
                shown = keypoint in SHOWN[ends[0]] and keypoint in SHOWN[ends[1]]
                assert bool(side.visible[keypoint]) == shown
                assert side.keypoints[keypoint].tolist() == (place(image, keypoint) if shown else [0, 0])
    assert threshold_base(dataset[0], dataset.threshold) == 35
    assert threshold_base(dataset[0], SPair71k(root, threshold="image").threshold) == 40
    assert dataset.counts() == {"pairs": 4, "images": 5, "keypoints": 3 + 1 + 2 + 1}
    assert dataset.keypoint_names("cat")[9] == "9"
    assert dataset.image(dataset[0].target.image_id).shape == (3, 30, 40)
    assert {file.relative_to(root / "JPEGImages").with_suffix("").as_posix() for file in dataset.files()} == set(SIZES)
    with pytest.raises(IndexError):
        dataset[4]


def test_all_keypoints_add_what_one_image_shows_and_leave_scores_alone(root: Path) -> None:
    for pair, common in zip(SPair71k(root, all_keypoints=True), SPair71k(root), strict=True):
        ends = PAIRS[list(PAIRS)[pair.index]]
        assert pair.visible.equal(common.visible)
        for side, other, image in ((pair.source, common.source, ends[0]), (pair.target, common.target, ends[1])):
            assert side.visible.nonzero()[:, 0].tolist() == sorted(SHOWN[image])
            assert side.keypoints[pair.visible].equal(other.keypoints[pair.visible])
            assert [side.keypoints[i].tolist() for i in SHOWN[image]] == [place(image, i) for i in SHOWN[image]]
            assert side.bbox.equal(other.bbox)


def test_variations_become_levels(root: Path) -> None:
    assert SPair71k(root)[0].attributes == {
        "viewpoint": "medium", "scale": "hard", "truncation": "source", "occlusion": "both"
    }  # fmt: skip
    assert SPair71k(root, attributes=["truncation"])[1].attributes == {"truncation": "target"}
    assert SPair71k(root, attributes=[])[1].attributes == {}


def test_categories_and_the_small_layout(root: Path) -> None:
    assert [pair.index for pair in SPair71k(root, category="cat")] == [0, 1, 2]
    assert {pair.category for pair in SPair71k(root, category=["bus"])} == {"bus"}
    assert len(SPair71k(root, size="small")) == 1
    with pytest.raises(InputError, match="`category` is 'dog': no such category; choose from bus, cat"):
        SPair71k(root, category=["cat", "dog"])


def test_other_annotations_of_the_same_pairs(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "SPair-U"
    name = next(iter(PAIRS))
    relabelled = annotation(name) | {"kps_ids": ["0", "1"], "src_kps": [[5, 5], [6, 7]], "trg_kps": [[8, 9], [1, 1]]}
    write_json(other / "PairAnnotation/test" / f"{name}.json", relabelled)
    with pytest.raises(InputError, match="no such file"):
        SPair71k(root, annotation_root=other)
    (other / "Layout/large").mkdir(parents=True)
    (other / "Layout/large/test.txt").write_text(name)
    for given in (other, other / "PairAnnotation"):
        dataset = SPair71k(root, annotation_root=given)
        assert len(dataset) == 1
        assert dataset[0].source.keypoints[:2].tolist() == [[5, 5], [6, 7]]
        assert dataset[0].source.image_id == SPair71k(root)[0].source.image_id
        assert dataset.keypoint_groups("cat") == ()
    with pytest.raises(InputError, match=r"`annotation_root`.* holds no PairAnnotation"):
        SPair71k(root, annotation_root=tmp_path)


def test_groups_differ_in_side_only() -> None:
    assert len(GROUPS) == 18
    for groups in GROUPS.values():
        rows = [row for group in groups for row in group]
        assert len(rows) == len(set(rows))
        assert all(len(group) >= 2 and list(group) == sorted(group) for group in groups)
        assert max(rows) < KEYPOINTS
    assert not {8, 9} & {row for group in GROUPS["bus"] for row in group}
    assert (11, 14, 21, 24) in GROUPS["bus"]
    assert GROUPS["aeroplane"][0] == (4, 5)
    assert GROUPS["aeroplane"][-1] == (20, 21)
    assert GROUPS["person"] == ((8, 9), (10, 11), (12, 13), (14, 15), (16, 17), (18, 19))


def change(field: str, value: Any) -> Callable[[Path], None]:
    """Damages the first pair."""

    def damage(root: Path) -> None:
        path = root / "PairAnnotation/test" / f"{next(iter(PAIRS))}.json"
        found = json.loads(path.read_text())
        if value is None:
            del found[field]
        else:
            found[field] = value
        write_json(path, found)

    return damage


def overwrite(file: str, content: bytes | None) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        (root / file).unlink()
        if content is not None:
            (root / file).write_bytes(content)

    return damage


FIRST = f"PairAnnotation/test/{next(iter(PAIRS))}.json"
DAMAGES: list[tuple[str, Callable[[Path], None], int]] = [
    ("no such file; restore it", overwrite(FIRST, None), 3),
    ("no readable JSON", overwrite(FIRST, b'{"category": "c'), 3),
    ("no readable JSON", overwrite(FIRST, b'{"category": "\xff"}'), 3),
    ("no JSON object", overwrite(FIRST, b"[]"), 3),
    ("has no `trg_kps`", change("trg_kps", None), 3),
    (r"`src_kps` has shape \(2, 2\) instead of \(3, 2\)", change("src_kps", [[1, 1], [2, 2]]), 3),
    ("`src_kps` is not made of numbers", change("src_kps", [["a", 1], [2, 2], [3, 3]]), 3),
    (r"keypoint \(40, 34\) outside the 40x30 image", change("trg_kps", [[1, 1], [40, 34], [3, 3]]), 3),
    (r"empty box \(5, 5, 5, 9\)", change("trg_bndbox", [5, 5, 5, 9]), 3),
    ("the box has shape", change("trg_bndbox", [5, 5, 5]), 3),
    (r"ids \[1, 1, 2\] are not distinct", change("kps_ids", ["1", "1", "2"]), 3),
    (r"ids \[1, 2, 30\] are not distinct numbers from 0 to 29", change("kps_ids", ["1", "2", "30"]), 3),
    ("no whole numbers", change("kps_ids", ["1", "2", "x"]), 3),
    ("`occlusion` is 4, not from 0 to 3", change("occlusion", 4), 3),
    ("`mirror` is set", change("mirror", 1), 3),
    (r"image size \[40.0, 31.0\] where", change("trg_imsize", [40, 31, 3]), 3),
    # An image that two pairs share, named once.
    ("2008_000002.jpg': no such file", overwrite("JPEGImages/cat/2008_000002.jpg", None), 2),
    ("2008_000002.jpg': no image", overwrite("JPEGImages/cat/2008_000002.jpg", b"text"), 2),
]


@pytest.mark.parametrize(("message", "damage", "left"), DAMAGES, ids=[message for message, _, _ in DAMAGES])
def test_damage_is_named_and_left_out(root: Path, message: str, damage: Callable[[Path], None], left: int) -> None:
    damage(root)
    with pytest.raises(InputError, match=message) as stopped:
        SPair71k(root)
    assert "\n" not in str(stopped.value)
    dataset = SPair71k(root, keep_going=True)
    assert len(dataset) == left
    assert [pair.index for pair in dataset] == list(range(left))
    assert [str(problem) for problem in dataset.problems] == [str(stopped.value)]


def test_damaged_layouts(root: Path, tmp_path: Path) -> None:
    layout = root / "Layout/large/test.txt"
    names = list(PAIRS)
    layout.write_bytes("\n".join([*names[:2], names[0]]).encode() + b"\ncaf\xe9:cat\n" + names[2].encode())
    layout.write_bytes(layout.read_bytes() + b"\n0\x00:cat\n")
    dataset = SPair71k(root, keep_going=True)
    assert len(dataset) == 3
    assert [problem.remedy for problem in dataset.problems] == [
        f"pair {names[0]} stands there twice; remove one",
        "not UTF-8; save the file as UTF-8",
        "cannot be read (ValueError); restore it",
    ]
    layout.unlink()
    with pytest.raises(InputError, match=r"large/test\.txt': no such file"):
        SPair71k(root, keep_going=True)
    with pytest.raises(InputError, match="holds no JPEGImages"):
        SPair71k(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        SPair71k(tmp_path / "nowhere")
    for argument, value in (("split", "train"), ("size", "tiny"), ("threshold", "box"), ("attributes", ["mirror"])):
        with pytest.raises(InputError, match=f"`{argument}`"):
            SPair71k(root, **{argument: value})


def test_damaged_keypoints_of_images(root: Path) -> None:
    path = root / "ImageAnnotation/cat/2009_000003.json"
    whole = json.loads(path.read_text())
    for kps, message in (
        ({"2": [1, 1], "9": [2, 2]}, r"`kps_ids` are not \[2, 9\]"),
        ({"2": [1, 1, 2]}, "`kps` has shape"),
        ([], "`kps` is no object"),
    ):
        write_json(path, whole | {"kps": kps})
        with pytest.raises(InputError, match=message):
            SPair71k(root, all_keypoints=True)
        assert len(SPair71k(root)) == 4
    path.unlink()
    dataset = SPair71k(root, all_keypoints=True, keep_going=True)
    assert len(dataset) == 2
    assert len(dataset.problems) == 1


def test_border_keypoints_move_onto_the_border(root: Path) -> None:
    change("trg_kps", [[40, 30], [-1, 0], [3, 3]])(root)
    pair = SPair71k(root)[0]
    assert pair.target.keypoints[pair.visible].tolist() == [[39.5, 29.5], [-0.5, 0], [3, 3]]


def test_a_place_that_is_not_known_is_missing(root: Path) -> None:
    change("trg_kps", [[1, 1], [float("nan"), 2], [3, 3]])(root)
    pair = SPair71k(root)[0]
    assert pair.source.visible.nonzero()[:, 0].tolist() == [1, 2, 3]
    assert pair.visible.nonzero()[:, 0].tolist() == [1, 3]


def test_a_cut_photo_is_found_when_it_is_decoded(root: Path) -> None:
    file = root / "JPEGImages/cat/2008_000001.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    dataset = SPair71k(root)
    with pytest.raises(InputError, match="damaged"):
        dataset.image(dataset[0].source.image_id)


def test_the_real_counts() -> None:
    if "DITF_PROBE_SPAIR" not in os.environ:
        pytest.skip("needs SPair-71k: set DITF_PROBE_SPAIR to its folder")
    root = os.environ["DITF_PROBE_SPAIR"]
    counts = {
        (size, split): len(SPair71k(root, split, size)) for size in ("large", "small") for split in ("trn", "val")
    }
    assert counts == {
        ("large", "trn"): 53340, ("large", "val"): 5384, ("small", "trn"): 10652, ("small", "val"): 1070
    }  # fmt: skip
    assert len(SPair71k(root, size="small")) == 2438
    test = SPair71k(root, all_keypoints=True)
    assert len(test) == 12234
    levels = Counter((name, level) for pair in test for name, level in pair.attributes.items())
    assert [levels["viewpoint", level] for level in ("easy", "medium", "hard")] == [6654, 4474, 1106]
    assert [levels["truncation", level] for level in ("none", "source", "target", "both")] == [7050, 2166, 2166, 852]
    assert all(torch.isfinite(pair.target.keypoints).all() for pair in test)
