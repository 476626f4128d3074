"""Warped photos: keypoints must be exact with respect to the pixels that are rendered."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data import WarpedPhotos
from ditf_probe.data.pairs import PairDataset
from ditf_probe.data.photos import BUILTIN_PHOTOS
from ditf_probe.errors import InputError


def ramps(folder: Path, count: int = 1, size: tuple[int, int] = (120, 90)) -> Path:
    """Photos whose red is proportional to x and green to y, with a texture in blue."""
    folder.mkdir()
    for i in range(count):
        xs, ys = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        blue = np.random.default_rng(i).integers(0, 256, (size[1] // 6 + 1, size[0] // 6 + 1)).repeat(6, 0).repeat(6, 1)
        pixels = np.stack([2 * xs, 2 * ys, blue[: size[1], : size[0]]], axis=-1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def test_keypoints_are_exact_in_the_rendered_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ditf_probe.data.warped.change_colours", lambda view, rng: view)
    dataset = WarpedPhotos(ramps(tmp_path / "x"), num_pairs=6, image_size=120)
    gaps = []
    for pair in dataset:
        places = []
        for side in (pair.source, pair.target):
            image = dataset.image(side.image_id)[:2].double()[None]
            assert image.shape[2:] == side.size == (90, 120)
            # Red and green say where in the photo a keypoint is: bilinear reading at the keypoint.
            grid = side.keypoints.double() / torch.tensor([119.0, 89.0]) * 2 - 1
            read = torch.nn.functional.grid_sample(image, grid[None, None], align_corners=True)
            places.append(read[0, :, 0].T / 2)
        gaps.append((places[0] - places[1]).norm(dim=1))
    # Half a grey level of rounding is a quarter of a pixel of the ramp; curvature adds little.
    assert torch.cat(gaps).max() < 0.5
    assert torch.cat(gaps).median() < 0.15
    assert len(torch.cat(gaps)) > 60


def test_keypoints_lie_inside_both_views_and_apart() -> None:
    dataset = WarpedPhotos(num_pairs=10, image_size=128, num_keypoints=12)
    for pair in dataset:
        assert 6 <= len(pair.visible) <= 12
        assert pair.visible.all()
        for side in (pair.source, pair.target):
            height, width = side.size
            assert max(height, width) == 128
            assert side.keypoints.dtype == torch.float32
            assert ((side.keypoints >= 0) & (side.keypoints <= torch.tensor([width - 1, height - 1]))).all()
            assert side.bbox.tolist() == [0, 0, width - 1, height - 1]
        gaps = torch.cdist(pair.target.keypoints, pair.target.keypoints) + 1e3 * torch.eye(len(pair.visible))
        assert gaps.min() > 2


def test_same_arguments_give_the_same_pairs() -> None:
    first, second = WarpedPhotos(num_pairs=6, image_size=96), WarpedPhotos(num_pairs=9, image_size=96)
    pair = first[4]
    # Drawn in another order, in a longer list.
    again = [second[8], second[4]][1]
    assert torch.equal(pair.source.keypoints, again.source.keypoints)
    assert torch.equal(pair.target.keypoints, again.target.keypoints)
    assert pair.source.image_id == again.source.image_id
    assert torch.equal(first.image(pair.target.image_id), second.image(pair.target.image_id))


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "train"}, {"strength": 0.5}, {"image_size": 64}])
def test_ids_differ_where_pixels_differ(change: dict) -> None:
    usual = {"num_pairs": 1, "image_size": 96, "seed": 0, "split": "all", "strength": 1.0}
    one, other = WarpedPhotos(**usual), WarpedPhotos(**usual | change)
    a, b = one[0].target.image_id, other[0].target.image_id
    assert a != b
    assert one.image(a).shape != other.image(b).shape or not torch.equal(one.image(a), other.image(b))
    with pytest.raises(KeyError):
        one.image(b)


def test_units_are_photos_and_splits_share_none(tmp_path: Path) -> None:
    dataset = WarpedPhotos(num_pairs=7, image_size=64)
    assert [dataset[i].category for i in range(7)] == [
        name.split(".")[0] for name in (*BUILTIN_PHOTOS, *BUILTIN_PHOTOS[:2])
    ]
    assert len({dataset[i].unit for i in range(7)}) == 5
    root = ramps(tmp_path / "x", 10)
    units = {
        split: {pair.unit for pair in WarpedPhotos(root, num_pairs=10, image_size=120, split=split)}
        for split in ("train", "val", "test")
    }
    assert [len(units[split]) for split in ("train", "val", "test")] == [6, 2, 2]
    assert len(units["train"] | units["val"] | units["test"]) == 10


def test_strength_moves_keypoints() -> None:
    def movement(strength: float) -> float:
        dataset = WarpedPhotos(num_pairs=10, image_size=96, strength=strength)
        return float(torch.cat([(p.source.keypoints - p.target.keypoints).norm(dim=1) for p in dataset]).mean())

    weak, usual = movement(0.1), movement(1.0)
    assert weak < 0.08 * 96
    # The same relative position must not be the answer: a fifth of the view is twice the usual threshold.
    assert usual > 0.2 * 96


def test_same_position_is_no_answer() -> None:
    dataset = WarpedPhotos(num_pairs=25, image_size=128)
    right = [(p.source.keypoints - p.target.keypoints).norm(dim=1) <= 0.1 * max(p.target.size) for p in dataset]
    assert torch.cat(right).float().mean() < 0.2


def test_pairs_end(tmp_path: Path) -> None:
    dataset = WarpedPhotos(num_pairs=2, image_size=64)
    assert len(dataset) == len(list(dataset)) == 2
    for index in (2, -1):
        with pytest.raises(IndexError):
            dataset[index]
    assert len(dataset.image_ids()) == 4


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"num_pairs": -1}, "num_pairs"),
        ({"image_size": 8}, "image_size"),
        ({"num_keypoints": 1}, "num_keypoints"),
        ({"seed": -1}, "seed"),
        ({"strength": 0.0}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"split": "dev"}, "split"),
        ({"root": "/nowhere"}, "root"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, culprit: str) -> None:
    with pytest.raises(InputError, match=f"`{culprit}` is "):
        WarpedPhotos(**arguments)


def test_unusable_photos_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "flat.png")
    dataset = WarpedPhotos(tmp_path, num_pairs=1)
    with pytest.raises(InputError, match=r"flat\.png.*texture"):
        dataset[0]
    with pytest.raises(InputError, match=r"`split` is 'test'"):
        WarpedPhotos(tmp_path, split="test")
    Image.new("RGB", (64, 8), "red").save(tmp_path / "flat.png")
    with pytest.raises(InputError, match=r"flat\.png.*too small"):
        WarpedPhotos(tmp_path, num_pairs=1, image_size=65)[0]


def test_sizes_need_no_drawing_and_equal_those_of_the_pairs() -> None:
    pairs = WarpedPhotos(num_pairs=3, image_size=40)
    sizes, ids = pairs.image_sizes(), pairs.image_ids()
    assert not pairs._drawn
    assert list(sizes.items()) == list(PairDataset.image_sizes(pairs).items())
    assert ids == PairDataset.image_ids(pairs)
