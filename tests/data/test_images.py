"""Pools of single images."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data.images import ImagePool, ImagePoolsModule, MixedBatches, build_array, centre_square
from ditf_probe.data.synthetic import CATEGORIES, draw_image
from ditf_probe.errors import InputError


def ramp(count: int, size: int) -> ImagePool:
    plane = np.arange(size, dtype=np.uint8)[None, None, None].repeat(size, 2).repeat(3, 1).repeat(count, 0)
    return ImagePool(plane, np.arange(count, dtype=np.int64))


def test_crops_are_windows_of_their_image() -> None:
    crops, labels = ramp(5, 12).sample(64, 8, np.random.default_rng(0))
    assert crops.shape == (64, 3, 8, 8)
    assert set(labels) == set(range(5))
    starts = crops[:, 0, 0, 0]
    assert set(starts) == {0, 1, 2, 3, 4}
    assert np.array_equal(crops[:, 0, 0], starts[:, None] + np.arange(8))


def test_only_flipping_pools_are_mirrored() -> None:
    pool = ramp(1, 8)
    plain = pool.sample(32, 8, np.random.default_rng(0))[0][:, 0, 0, 0]
    mirrored = ImagePool(pool.images, pool.labels, flip=True).sample(32, 8, np.random.default_rng(0))[0][:, 0, 0, 0]
    assert set(plain) == {0}
    assert set(mirrored) == {0, 7}


def test_shares_and_seeds() -> None:
    pools = [ramp(4, 8), ImagePool(np.full((1, 3, 8, 8), 200, np.uint8), np.array([9]))]
    stream = MixedBatches(pools, [0.7, 0.3], 50, 8, [0, 1])
    labels = torch.cat([batch[1] for batch in islice(stream, 40)])
    assert abs((labels == 9).float().mean() - 0.3) < 0.04
    first = next(iter(stream))[0]
    assert torch.equal(first, next(iter(stream))[0])
    assert not torch.equal(first, next(iter(MixedBatches(pools, [0.7, 0.3], 50, 8, [0, 2])))[0])


def test_array_is_made_once_and_again_for_other_contents(tmp_path: Path) -> None:
    calls: list[int] = []

    def make(index: int) -> np.ndarray:
        calls.append(index)
        return np.full((3, 4, 4), index, np.uint8)

    for facts in ({"v": 1}, {"v": 1}, {"v": 2}):
        array = build_array(tmp_path / "a.npy", facts, 3, 4, make)
        assert array[2].max() == 2
    assert calls == [0, 1, 2, 0, 1, 2]


def test_killed_while_building_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    def broken(index: int) -> np.ndarray:
        if index == 2:
            raise KeyboardInterrupt
        return np.zeros((3, 4, 4), np.uint8)

    with pytest.raises(KeyboardInterrupt):
        build_array(tmp_path / "a.npy", {}, 3, 4, broken)
    assert not (tmp_path / "a.npy").exists()
    array = build_array(tmp_path / "a.npy", {}, 3, 4, lambda i: np.full((3, 4, 4), 5, np.uint8))
    assert (array == 5).all()


def test_centre_square() -> None:
    image = torch.zeros(3, 8, 16, dtype=torch.uint8)
    image[:, :, 4:12] = 100
    assert (centre_square(image, 8) == 100).all()


def test_module_builds_pools_with_named_classes(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "photos" / name / "0.png")
    sizes = {"num_drawn": 9, "image_size": 16, "batch_size": 6, "num_val": 4}
    module = ImagePoolsModule(tmp_path / "photos", tmp_path / "cache", **sizes)
    module.prepare_data()
    module.setup("fit")
    assert module.class_names == (*CATEGORIES, "photo/ant", "photo/bee")
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (6, 3, 16, 16)
    assert labels.max() < len(module.class_names)
    assert np.array_equal(module.pools[0].images[8], draw_image("train", 8, 16)[0])
    assert module.pools[1].labels.tolist() == [len(CATEGORIES), len(CATEGORIES) + 1]
    assert next(iter(module.val_dataloader()))[0].shape == (4, 3, 16, 16)


@pytest.mark.parametrize("bad", [{"drawn_share": 0.0}, {"num_drawn": 0}, {"photos": Path("nowhere")}])
def test_bad_arguments(bad: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        ImagePoolsModule(**{"cache_dir": tmp_path, "num_drawn": 2, "image_size": 16, **bad}).setup()
