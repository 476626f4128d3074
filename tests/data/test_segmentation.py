"""Images with a class for every pixel: folders, ADE20K's layout, drawings, and damaged files."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.commands import main
from ditf_probe.data.drawing.raster import rasterise_mask
from ditf_probe.data.drawn_masks import DrawnMasks
from ditf_probe.data.segmentation import ADE20K, IGNORE, MaskFolder
from ditf_probe.data.synthetic import CATEGORIES, single_scene
from ditf_probe.errors import InputError


def write(path: Path, values: Any, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    if mode == "P":
        image.putpalette([i for value in range(256) for i in (value, 255 - value, 7)])
    image.save(path)
    return path


def tree(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a/one", "b/two"):
        write(root / "images" / f"{name}.jpg", rng.integers(0, 256, (6, 8, 3)))
        write(root / "masks" / f"{name}.png", rng.integers(0, 3, (6, 8)))
    return root


def folder(root: Path, **options: Any) -> MaskFolder:
    return MaskFolder(root, **({"classes": 3} | options))


def test_images_and_masks_in_order(tmp_path: Path) -> None:
    found = folder(tree(tmp_path))
    assert [found[i].image_id for i in range(2)] == ["masks/a/one.jpg", "masks/b/two.jpg"]
    assert found.image_sizes() == {"masks/a/one.jpg": (6, 8), "masks/b/two.jpg": (6, 8)}
    assert found.image("masks/b/two.jpg").shape == (3, 6, 8)
    expected = np.asarray(Image.open(tmp_path / "masks/b/two.png"))
    assert torch.equal(found.mask(1), torch.from_numpy(expected.copy()))
    assert len(found.files()) == 4
    assert found.counts() == {"images": 2, "classes": 3}
    with pytest.raises(IndexError):
        found[2]
    with pytest.raises(InputError, match="image_id"):
        found.image("masks/b/three.jpg")


def test_first_value_and_ignored_ones(tmp_path: Path) -> None:
    write(tmp_path / "images/a.png", np.zeros((1, 4, 3)))
    write(tmp_path / "masks/a.png", [[0, 1, 2, 9]])
    found = folder(tmp_path, classes=["x", "y"], first_value=1, ignore=[9])
    assert found.mask(0).tolist() == [[IGNORE, 0, 1, IGNORE]]


def test_a_palette_holds_classes_and_not_colours(tmp_path: Path) -> None:
    write(tmp_path / "images/a.png", np.zeros((1, 3, 3)))
    write(tmp_path / "masks/a.png", [[0, 2, 1]], mode="P")
    assert folder(tmp_path).mask(0).tolist() == [[0, 2, 1]]


def test_unknown_values(tmp_path: Path) -> None:
    write(tree(tmp_path) / "masks/b/two.png", np.full((6, 8), 7))
    found = folder(tmp_path)
    with pytest.raises(InputError, match=r"two\.png.*unknown value 7: classes are 0 to 2"):
        found.mask(1)
    with pytest.raises(InputError, match="unknown value 7"):
        folder(tmp_path, check_masks=True)
    kept = folder(tmp_path, check_masks=True, keep_going=True)
    assert len(kept) == 1
    assert "unknown value 7" in str(kept.problems[0])


def damage(root: Path, kind: str) -> None:
    mask, image = root / "masks/a/one.png", root / "images/a/one.jpg"
    if kind == "missing mask":
        mask.unlink()
    elif kind == "other size":
        write(mask, np.zeros((5, 8)))
    elif kind == "colours":
        write(mask, np.zeros((6, 8, 3)))
    elif kind == "cut mask":
        mask.write_bytes(mask.read_bytes()[:40])
    elif kind == "no image":
        image.write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing mask", "has no mask a/one.png"),
        ("other size", r"one\.png.*one class per pixel"),
        ("colours", "is of mode RGB"),
        ("cut mask", "damaged"),
        ("no image", "damaged"),
    ],
)
def test_one_damaged_record_of_two(tmp_path: Path, kind: str, words: str) -> None:
    damage(tree(tmp_path), kind)
    with pytest.raises(InputError, match=words) as caught:
        folder(tmp_path, check_masks=True)
    assert "\n" not in str(caught.value)
    kept = folder(tmp_path, check_masks=True, keep_going=True)
    assert [kept[i].image_id for i in range(len(kept))] == ["masks/b/two.jpg"]
    assert kept.mask(0).shape == (6, 8)
    assert len(kept.problems) == 1


def ade(root: Path, classes: int = 150) -> Path:
    inner = root / "ADEChallengeData2016"
    for split in ("training", "validation"):
        write(inner / f"images/{split}/ADE_{split}_00000001.jpg", np.zeros((4, 5, 3)))
        values = np.zeros((4, 5))
        values[1, 2], values[3, 4] = 1, 150
        write(inner / f"annotations/{split}/ADE_{split}_00000001.png", values)
    head = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    rows = [f"{i + 1}\t0.1\t10\t1\t0\tthing {i}, synonym" for i in range(classes)]
    (inner / "objectInfo150.txt").write_text(head + "\n".join(rows) + "\n")
    return root


def test_ade20k(tmp_path: Path) -> None:
    found = ADE20K(ade(tmp_path), "training")
    assert (len(found), len(found.class_names), found.class_names[149]) == (1, 150, "thing 149")
    expected = torch.full((4, 5), IGNORE, dtype=torch.uint8)
    expected[1, 2], expected[3, 4] = 0, 149
    assert torch.equal(found.mask(0), expected)
    assert len(ADE20K(tmp_path / "ADEChallengeData2016")) == 1


def test_ade20k_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split"):
        ADE20K(ade(tmp_path), "test")
    ade(tmp_path, classes=149)
    with pytest.raises(InputError, match="lists 149 classes"):
        ADE20K(tmp_path)


def test_drawn_masks_agree_with_the_scene() -> None:
    dataset = DrawnMasks("val", num_images=24, image_size=48)
    for index in range(len(dataset)):
        scene = single_scene("val", index, 48)
        mask = dataset.mask(index)
        label = index % len(CATEGORIES) + 1
        assert set(mask.unique().tolist()) == {0, label}
        places = np.round(scene.keypoints * 48 - 0.5).astype(int).clip(0, 47)
        on_object = [bool(mask[y, x] == label) for (x, y), seen in zip(places, scene.visible, strict=True) if seen]
        assert np.mean(on_object) > 0.5  # keypoints at tips round to the pixel beside them
        x0, y0, x1, y1 = (np.array(scene.bbox) * 48 - 0.5).tolist()
        rows, columns = np.nonzero(mask.numpy())
        assert rows.min() >= y0 - 1
        assert rows.max() <= y1 + 1
        assert columns.min() >= x0 - 1
        assert columns.max() <= x1 + 1


def test_occluders_are_background() -> None:
    hidden = 0
    for index in range(40):
        scene = single_scene("train", index, 64)
        with_occluders = rasterise_mask(scene, 64)
        scene.shapes, scene.occluders = scene.shapes[: len(scene.shapes) - scene.occluders], 0
        alone = rasterise_mask(scene, 64)
        assert not (with_occluders & ~alone).any()
        hidden += int((alone & ~with_occluders).sum())
    assert hidden > 100


def test_the_picture_of_a_mask_is_drawn_like_those_of_pretraining() -> None:
    dataset = DrawnMasks("test", num_images=2, image_size=32)
    assert dataset.image(dataset[1].image_id).shape == (3, 32, 32)
    with pytest.raises(InputError, match="image_id"):
        dataset.image("drawn/seed0/test/32/000002")
    with pytest.raises(InputError, match="num_images"):
        DrawnMasks(num_images=0)
    with pytest.raises(InputError, match="image_size"):
        DrawnMasks(image_size=8)


def test_verify_names_every_unknown_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path)
    main(["verify", "mask-folder", str(tmp_path), "--set", "classes=3"])
    assert "files: 4, images: 2, classes: 3; problems: 0" in capsys.readouterr().out
    for name in ("a/one", "b/two"):
        write(tmp_path / "masks" / f"{name}.png", np.full((6, 8), 9))
    with pytest.raises(SystemExit) as end:
        main(["verify", "mask-folder", str(tmp_path), "--set", "classes=3", "--keep-going"])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [next(name for name in ("one.png", "two.png") if name in line) for line in lines] == ["one.png", "two.png"]


def test_official_counts_of_ade20k() -> None:
    root = os.environ.get("DITF_PROBE_ADE20K")
    if root is None:
        pytest.skip("needs ADE20K: set DITF_PROBE_ADE20K to its folder ADEChallengeData2016")
    assert (len(ADE20K(root, "training")), len(ADE20K(root, "validation"))) == (20_210, 2_000)
