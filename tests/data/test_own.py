"""A folder of images and a table: what its pairs say, and what is said of every mistake in it."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

import ditf_probe.data.own
from ditf_probe.data.own import KeypointFolder
from ditf_probe.data.pairs import threshold_base
from ditf_probe.errors import InputError

SCHEMA = json.loads((Path(ditf_probe.data.own.__file__).parent / "keypoints.schema.json").read_text())
HEADER = "image,category,keypoint,x,y"
ROWS = [
    "a.jpg,cat,left_eye,3,4",
    "a.jpg,cat,right_eye,9,4",
    "a.jpg,cat,nose,6,7",
    "more/b.jpg,cat,nose,5,5.5",
    "more/b.jpg,cat,left_eye,nan,NaN",
    "more/b.jpg,cat,right_eye,8,2",
    "c.jpg,cat,nose,,",
    "c.jpg,cat,right_eye,7,7",
    "d.jpg,cup,handle,1,1",
    "e.jpg,cup,handle,2,2",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    for seed, name in enumerate(("a", "more/b", "c", "d", "e")):
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg")
    write(tmp_path, ROWS)
    return tmp_path


def write(root: Path, rows: list[str], header: str = HEADER) -> None:
    (root / "keypoints.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def named(dataset: KeypointFolder) -> list[tuple[str, str]]:
    stems = {side.image_id: file.stem for file, side in zip(dataset.files(), sides(dataset), strict=True)}
    return [(stems[pair.source.image_id], stems[pair.target.image_id]) for pair in dataset]


def sides(dataset: KeypointFolder) -> list[Any]:
    found = {side.image_id: side for pair in dataset for side in (pair.source, pair.target)}
    return [found[image_id] for image_id in dataset._images]


def test_all_ordered_pairs_within_a_category(root: Path) -> None:
    dataset = KeypointFolder(root)
    assert named(dataset) == [
        ("a", "b"),
        ("a", "c"),
        ("b", "a"),
        ("b", "c"),
        ("c", "a"),
        ("c", "b"),
        ("d", "e"),
        ("e", "d"),
    ]
    assert dataset.keypoint_names("cat") == ("left_eye", "right_eye", "nose")
    assert dataset.keypoint_groups("cat") == ((0, 1),)
    assert dataset.keypoint_groups("cup") == ()
    pair = dataset[0]
    assert pair.source.keypoints.tolist() == [[3, 4], [9, 4], [6, 7]]
    assert pair.target.visible.tolist() == [False, True, True]
    assert pair.visible.tolist() == [False, True, True]
    assert torch.isfinite(pair.target.keypoints).all()
    assert pair.source.bbox.tolist() == [3, 4, 9, 7]
    assert threshold_base(pair, dataset.threshold) == 3.5
    assert pair.unit == pair.source.image_id
    assert pair.source.size == (12, 16)
    assert dataset.image(pair.source.image_id).shape == (3, 12, 16)
    assert dataset.counts() == {"pairs": 8, "images": 5, "keypoints": 2 * (2 + 1 + 1 + 1)}
    assert len(KeypointFolder(root, min_visible=2)) == 2


def test_pairs_can_be_drawn_or_named(root: Path, tmp_path: Path) -> None:
    drawn = KeypointFolder(root, num_pairs=3, seed=1)
    assert named(drawn) == named(KeypointFolder(root, num_pairs=3, seed=1))
    assert len(drawn) == len(set(named(drawn))) == 3
    assert set(named(drawn)) < set(named(KeypointFolder(root)))
    assert len({KeypointFolder(root, num_pairs=3, seed=seed).pairs_sha256 for seed in range(8)}) > 1
    assert len(KeypointFolder(root, num_pairs=99)) == 8
    drawn.write_pairs(tmp_path / "pairs.json")
    assert KeypointFolder(root, pairs_file=tmp_path / "pairs.json").pairs_sha256 == drawn.pairs_sha256
    (tmp_path / "pairs.csv").write_text("source,target\nmore/b.jpg,a.jpg\nd.jpg,e.jpg\n")
    assert named(KeypointFolder(root, pairs_file=tmp_path / "pairs.csv")) == [("b", "a"), ("d", "e")]


def test_a_pair_of_two_categories_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("source,target\na.jpg,d.jpg\na.jpg,a.jpg\na.jpg,c.jpg\na.jpg,c.jpg\n")
    with pytest.raises(InputError, match=r"`pairs_file` is 'a\.jpg, d\.jpg': a pair of cat and cup"):
        KeypointFolder(root, pairs_file=tmp_path / "pairs.csv")
    dataset = KeypointFolder(root, pairs_file=tmp_path / "pairs.csv", keep_going=True)
    assert named(dataset) == [("a", "c")]
    assert [problem.remedy.split(";")[0] for problem in dataset.problems] == [
        "a pair of cat and cup",
        "one picture twice",
        "listed twice",
    ]


def test_copies_share_an_id_and_make_no_pair(root: Path) -> None:
    (root / "d.jpg").write_bytes((root / "e.jpg").read_bytes())
    assert len(KeypointFolder(root)) == 6


def test_visible_and_box_columns(root: Path) -> None:
    rows = [
        "a.jpg,cat,nose,1,2,0,0,0,10,5",
        "a.jpg,cat,tail,1,3,1,,,,",
        "c.jpg,cat,tail,4,4,,1,1,4,9",
        "c.jpg,cat,nose,,,1,,,,",
    ]
    write(root, rows[:3], f"{HEADER},visible,x0,y0,x1,y1")
    dataset = KeypointFolder(root, threshold="bbox")
    assert dataset[0].source.visible.tolist() == [False, True]
    assert [threshold_base(pair, dataset.threshold) for pair in dataset] == [8.0, 10.0]
    write(root, ROWS)
    with pytest.raises(InputError, match=r"`bbox` is 'a\.jpg': has no box; give one, or use threshold"):
        KeypointFolder(root, threshold="bbox")


WRONG_HEADERS = {
    "no column 'y'; the columns are image, category, keypoint, x, y": "image,category,keypoint,x",
    "unknown column 'joint'; the columns are image": "image,category,joint,x,y",
    "unknown column 'X'": "image,category,keypoint,X,y",
    "column 'x' twice": "image,category,keypoint,x,x,y",
    "no column 'image'": "",
}


@pytest.mark.parametrize("message", WRONG_HEADERS)
def test_a_wrong_column_is_named(root: Path, message: str) -> None:
    write(root, ROWS, WRONG_HEADERS[message])
    with pytest.raises(InputError, match=message) as error:
        KeypointFolder(root, keep_going=True)
    assert "\n" not in str(error.value)


WRONG_ROWS = {
    "line 12': 'four' is no number": "a.jpg,cat,tail,four,4",
    "line 12': '' is no number": "a.jpg,cat,tail,,4",
    "line 12 has 4 cells where the header has 5": "a.jpg,cat,tail,3",
    r"line 12': second 'nose' of 'a\.jpg'": "a.jpg,cat,nose,3,3",
    "line 12': category 'cup', but 'cat' before": "a.jpg,cup,nose,3,3",
    r"line 12': image '\.\./f\.jpg' is no path below": "../f.jpg,cat,nose,3,3",
    "line 12': no category or no name": "a.jpg,cat,,3,3",
    r"f\.jpg': no such file": "f.jpg,cat,nose,3,3",
    r"'g\.jpg': keypoint \(17, 3\) outside the 16x12 image": "g.jpg,cat,nose,17,3",
    r"g\.jpg': no image or a damaged one": "g.jpg,cat,nose,3,3",
}


@pytest.mark.parametrize("message", WRONG_ROWS)
def test_a_bad_row_is_named_and_the_others_stay(root: Path, message: str) -> None:
    (root / "g.jpg").write_bytes(b"" if "damaged" in message else (root / "a.jpg").read_bytes())
    write(root, [*ROWS, WRONG_ROWS[message]])
    with pytest.raises(InputError, match=message):
        KeypointFolder(root)
    dataset = KeypointFolder(root, keep_going=True)
    assert len(dataset) == 8
    assert len(dataset.problems) == 1
    assert re.search(message, str(dataset.problems[0]))


def test_bad_boxes_and_flags(root: Path) -> None:
    header = f"{HEADER},visible,x0,y0,x1,y1"
    rows = ["a.jpg,cat,nose,1,2,,,,,", "c.jpg,cat,nose,1,2,,,,,"]
    cases = {
        "empty box of 0 x 4 pixels": "d.jpg,cat,nose,1,1,1,2,2,2,6",
        "visible is '2'; use 0 or 1": "d.jpg,cat,nose,1,1,2,,,,",
        "'' is no number": "d.jpg,cat,nose,1,1,1,2,2,2,",
        r"another box of 'd\.jpg' than before": "d.jpg,cat,nose,1,1,1,1,1,2,2\nd.jpg,cat,tail,1,1,1,1,1,2,3",
    }
    for message, row in cases.items():
        write(root, [*rows, row], header)
        with pytest.raises(InputError, match=message):
            KeypointFolder(root)


def test_names_in_another_encoding(root: Path) -> None:
    (root / "keypoints.csv").write_bytes("\n".join([HEADER, *ROWS[:3], "é.jpg,cat,nose,1,1"]).encode("latin-1"))
    with pytest.raises(InputError, match=r"keypoints\.csv': line 5 is not UTF-8; save the file as UTF-8"):
        KeypointFolder(root)
    Image.new("RGB", (16, 12)).save(root / "é.jpg")
    write(root, [*ROWS, "é.jpg,cat,nose,1,1"])
    assert len(KeypointFolder(root)) == 8 + 4
    # The byte order mark of spreadsheet programs.
    (root / "keypoints.csv").write_bytes(b"\xef\xbb\xbf" + (root / "keypoints.csv").read_bytes())
    assert len(KeypointFolder(root)) == 8 + 4


def test_missing_files_and_wrong_arguments(root: Path) -> None:
    cases: list[tuple[str, Path, dict[str, Any]]] = [
        ("no such folder", root / "nowhere", {}),
        ("no such file", root, {"annotations": "other.csv"}),
        (r"use a \.csv or \.json file", root, {"annotations": "a.jpg"}),
        ("`threshold` is 'box'", root, {"threshold": "box"}),
        ("`min_visible` is 3: no two of 5 images of a category share 3", root, {"min_visible": 3}),
        ("`num_pairs` is 0", root, {"num_pairs": 0}),
    ]
    for message, folder, arguments in cases:
        with pytest.raises(InputError, match=message):
            KeypointFolder(folder, **arguments)


def as_json() -> dict[str, Any]:
    """The table of this file as JSON."""
    images: dict[str, dict[str, Any]] = {}
    for row in ROWS:
        file, category, name, x, y = row.split(",")
        image = images.setdefault(file, {"file": file, "category": category, "keypoints": {}})
        image["keypoints"][name] = None if x in ("", "nan") else [float(x), float(y)]
    names = {"cat": {"names": ["left_eye", "right_eye", "nose"]}, "cup": {"names": ["handle"]}}
    return {"keypoints": names, "images": list(images.values())}


def test_json_says_the_same_as_a_table(root: Path) -> None:
    content = as_json()
    jsonschema.validate(content, SCHEMA)
    (root / "keypoints.json").write_text(json.dumps(content))
    dataset, table = KeypointFolder(root, "keypoints.json"), KeypointFolder(root)
    assert dataset.pairs_sha256 == table.pairs_sha256
    for one, other in zip(dataset, table, strict=True):
        assert one.source.keypoints.tolist() == other.source.keypoints.tolist()
        assert one.visible.tolist() == other.visible.tolist()
    content["keypoints"]["cat"]["groups"] = [["nose", "left_eye"]]
    content["images"][0]["box"] = [0, 0, 5, 6]
    jsonschema.validate(content, SCHEMA)
    (root / "keypoints.json").write_text(json.dumps(content))
    dataset = KeypointFolder(root, "keypoints.json")
    assert dataset.keypoint_groups("cat") == ((2, 0),)
    assert dataset[0].source.bbox.tolist() == [0, 0, 5, 6]


def change(content: dict[str, Any], path: list[Any], value: Any) -> None:
    for step in path[:-1]:
        content = content[step]
    if value is None and path[-1] != "nose":
        del content[path[-1]]
    else:
        content[path[-1]] = value


BAD_JSON: dict[str, tuple[list[Any], Any]] = {
    "no field 'images'": (["images"], None),
    "unknown field 'note'": (["note"], 1),
    "keypoints is no object or images no list": (["images"], {}),
    "names must be a list of different texts": (["keypoints", "cat", "names"], ["nose", "nose"]),
    "groups must list two or more": (["keypoints", "cat", "groups"], [["nose"]]),
    "no field 'names'": (["keypoints", "cup", "names"], None),
    "image 0': no field 'file'": (["images", 0, "file"], None),
    "image 1': unknown field 'size'": (["images", 1, "size"], 3),
    "image 2': no object": (["images", 2], "c.jpg"),
    r"image 0': \[1\] must be 2 numbers": (["images", 0, "keypoints", "nose"], [1]),
    "image 0': True must be 2 numbers": (["images", 0, "keypoints", "nose"], True),
    r"image 3': \[1, 2, 3\] must be 4 numbers": (["images", 3, "box"], [1, 2, 3]),
    "image 0': keypoints must be an object": (["images", 0, "keypoints"], []),
    "image 0': category 7 is not in keypoints": (["images", 0, "category"], 7),
    "image 0': image '' is no path": (["images", 0, "file"], ""),
}


@pytest.mark.parametrize("message", BAD_JSON)
def test_reader_and_schema_refuse_the_same(root: Path, message: str) -> None:
    content = as_json()
    change(content, *BAD_JSON[message])
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(content)
    (root / "keypoints.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        KeypointFolder(root, "keypoints.json")
    if "image " in message:
        assert len(KeypointFolder(root, "keypoints.json", keep_going=True).problems) == 1


BEYOND_SCHEMA: dict[str, tuple[list[Any], Any]] = {
    "image 0': keypoint 'ear' is not one of cat": (["images", 0, "keypoints", "ear"], [1, 1]),
    "image 0': category 'dog' is not in keypoints": (["images", 0, "category"], "dog"),
    r"image 2': second 'a\.jpg'": (["images", 2, "file"], "a.jpg"),
    "groups must list two or more names of the category": (["keypoints", "cat", "groups"], [["nose", "ear"]]),
}


@pytest.mark.parametrize("message", BEYOND_SCHEMA)
def test_what_a_schema_cannot_see(root: Path, message: str) -> None:
    content = as_json()
    change(content, *BEYOND_SCHEMA[message])
    jsonschema.validate(content, SCHEMA)
    (root / "keypoints.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        KeypointFolder(root, "keypoints.json")


def test_examples_of_the_documentation_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    table, content = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("csv", "json"))
    (tmp_path / "more").mkdir()
    for grey, name in enumerate(("tom.jpg", "more/kitty.jpg")):
        Image.new("L", (640, 480), 90 * grey).save(tmp_path / name)
    (tmp_path / "keypoints.csv").write_text(table)
    pair = KeypointFolder(tmp_path)[0]
    assert pair.source.bbox.tolist() == [40, 60, 505, 470]
    assert pair.visible.tolist() == [False, True]
    jsonschema.validate(json.loads(content), SCHEMA)
    (tmp_path / "keypoints.json").write_text(content)
    with pytest.raises(InputError, match="no two of 1 images"):
        KeypointFolder(tmp_path, "keypoints.json")
