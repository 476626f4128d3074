"""Pools of single images."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data import image_pools
from ditf_probe.data.image_pools import ImagePool, MixedBatches, build_array, centre_square, drawn_pool, zoomed
from ditf_probe.data.images import ImagePoolsModule
from ditf_probe.data.synthetic import CATEGORIES, draw_image
from ditf_probe.errors import InputError


def ramp(count: int, size: int, **options: bool) -> ImagePool:
    plane = torch.arange(size, dtype=torch.uint8).expand(count, 3, size, size)
    return ImagePool(plane, torch.arange(count), **options)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crops_are_windows_of_their_image() -> None:
    images = torch.arange(5 * 3 * 12 * 12).reshape(5, 3, 12, 12)
    crops, labels = ImagePool(images, torch.arange(5)).sample(64, 8, seeded())
    assert crops.shape == (64, 3, 8, 8)
    places = set()
    for crop, label in zip(crops, labels.tolist(), strict=True):
        y, x = divmod(int(crop[0, 0, 0]) % 144, 12)
        assert torch.equal(crop, images[label, :, y : y + 8, x : x + 8])
        places.add((label, y, x))
    assert {label for label, _, _ in places} == set(range(5))
    assert {y for _, y, _ in places} == {x for _, _, x in places} == set(range(5))


def test_only_flipping_pools_are_mirrored() -> None:
    plain, mirrored = (ramp(1, 10, flip=flip).sample(64, 8, seeded())[0][:, 0, 0].int() for flip in (False, True))
    assert set(plain[:, 0].tolist()) == {0, 1, 2}
    assert set(mirrored[:, 0].tolist()) == {0, 1, 2, 7, 8, 9}
    assert set((mirrored[:, 1] - mirrored[:, 0]).tolist()) == {-1, 1}


@pytest.mark.parametrize("mirror", [False, True])
def test_zoomed_crops_against_pixel_arithmetic(mirror: bool) -> None:
    """On a ramp a resized crop has the values of its pixels' centres."""
    x, y = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="xy")
    images = torch.stack([10 * x, 10 * y, 0 * x])[None].byte()
    for draws in torch.rand(40, 3, generator=seeded()).double():
        crop = zoomed(images, 8, draws.float()[:, None], torch.tensor([mirror]))[0]
        side = 8 + 16 * draws[0]
        top, left = (24 - side) * draws[1], (24 - side) * draws[2]
        centres = (torch.arange(8) + 0.5) * side / 8 - 0.5
        across = (left + centres).clamp(0, 23) * 10
        expected = torch.stack([across.flip(0) if mirror else across, (top + centres).clamp(0, 23) * 10])
        assert (crop[0, 0] - expected[0]).abs().max() <= 0.51
        assert (crop[1, :, 0] - expected[1]).abs().max() <= 0.51
        assert not crop[2].any()


def test_zooming_pools() -> None:
    pool = ramp(1, 32, zoom=True)
    widths = [int(c[0, 0, -1]) - int(c[0, 0, 0]) for c in pool.sample(200, 16, seeded())[0]]
    assert min(widths) in (15, 16)
    assert max(widths) in (29, 30, 31)


def test_shares_and_seeds() -> None:
    other = ImagePool(torch.full((1, 3, 8, 8), 200, dtype=torch.uint8), torch.tensor([9]))
    pools = [ramp(4, 8), other]
    stream = MixedBatches(pools, [0.7, 0.3], 50, 8, [0, 1])
    labels = torch.cat([batch[1] for batch in islice(stream, 40)])
    assert abs((labels == 9).float().mean() - 0.3) < 0.04
    first = next(iter(stream))[1]
    assert torch.equal(first, next(iter(stream))[1])
    assert not torch.equal(first, next(iter(MixedBatches(pools, [0.7, 0.3], 50, 8, [0, 2])))[1])


def test_many_images_are_made_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = drawn_pool(tmp_path / "alone", "train", 70, 16).images
    monkeypatch.setattr(image_pools, "_IN_PROCESSES_FROM", 70)
    monkeypatch.setattr(image_pools, "cpu_count", lambda: 1)  # each takes seconds to start; two shares have the one
    assert torch.equal(drawn_pool(tmp_path / "together", "train", 70, 16).images, alone)


def test_array_is_made_once_and_again_for_other_contents(tmp_path: Path) -> None:
    calls: list[int] = []

    def make(index: int) -> np.ndarray:
        calls.append(index)
        return np.full((3, 4, 4), index, np.uint8)

    for facts in ({"v": 1}, {"v": 1}, {"v": 2}):
        array = build_array(tmp_path / "a.npy", facts, range(3), 4, make)
        assert array[2].max() == 2
    assert calls == [0, 1, 2, 0, 1, 2]


def test_killed_while_building_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    def broken(index: int) -> np.ndarray:
        if index == 2:
            raise KeyboardInterrupt
        return np.zeros((3, 4, 4), np.uint8)

    with pytest.raises(KeyboardInterrupt):
        build_array(tmp_path / "a.npy", {}, range(3), 4, broken)
    assert not (tmp_path / "a.npy").exists()
    array = build_array(tmp_path / "a.npy", {}, range(3), 4, lambda i: np.full((3, 4, 4), 5, np.uint8))
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
    assert np.array_equal(module.pools[0].images[8].numpy(), draw_image("train", 8, 16)[0])
    assert module.pools[1].labels.tolist() == [len(CATEGORIES), len(CATEGORIES) + 1]
    assert next(iter(module.val_dataloader()))[0].shape == (4, 3, 16, 16)


@pytest.mark.parametrize(
    "bad", [{"drawn_share": 0.0}, {"photo_margin": 0.5}, {"num_drawn": 0}, {"photos": Path("nowhere")}]
)
def test_bad_arguments(bad: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        ImagePoolsModule(**{"cache_dir": tmp_path, "num_drawn": 2, "image_size": 16, **bad}).setup()
