"""The AP-10K benchmark on a miniature of the official tree written here, and on the real slice where it is present."""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data import ap10k_pairs
from ditf_probe.data.ap10k import AP10K, GROUPS, KEYPOINTS, halved_keypoints
from ditf_probe.data.ap10k_pairs import form_pairs, split_members
from ditf_probe.data.instances import Instance
from ditf_probe.data.pairs import Side, threshold_base
from ditf_probe.errors import InputError

SPECIES = {1: ("antelope", "Bovidae"), 2: ("cow", "Bovidae"), 3: ("fox", "Canidae"), 4: ("zebra", "Equidae")}
WIDTH, HEIGHT = 40, 24


def categories() -> list[dict[str, Any]]:
    return [
        {"id": number, "name": name, "supercategory": family, "keypoints": list(KEYPOINTS)}
        for number, (name, family) in SPECIES.items()
    ]


def record(number: int, image: int, species: int, flags: Sequence[int], **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    points = np.stack([rng.integers(0, WIDTH, 17), rng.integers(0, HEIGHT, 17), np.array(flags)], axis=1)
    points[points[:, 2] == 0] = 0
    known = {"id": number, "image_id": image, "category_id": species, "bbox": [2, 3, 20, 10], "area": 200, "iscrowd": 0}
    return known | {"num_keypoints": int((points[:, 2] > 0).sum()), "keypoints": points.ravel().tolist()} | changes


def write_tree(root: Path, records: dict[str, list[dict[str, Any]]], pixels: bool = True) -> Path:
    """`records` holds the annotations of each official file; every image exists."""
    (root / "annotations").mkdir(parents=True)
    (root / "data").mkdir()
    for part, annotations in records.items():
        images = sorted({annotation["image_id"] for annotation in annotations})
        content = {
            "categories": categories(),
            "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": WIDTH, "height": HEIGHT} for i in images],
            "annotations": annotations,
        }
        (root / "annotations" / f"ap10k-{part}-split1.json").write_text(json.dumps(content))
        for i in images:
            grey = np.full((HEIGHT, WIDTH, 3), i % 256, np.uint8)
            file = root / "data" / f"{i:012d}.jpg"
            Image.fromarray(grey).save(file) if pixels else file.touch()
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Antelope has 4 images, cow 2, fox 2, zebra 1; image 2 has a second object."""
    every = [2] * 17
    train = [record(11, 1, 1, every), record(12, 2, 1, every), record(13, 2, 2, every), record(14, 6, 2, every)]
    val = [record(15, 3, 1, [2, 2, 2] + [0] * 14), record(16, 7, 2, every), record(17, 8, 3, every)]
    test = [record(18, 4, 1, [2, 2, 1, 1] + [0] * 13), record(19, 9, 3, every), record(20, 10, 4, [2, 2] + [0] * 15)]
    return write_tree(tmp_path / "ap-10k", {"train": train, "val": val, "test": test})


def names(dataset: AP10K) -> set[frozenset[str]]:
    return {frozenset(str(int(side.image_id[6:18])) for side in (p.source, p.target)) for p in dataset}


def test_pairs_of_a_species_share_three_visible_keypoints(root: Path) -> None:
    dataset = AP10K(root)
    # Image 4 has two clear keypoints only, image 10 too few keypoints at all; image 2 is an antelope, its first object.
    assert names(dataset) == {frozenset(x) for x in (("1", "2"), ("1", "3"), ("2", "3"), ("6", "7"), ("8", "9"))}
    assert [pair.category for pair in dataset] == ["antelope"] * 3 + ["cow", "fox"]
    assert [pair.index for pair in dataset] == list(range(5))
    pair = dataset[3]
    assert pair.attributes == {"kind": "intra-species", "family": "Bovidae", "species": "cow"}
    assert (pair.unit, dataset.unit) == ("cow", "species")
    assert pair.target.bbox.tolist() == [2, 3, 22, 13]
    assert threshold_base(pair, dataset.threshold) == 20.0
    assert dataset.keypoint_names("cow") == KEYPOINTS
    assert dataset.counts() == {"pairs": 5, "images": 7, "keypoints": 17 + 3 + 3 + 17 + 17}
    assert len(dataset.files()) == 7
    assert dataset.image("ap10k/000000000009.jpg").shape == (3, HEIGHT, WIDTH)
    for index in (5, -1):
        with pytest.raises(IndexError):
            dataset[index]


def test_pairs_across_species_and_families(root: Path) -> None:
    species = AP10K(root, kind="cross-species")
    assert names(species) == {frozenset(x) for x in product("123", "67")}
    assert {(p.category, p.unit, p.attributes["species"]) for p in species} == {("Bovidae", "Bovidae", "antelope-cow")}
    families = AP10K(root, kind="cross-family")
    assert names(families) == {frozenset(x) for x in product("12367", "89")}
    assert {(p.category, p.unit) for p in families} == {("animal", "Bovidae-Canidae")}
    with pytest.raises(InputError, match="`split` is 'train': cross-family pairs exist for val and test only"):
        AP10K(root, split="train", kind="cross-family")


def test_occluded_keypoints_count_by_option(root: Path) -> None:
    assert len(AP10K(root, visibility="labelled")) == 8  # image 4 joins: three labelled keypoints in each
    # Weights of image 4 are 1, 1, 0.5, 0.5: three with images 1 and 2, two and a half with image 3.
    dataset = AP10K(root, visibility="geoaware")
    assert names(dataset) - names(AP10K(root)) == {frozenset("14"), frozenset("24")}
    pair = next(p for p in dataset if "000000000004" in p.source.image_id + p.target.image_id)
    side = pair.source if "4.jpg" in pair.source.image_id else pair.target
    stated = torch.tensor(record(18, 4, 1, [2, 2, 1, 1] + [0] * 13)["keypoints"]).reshape(17, 3)
    assert side.visible.sum() == 4
    assert side.keypoints[:2].tolist() == stated[:2, :2].tolist()
    # 40 x 24 becomes 840 x 504 with 168 rows above: y goes to y/2 - 4 (168 / 21 / 2), x to x/2.
    expected = stated[2:4, :2] / 2 - torch.tensor([0.0, 4.0])
    assert torch.allclose(side.keypoints[2:4], expected)


def test_halved_keypoints_follow_the_published_code() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        width, height = (int(x) for x in rng.integers(50, 1500, 2))
        flags = torch.from_numpy(rng.integers(0, 3, 17))
        points = torch.from_numpy(rng.random((17, 2)) * [width, height]).float()
        got = halved_keypoints(points, flags, (height, width))
        scale = 840 / max(width, height)
        x_offset = int((840 - int(np.around(840 * width / height))) / 2) if width < height else 0
        y_offset = int((840 - int(np.around(840 * height / width))) / 2) if height < width else 0
        for (x, y), flag, (u, v) in zip(points.tolist(), flags.tolist(), got.tolist(), strict=True):
            if flag:
                padded = ((x * scale + x_offset) * flag / 2, (y * scale + y_offset) * flag / 2)
                assert (u * scale + x_offset, v * scale + y_offset) == pytest.approx(padded, abs=1e-2)


def test_splits_of_a_species() -> None:
    for count, expected in {10: (0, 0, 10), 30: (0, 0, 30), 41: (0, 11, 30), 50: (0, 20, 30), 75: (25, 20, 30)}.items():
        members = list(range(count))
        parts = [split_members(members, split) for split in ("train", "val", "test")]
        assert tuple(map(len, parts)) == expected
        assert [member for part in parts for member in part] == members


def instance(number: int, species: str, family: str) -> Instance:
    side = Side(f"ap10k/{number}", (9, 9), torch.zeros(17, 2), torch.ones(17, dtype=torch.bool), torch.zeros(4))
    return Instance(str(number), Path(str(number)), species, side, family)


def slow_candidates(
    animals: list[Instance], weights: np.ndarray, split: str, kind: str
) -> dict[str, set[frozenset[int]]]:
    """Every eligible pair by group, with plain loops."""
    rows: dict[str, list[int]] = {}
    for index, animal in enumerate(animals):
        rows.setdefault(animal.category, []).append(index)
    kept = [i for members in rows.values() for i in split_members(members, split)]
    groups: dict[str, set[frozenset[int]]] = {}
    for a, b in combinations(kept, 2):
        one, two = animals[a], animals[b]
        same = (one.family == two.family, one.category == two.category)
        fits = {"intra-species": all(same), "cross-species": same == (True, False), "cross-family": not same[0]}[kind]
        if fits and sum(weights[a][k] * weights[b][k] for k in range(17)) >= 3:
            name = one.category if kind == "intra-species" else "-".join(sorted({one.family, two.family}))
            groups.setdefault(name, set()).add(frozenset((a, b)))
    return groups


@pytest.mark.parametrize(
    ("kind", "split"),
    [("intra-species", "train"), *product(["intra-species", "cross-species", "cross-family"], ["val", "test"])],
)
def test_pairs_are_those_of_plain_loops(kind: str, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ap10k_pairs, "TEST_IMAGES", 4)
    monkeypatch.setattr(ap10k_pairs, "VAL_IMAGES", 3)
    monkeypatch.setattr(ap10k_pairs, "TRAIN_PAIRS_PER_IMAGE", 1)
    limit = {("cross-species", "val"): 5, ("cross-family", "test"): 6}
    monkeypatch.setattr(ap10k_pairs, "LIMITS", limit)
    places = [("ant", "A"), ("ape", "A"), ("asp", "A"), ("bat", "B"), ("cat", "C")]
    for seed in range(30):
        rng = np.random.default_rng(seed)
        animals = [instance(n, *places[rng.integers(5)]) for n in range(int(rng.integers(30, 60)))]
        weights = rng.choice([0, 0.5, 1], (len(animals), 17), p=[0.5, 0.2, 0.3])
        expected = slow_candidates(animals, weights, split, kind)
        found = form_pairs(animals, weights, split, kind, seed).tolist() if expected else []
        assert len({frozenset(pair) for pair in found}) == len(found)
        images = {name: split_members([a for a in animals if a.category == name], "train") for name, _ in places}
        for name, candidates in expected.items():
            most = len(images[name]) if split == "train" else limit.get((kind, split), len(candidates))
            of_group = [pair for pair in found if frozenset(pair) in candidates]
            assert len(of_group) == min(most, len(candidates))
        assert len(found) == sum(frozenset(p) in c for p in found for c in expected.values())
        if kind != "intra-species":
            for a, b in found:
                assert (animals[a].family, animals[a].category) < (animals[b].family, animals[b].category)


def test_draws_depend_on_the_seed_and_on_nothing_else(root: Path, tmp_path: Path) -> None:
    first = AP10K(root)
    copied = tmp_path / "elsewhere"
    (copied / "data").mkdir(parents=True)
    for file in sorted((root / "data").iterdir(), reverse=True):
        shutil.copy(file, copied / "data")
    (copied / "annotations").mkdir()
    for file in (root / "annotations").iterdir():
        content = json.loads(file.read_text())
        # Another order of the records, but not of the objects of one image, of which the first is taken.
        content["images"].reverse()
        content["annotations"].sort(key=lambda found: -found["image_id"])
        (copied / "annotations" / file.name).write_text(json.dumps(content))
    assert AP10K(copied).pairs_sha256 == first.pairs_sha256
    digests = {AP10K(root, seed=seed).pairs_sha256 for seed in range(6)}
    assert len(digests) > 1
    assert AP10K(root, kind="cross-species").pairs_sha256 != first.pairs_sha256


def test_pair_order_is_pinned(root: Path) -> None:
    """Another order or another draw would silently be another benchmark."""
    found = [[int(side.image_id[6:18]) for side in (pair.source, pair.target)] for pair in AP10K(root)]
    pinned = [[2, 1], [2, 3], [1, 3], [7, 6], [8, 9]]
    assert found == pinned
    listed = json.dumps([[f"{n:012d}.jpg" for n in pair] for pair in pinned], separators=(",", ":"))
    assert AP10K(root).pairs_sha256 == hashlib.sha256(listed.encode()).hexdigest()


def test_a_pair_list_is_written_and_read_back(root: Path, tmp_path: Path) -> None:
    dataset = AP10K(root, seed=3)
    path = tmp_path / "pairs.json"
    dataset.write_pairs(path)
    again = AP10K(root, seed=0, pairs_file=path)
    assert again.pairs_sha256 == dataset.pairs_sha256 == json.loads(path.read_text())["sha256"]
    assert [pair.source.image_id for pair in again] == [pair.source.image_id for pair in dataset]
    with pytest.raises(InputError, match="made for kind 'intra-species', not 'cross-species'"):
        AP10K(root, kind="cross-species", pairs_file=path)
    changed = json.loads(path.read_text())
    changed["pairs"].reverse()
    path.write_text(json.dumps(changed))
    with pytest.raises(InputError, match="do not have the SHA-256"):
        AP10K(root, pairs_file=path)
    path.write_text("[1]")
    with pytest.raises(InputError, match="no pair list"):
        AP10K(root, pairs_file=path)
    table = tmp_path / "pairs.csv"
    table.write_text("source,target\n000000000001.jpg,000000000002.jpg\n000000000001.jpg,000000000099.jpg\n")
    with pytest.raises(InputError, match=r"`pairs_file` is '000000000099\.jpg'"):
        AP10K(root, pairs_file=table)
    partly = AP10K(root, pairs_file=table, keep_going=True)
    assert len(partly) == len(partly.problems) == 1


def test_species_and_crowds_can_be_left_out(root: Path, tmp_path: Path) -> None:
    assert {pair.category for pair in AP10K(root, exclude_species=["cow"])} == {"antelope", "fox"}
    with pytest.raises(InputError, match="`exclude_species` is 'bear': no such species; choose from antelope, cow"):
        AP10K(root, exclude_species=["bear"])
    crowds = tmp_path / "crowds.txt"
    crowds.write_text("000000000006\n000000000009\n")
    assert {pair.category for pair in AP10K(root, crowd_list=crowds)} == {"antelope"}
    crowds.write_text("six\n")
    with pytest.raises(InputError, match="'six' is no image number"):
        AP10K(root, crowd_list=crowds)


def test_marked_crowds_are_left_out(tmp_path: Path) -> None:
    annotations = [record(n, n, 1, [2] * 17, iscrowd=int(n == 3)) for n in (1, 2, 3)]
    root = write_tree(tmp_path / "a", {"test": annotations})
    assert len(AP10K(root, parts=["test"])) == 1
    assert len(AP10K(root, parts=["test"], keep_crowd=True)) == 3


def test_bad_records_are_named_and_the_others_stay(tmp_path: Path) -> None:
    far = record(3, 3, 1, [2] * 17)
    far["keypoints"][0] = 41
    bad = {
        "annotation 3": far,
        "empty box": record(4, 4, 1, [2] * 17, bbox=[1, 1, 0, 5]),
        "second annotation with this id": record(1, 5, 1, [2] * 17),
        "image_id 77": record(6, 77, 1, [2] * 17),
        "16 keypoints where antelope has 17": record(7, 7, 1, [2] * 17) | {"keypoints": [1, 1, 2] * 16},
        "flag other than": record(8, 8, 1, [2] * 16 + [3]),
    }
    good = [record(1, 1, 1, [2] * 17), record(2, 2, 1, [2] * 17)]
    root = write_tree(tmp_path / "a", {"test": [*good, *bad.values(), record(10, 10, 1, [2] * 17)]})
    content = json.loads((root / "annotations" / "ap10k-test-split1.json").read_text())
    content["images"] = [image for image in content["images"] if image["id"] != 77]
    (root / "annotations" / "ap10k-test-split1.json").write_text(json.dumps(content))
    (root / "data" / "000000000010.jpg").unlink()
    with pytest.raises(InputError):
        AP10K(root, parts=["test"])
    dataset = AP10K(root, parts=["test"], keep_going=True)
    assert len(dataset) == 1
    lines = [str(problem) for problem in dataset.problems]
    assert len(lines) == len(bad) + 1
    expected = [*list(bad)[1:], r"keypoint \(41, \d+\) outside the 40x24 image", "000000000010.jpg': no such file"]
    for text in expected:
        assert len([line for line in lines if re.search(text, line)]) == 1, text


def test_missing_files_are_named(root: Path, tmp_path: Path) -> None:
    (root / "annotations" / "ap10k-val-split1.json").unlink()
    with pytest.raises(InputError, match=r"ap10k-val-split1\.json': no such file; restore it, or name those"):
        AP10K(root)
    assert len(AP10K(root, keep_going=True).problems) == 1
    assert len(AP10K(root, parts=["train", "test"])) == 1
    (root / "annotations" / "ap10k-test-split1.json").write_bytes(b'{"images": [')
    with pytest.raises(InputError, match=r"ap10k-test-split1\.json': no JSON or cut short"):
        AP10K(root, parts=["train", "test"])
    (root / "annotations" / "ap10k-test-split1.json").write_bytes('{"images": "jaguár"}'.encode("latin-1"))
    with pytest.raises(InputError, match="line 1 is not UTF-8"):
        AP10K(root, parts=["test"])
    (root / "annotations" / "ap10k-test-split1.json").write_text("[]")
    with pytest.raises(InputError, match="no COCO keypoint file"):
        AP10K(root, parts=["test"])


def test_an_image_of_another_size_is_named(root: Path) -> None:
    dataset = AP10K(root)
    Image.new("RGB", (10, 20)).save(root / "data" / "000000000001.jpg")
    with pytest.raises(InputError, match="the image has 10x20 pixels, its annotation says 40x24"):
        dataset.image("ap10k/000000000001.jpg")


def test_real_slice(shared_data: Path) -> None:
    root = shared_data / "ap10k-mini"
    if not root.is_dir():
        pytest.skip("needs AP-10K")
    dataset = AP10K(root, kind="cross-family", parts=["test"])
    assert dataset.counts() == {"pairs": 1, "images": 2, "keypoints": 16}
    pair = dataset[0]
    assert pair.attributes == {"kind": "cross-family", "family": "Bovidae-Felidae", "species": "antelope-jaguar"}
    assert pair.visible.tolist() == [True, False] + [True] * 15
    assert threshold_base(pair, dataset.threshold) == 1092.0
    assert pair.target.keypoints[2].tolist() == [94, 475]
    for side in (pair.source, pair.target):
        assert dataset.image(side.image_id).shape == (3, *side.size)
    for kind in ("intra-species", "cross-species"):
        with pytest.raises(InputError, match="forms no pair: test has images: 2, species: 2, families: 2"):
            AP10K(root, kind=kind, parts=["test"])


def test_groups_name_left_and_right() -> None:
    for group in GROUPS:
        plain = {KEYPOINTS[row].replace("left_", "").replace("right_", "") for row in group}
        sides = [KEYPOINTS[row].split("_")[0] for row in group]
        assert sides.count("left") == sides.count("right")
        assert len(plain) == len(group) // 2


def test_counts_of_the_whole_data_set(shared_data: Path) -> None:
    """Published: 261k, 17k and 36k pairs over the three kinds; another order of the files moves them a little."""
    root = shared_data / "ap-10k"
    if not root.is_dir():
        pytest.skip("needs the whole of AP-10K, which this machine does not have")
    kinds = ("intra-species", "cross-species", "cross-family")
    counts = {
        split: sum(len(AP10K(root, split, kind, "geoaware")) for kind in kinds if split != "train" or kind == kinds[0])
        for split in ("train", "val", "test")
    }
    assert counts == pytest.approx({"train": 261_000, "val": 17_000, "test": 36_000}, rel=0.05)
