"""Frames at the size of a protocol, and masks as the official evaluation reads them."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data.frames import resize_short_side
from ditf_probe.data.masks import colour_map, read_objects, write_objects
from ditf_probe.errors import InputError


@pytest.mark.parametrize(
    ("size", "short_side", "multiple", "expected"),
    [
        ((480, 854), 480, 64, (480, 832)),  # DINO
        ((480, 854), 480, 32, (480, 832)),  # DIFT
        ((480, 854), 960, 32, (960, 1696)),  # DiTF
        ((480, 1152), 960, 32, (960, 2304)),
        ((854, 480), 480, 64, (832, 480)),
        ((480, 854), 128, 32, (128, 224)),
        ((30, 49), 10, 1, (10, 16)),
    ],
)
def test_sizes(size: tuple[int, int], short_side: int, multiple: int, expected: tuple[int, int]) -> None:
    image = torch.zeros(3, *size, dtype=torch.uint8)
    assert resize_short_side(image, short_side, multiple).shape == (3, *expected)


def test_pixels_are_those_of_opencv() -> None:
    image = torch.randint(0, 256, (3, 48, 85), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = cv2.resize(image.permute(1, 2, 0).numpy(), (80, 48))
    assert (resize_short_side(image, 48, 16).permute(1, 2, 0).numpy() == expected).all()
    assert resize_short_side(image, 48, 1) is image


@pytest.mark.parametrize(
    ("image", "short_side", "message"),
    [
        (torch.zeros(3, 8, 9), 8, "`image` is '(3, 8, 9) torch.float32'"),
        (torch.zeros(3, 8, 9, dtype=torch.uint8), 3, "`short_side` is 3: use at least `multiple`, 4"),
    ],
)
def test_bad_frames(image: torch.Tensor, short_side: int, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        resize_short_side(image, short_side, 4)


def test_palette() -> None:
    """The first colours of the annotations of DAVIS-2017."""
    assert colour_map().shape == (256, 3)
    assert colour_map()[:6].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert len(np.unique(colour_map(), axis=0)) == 256


def test_masks_are_palette_images_of_numbers(tmp_path: Path) -> None:
    objects = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    path = tmp_path / "adaln" / "dogs" / "00001.png"
    write_objects(path, objects)
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.format == "PNG"
        assert (np.array(image) == objects).all()  # how the official evaluation reads it
        assert (np.array(image.convert("RGB")) == colour_map()[objects]).all()
    assert (read_objects(path, False, 3) == objects).all()
    assert [found.name for found in path.parent.iterdir()] == ["00001.png"]


def test_real_masks_survive(shared_data: Path, tmp_path: Path) -> None:
    """A real mask of 0 and 255, written as object 1 and read back."""
    source = shared_data / "davis-mini" / "Annotations" / "480p" / "libby" / "00007.png"
    objects = read_objects(source, True, 1)
    write_objects(tmp_path / "00007.png", objects)
    assert (np.array(Image.open(tmp_path / "00007.png")) * 255 == np.array(Image.open(source))).all()
