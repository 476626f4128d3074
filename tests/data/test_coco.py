"""COCO keypoint files: pairs of objects, and what is said of damaged records."""

import json
import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data import pair_forming
from ditf_probe.data.coco import COCOKeypoints
from ditf_probe.data.instances import Instance
from ditf_probe.data.pair_forming import pairs_within_categories
from ditf_probe.data.pairs import Side, threshold_base
from ditf_probe.errors import InputError

NAMES = ["nose", "left_eye", "right_eye", "left_ear", "right_ear"]


def person(number: int, image: int, flags: Sequence[int] = (2, 2, 2, 2, 2), **changes: Any) -> dict[str, Any]:
    points = [[number + row, row + 1, flag] if flag else [0, 0, 0] for row, flag in enumerate(flags)]
    known: dict[str, Any] = {"id": number, "image_id": image, "category_id": 1, "bbox": [1, 2, 10, 6], "area": 50.0}
    return known | {"iscrowd": 0, "num_keypoints": 5, "keypoints": [x for p in points for x in p]} | changes


def content(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 24, "height": 18} for i in (1, 2, 3)]
    categories = [
        {"id": 1, "name": "person", "supercategory": "human", "keypoints": NAMES},
        {"id": 2, "name": "doll", "supercategory": "toy", "keypoints": NAMES[:3]},
        {"id": 3, "name": "ball", "supercategory": "toy"},
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Image 1 shows persons 1 and 2 and a ball, image 2 persons 3 and 4 (a crowd), image 3 person 5 and doll 6."""
    (tmp_path / "images").mkdir()
    for i in (1, 2, 3):
        Image.fromarray(np.full((18, 24, 3), 60 * i, np.uint8)).save(tmp_path / "images" / f"{i}.jpg")
    ball = {"id": 7, "image_id": 1, "category_id": 3, "bbox": [0, 0, 3, 3]}
    doll = person(6, 3, category_id=2) | {"keypoints": [1, 1, 2] * 3}
    found = [person(1, 1), person(2, 1, (2, 2, 1, 1, 0)), person(3, 2, area=9.0), person(4, 2, iscrowd=1), person(5, 3)]
    write(tmp_path, [*found, doll, ball])
    return tmp_path


def write(root: Path, annotations: list[dict[str, Any]]) -> None:
    (root / "keypoints.json").write_text(json.dumps(content(annotations)))


def keys(root: Path, **options: Any) -> set[tuple[str, str]]:
    return set(COCOKeypoints(root, "keypoints.json", "images", **options)._keys())


def test_pairs_are_of_two_images_and_one_category(root: Path) -> None:
    expected = {pair for pair in permutations("1235", 2) if set(pair) != {"1", "2"}}
    assert keys(root, visibility="labelled") == expected
    # Person 2 has two clear keypoints.
    assert keys(root) == {pair for pair in expected if "2" not in pair}
    assert keys(root, min_visible=2) == expected
    assert keys(root, min_area=32.0) == {("1", "5"), ("5", "1")}
    assert {"4"} < {key for pair in keys(root, keep_crowd=True) for key in pair}
    dataset = COCOKeypoints(root, "keypoints.json", "images")
    pair = dataset[0]
    assert pair.category == "person"
    assert pair.source.keypoints[0].tolist() == [1, 1]
    assert threshold_base(pair, dataset.threshold) == 10.0
    assert dataset.keypoint_names("person") == tuple(NAMES)
    assert dataset.keypoint_groups("person") == ((1, 2), (3, 4))
    assert dataset.image(pair.source.image_id)[0, 0, 0] == 60
    assert dataset.counts() == {"pairs": 6, "images": 3, "keypoints": 30}
    with pytest.raises(InputError, match="no two of 1 images of a category share 3 visible"):
        COCOKeypoints(root, "keypoints.json", "images", categories=["doll"])
    with pytest.raises(
        InputError, match="`categories` is 'cat': no object of it has keypoints; there are doll, person"
    ):
        COCOKeypoints(root, "keypoints.json", "images", categories=["cat"])


def test_ids_differ_between_annotation_files(root: Path, tmp_path: Path) -> None:
    first = COCOKeypoints(root, "keypoints.json", "images")[0].source.image_id
    write(root, [person(1, 1), person(2, 2)])
    assert COCOKeypoints(root, "keypoints.json", "images")[0].source.image_id != first


def instances(rng: np.random.Generator) -> list[Instance]:
    found = []
    for number in range(int(rng.integers(2, 25))):
        visible = torch.from_numpy(rng.random(4) < 0.6)
        side = Side(f"photo/{rng.integers(12)}", (9, 9), torch.zeros(4, 2), visible, torch.zeros(4))
        found.append(Instance(str(number), Path(str(number)), str(rng.choice(["cat", "cup", "dog"])), side))
    return found


def slow_pairs(found: list[Instance], least: int) -> set[tuple[int, int]]:
    pairs = set()
    for a, one in enumerate(found):
        for b, other in enumerate(found):
            shared = sum(bool(x) and bool(y) for x, y in zip(one.side.visible, other.side.visible, strict=True))
            if one.category == other.category and one.side.image_id != other.side.image_id and shared >= least:
                pairs.add((a, b))
    return pairs


@pytest.mark.parametrize("most", [pair_forming.MOST_PAIRS, 0])
def test_pairs_are_those_of_plain_loops(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 200 random cases, listed whole or tried one by one."""
    monkeypatch.setattr(pair_forming, "MOST_PAIRS", most)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found, least = instances(rng), int(rng.integers(1, 3))
        expected = slow_pairs(found, least)
        if not expected:
            with pytest.raises(InputError):
                pairs_within_categories(found, 1, least, seed)
            continue
        wanted = max(1, len(expected) // 3)
        drawn = [(a, b) for a, b in pairs_within_categories(found, wanted, least, seed).tolist()]
        assert len(drawn) == len(set(drawn)) == wanted
        assert set(drawn) <= expected
        if most:
            every = [(a, b) for a, b in pairs_within_categories(found, None, least, seed).tolist()]
            assert len(every) == len(expected)
            assert set(every) == expected
            assert drawn == sorted(drawn, key=every.index)


def test_draws_are_even(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Instance(
            str(n), Path(str(n)), "cat", Side(str(n), (9, 9), torch.zeros(1, 2), torch.ones(1).bool(), torch.zeros(4))
        )
        for n in range(4)
    ]
    for most in (pair_forming.MOST_PAIRS, 0):
        monkeypatch.setattr(pair_forming, "MOST_PAIRS", most)
        drawn = [tuple(pairs_within_categories(found, 1, 1, seed)[0].tolist()) for seed in range(1200)]
        counts = [drawn.count(pair) for pair in permutations(range(4), 2)]
        assert sum(counts) == 1200
        assert min(counts) > 60  # 100 expected, standard deviation 10


def test_too_many_pairs_ask_for_a_number(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_forming, "MOST_PAIRS", 5)
    with pytest.raises(InputError, match="`num_pairs` is None: there are up to 6 pairs; give the number to draw"):
        COCOKeypoints(root, "keypoints.json", "images")
    assert len(COCOKeypoints(root, "keypoints.json", "images", num_pairs=4)) == 4
    with pytest.raises(InputError, match="found only 6 pairs"):
        COCOKeypoints(root, "keypoints.json", "images", num_pairs=7)


BAD_RECORDS: dict[str, dict[str, Any]] = {
    r"'keypoints\.json, annotation 9': category_id 8 is not in the file": person(9, 1, category_id=8),
    "annotation 9': image_id None is not": person(9, 1) | {"image_id": None},
    r"annotation 9': image_id \[1\] is not": person(9, 1) | {"image_id": [1]},
    "annotation 9': no readable id, keypoints or bbox": person(9, 1) | {"bbox": [1, 2]},
    "annotation without id'": person(9, 1) | {"id": None},
    "4 keypoints where person has 5": person(9, 1) | {"keypoints": [1, 1, 2] * 4},
    "a visibility flag other than": person(9, 1) | {"keypoints": [1, 1, 2] * 4 + [1, 1, 5]},
    "empty box of 0 x 3 pixels": person(9, 1, bbox=[1, 1, 0, 3]),
    r"'1\.jpg, annotation 9': keypoint \(25, 1\) outside the 24x18 image": person(9, 1) | {"keypoints": [25, 1, 2] * 5},
    "annotation 1': second annotation with this id": person(1, 1),
}


@pytest.mark.parametrize("message", BAD_RECORDS)
def test_bad_records_are_named_and_the_others_stay(root: Path, message: str) -> None:
    write(root, [person(1, 1), person(2, 2), BAD_RECORDS[message]])
    with pytest.raises(InputError, match=message):
        COCOKeypoints(root, "keypoints.json", "images")
    dataset = COCOKeypoints(root, "keypoints.json", "images", keep_going=True)
    assert len(dataset) == 2
    assert [bool(re.search(message, str(problem))) for problem in dataset.problems] == [True]


def test_zero_visibility_means_missing(root: Path) -> None:
    """Coordinates of an unlabelled keypoint say nothing, not even that they are outside the image."""
    far = person(2, 2, (2, 2, 2, 0, 0))
    far["keypoints"][9:12] = [999, -5, 0]
    write(root, [person(1, 1), far])
    pair = COCOKeypoints(root, "keypoints.json", "images")[0]
    assert pair.visible.tolist() == [True] * 3 + [False] * 2


def test_bad_images_and_categories(root: Path) -> None:
    bad = content([person(1, 1), person(2, 2), person(3, 3)])
    bad["images"] += [{"id": 1, "file_name": "x.jpg", "width": 3, "height": 3}, {"id": 5, "file_name": "y.jpg"}]
    bad["images"] += [{"id": 6, "file_name": "../z.jpg", "width": 3, "height": 3}]
    bad["categories"].append({"id": 4})
    (root / "keypoints.json").write_text(json.dumps(bad))
    (root / "images" / "3.jpg").unlink()
    lines = [str(problem) for problem in COCOKeypoints(root, "keypoints.json", "images", keep_going=True).problems]
    expected = ["category 4': no readable name", "image 1': second image", "image 5': no readable id"]
    expected += ["image 6': size below 1 or a file outside", "3.jpg': no such file"]
    assert len(lines) == len(expected)
    for line, text in zip(lines, expected, strict=True):
        assert text in line
