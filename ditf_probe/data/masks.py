"""Masks of numbered objects on disk: one number per pixel, checked against the first mask of a video, and written."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ditf_probe.errors import InputError
from ditf_probe.files import replacing

Values = NDArray[np.int64]

_MODES = ("1", "L", "P", "I", "I;16")
_BINARY = "0 and 255, as a binary mask has"


def read_values(path: Path) -> Values:
    """Pixel values of a mask as they stand in the file; of a palette image its indices, of one bit 0 and 255.

    Returns:
        `(H, W)` int64.

    Raises:
        InputError: The file is missing, damaged, or has several channels.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            values = np.array(image).astype(np.int64)
    except FileNotFoundError as error:
        raise InputError("root", str(path), "no such mask; restore it") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError("root", str(path), "no image or a damaged one; replace the mask") from error
    if mode not in _MODES:
        raise InputError("root", str(path), f"is of mode {mode}; give a mask of one channel or a palette image")
    return values * 255 if mode == "1" else values


def is_binary(path: Path) -> bool:
    """Whether a mask holds the values 0 and 255 alone, and 255 at all."""
    return _objects(read_values(path)) == [255]


def count_objects(path: Path, binary: bool) -> int:
    """How many objects the first mask of a video shows.

    Args:
        path: The mask.
        binary: Whether pixels are 0 and 255 instead of numbers of objects.

    Raises:
        InputError: It shows none, or has values other than 0 and 255 or the numbers 1, 2, ... without gaps.
    """
    found = _objects(read_values(path))
    if not found:
        raise InputError("root", str(path), "shows no object; the first mask must")
    if binary:
        _check(path, found, [255], _BINARY)
        return 1
    if found != list(range(1, len(found) + 1)) or len(found) > 254:
        raise InputError("root", str(path), f"has object numbers {_shown(found)}; number them 1, 2, ... without gaps")
    return len(found)


def read_objects(path: Path, binary: bool, num_objects: int) -> NDArray[np.uint8]:
    """The objects of any mask of a video.

    Args:
        path: The mask.
        binary: Whether pixels are 0 and 255 instead of numbers of objects.
        num_objects: Objects of the first mask of the video.

    Returns:
        `(H, W)`, 0 the background, objects from 1.

    Raises:
        InputError: It holds other values, or objects that the first mask lacks.
    """
    values = read_values(path)
    if binary:
        _check(path, _objects(values), [255], _BINARY)
        return (values // 255).astype(np.uint8)
    _check(path, _objects(values), range(1, num_objects + 1), f"0 to {num_objects}, the objects of the first mask")
    return values.astype(np.uint8)


def _objects(values: Values) -> list[int]:
    return [int(value) for value in np.unique(values) if value]


def _check(path: Path, found: Sequence[int], allowed: Sequence[int], words: str) -> None:
    unknown = [value for value in found if value not in allowed]
    if unknown:
        raise InputError("root", str(path), f"has pixels of value {_shown(unknown)} beside {words}; restore the mask")


def _shown(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def colour_map() -> NDArray[np.uint8]:
    """`(256, 3)` RGB of the palette of DAVIS and PASCAL VOC: bits of the number, spread over the channels."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * bit + channel)) & 1) << (7 - bit)
    return colours.astype(np.uint8)


def write_objects(path: Path, objects: NDArray[np.uint8]) -> None:
    """Writes a mask as the official evaluation of DAVIS reads it: a PNG of numbers with their palette, whole or not.

    Args:
        path: The file; its folder is created.
        objects: `(H, W)`, 0 the background, objects from 1.
    """
    image = Image.fromarray(objects)
    image.putpalette(colour_map().tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")
