"""Pair folders of GeoAware-SC, written here as its notebook writes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data.ap10k_geoaware import AP10KGeoAware
from ditf_probe.data.pairs import threshold_base
from ditf_probe.errors import InputError

FLAGS = [2] * 10 + [1] * 2 + [0] * 5


def write_animal(root: Path, family: str, species: str, number: int, **changes: Any) -> str:
    """An image and its merged record; returns the path that pairs name."""
    place = f"{family}/{species}/{number:012d}"
    points = [[number, 5 + row] if flag else [0, 0] for row, flag in enumerate(FLAGS)]
    merged: dict[str, Any] = {
        "id": number, "image_id": number, "category_id": 1, "bbox": [1, 2, 8, 12], "num_keypoints": 12,
        "keypoints": [x for point, flag in zip(points, FLAGS, strict=True) for x in (*point, flag)],
        "file_name": f"{number:012d}.jpg", "width": 32, "height": 32,
        "name": species, "supercategory": family,
    } | changes  # fmt: skip
    for folder in ("ImageAnnotation", "JPEGImages"):
        (root / folder / place).parent.mkdir(parents=True, exist_ok=True)
    (root / "ImageAnnotation" / f"{place}.json").write_text(json.dumps(merged))
    Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(root / "JPEGImages" / f"{place}.jpg")
    return f"data/ap-10k/ImageAnnotation/{place}.json"


def write_pair(root: Path, folder: str, source: str, target: str, category: str) -> Path:
    (root / "PairAnnotation" / folder).mkdir(parents=True, exist_ok=True)
    file = root / "PairAnnotation" / folder / f"{Path(source).stem}-{Path(target).stem}:{category}.json"
    file.write_text(json.dumps({"src_json_path": source, "trg_json_path": target}, indent=4))
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    cow, ox, yak = (write_animal(tmp_path, "Bovidae", "cow", n) for n in (3, 1, 2))
    fox = write_animal(tmp_path, "Canidae", "fox", 9)
    zebra, foal = (write_animal(tmp_path, "Equidae", "zebra", n) for n in (4, 5))
    write_pair(tmp_path, "test", zebra, foal, "zebra")
    write_pair(tmp_path, "test", cow, ox, "cow")
    write_pair(tmp_path, "test", ox, yak, "cow")
    write_pair(tmp_path, "test_cross_family", cow, fox, "all")
    write_pair(tmp_path, "trn", cow, yak, "cow")
    return tmp_path


def numbers(dataset: AP10KGeoAware) -> list[tuple[int, int]]:
    return [(int(p.source.image_id[6:18]), int(p.target.image_id[6:18])) for p in dataset]


def test_pairs_come_by_category_and_name(root: Path) -> None:
    dataset = AP10KGeoAware(root)
    assert numbers(dataset) == [(1, 2), (3, 1), (4, 5)]
    assert [pair.category for pair in dataset] == ["cow", "cow", "zebra"]
    assert numbers(AP10KGeoAware(root, split="train")) == [(3, 2)]
    family = AP10KGeoAware(root, kind="cross-family")
    assert numbers(family) == [(3, 9)]
    assert family[0].attributes == {"kind": "cross-family", "family": "Bovidae-Canidae", "species": "cow-fox"}
    assert threshold_base(family[0], family.threshold) == 12.0
    assert (family.image(family[0].target.image_id).float().mean() - 9).abs() < 1


def test_occluded_keypoints_are_halved_as_there(root: Path) -> None:
    side = AP10KGeoAware(root)[2].source
    assert side.visible.tolist() == [True] * 12 + [False] * 5
    # A square image: halved in original pixels, without any padding.
    assert side.keypoints[9:12].tolist() == [[4, 14], [2, 7.5], [2, 8]]
    clear = AP10KGeoAware(root, visibility="clear")[2].source
    assert clear.visible.sum() == 10
    labelled = AP10KGeoAware(root, visibility="labelled")[2].source
    assert labelled.keypoints[11].tolist() == [4, 16]
    assert torch.equal(labelled.visible, side.visible)


def test_images_may_still_be_in_the_official_folder(root: Path) -> None:
    (root / "data").mkdir()
    for file in (root / "JPEGImages").rglob("*.jpg"):
        file.rename(root / "data" / file.name)
    dataset = AP10KGeoAware(root)
    assert {file.parent.name for file in dataset.files()} == {"data"}
    assert dataset.image(dataset[0].source.image_id).shape == (3, 32, 32)


def test_bad_records_are_named_and_the_others_stay(root: Path) -> None:
    with pytest.raises(InputError, match="val_cross_species': no such folder or no pairs in it"):
        AP10KGeoAware(root, split="val", kind="cross-species")
    test = root / "PairAnnotation" / "test"
    (test / "000000000004-000000000005:zebra.json").write_text('{"src_json_path": "data/ap-10k/x.json"}')
    (root / "ImageAnnotation" / "Bovidae" / "cow" / "000000000003.json").unlink()
    with pytest.raises(InputError):
        AP10KGeoAware(root)
    dataset = AP10KGeoAware(root, keep_going=True)
    assert numbers(dataset) == [(1, 2)]
    lines = "\n".join(map(str, dataset.problems))
    assert "000000000003.json': no such file" in lines
    assert "src_json_path names no ImageAnnotation/FAMILY/SPECIES/NUMBER.json" in lines
    assert len(dataset.problems) == 2


@pytest.mark.parametrize("path", ["ImageAnnotation/../../etc/x.json", "ImageAnnotation/a/x.json", "x/y/z.json"])
def test_paths_stay_inside_the_folder(root: Path, path: str) -> None:
    file = root / "PairAnnotation" / "trn" / "000000000003-000000000002:cow.json"
    file.write_text(json.dumps({"src_json_path": path, "trg_json_path": path}))
    with pytest.raises(InputError, match="src_json_path names no"):
        AP10KGeoAware(root, split="train")
