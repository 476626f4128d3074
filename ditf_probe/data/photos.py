"""Photos on disk: listing folders, decoding to RGB, and the photos that the scikit-image wheel carries."""

import importlib.util
import struct
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError

SUFFIXES: Final = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""File name endings, in lower case, that count as photos."""

BUILTIN_PHOTOS: Final = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg")
"""CC0 and public-domain photos inside the scikit-image wheel."""

_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_EXIF_ORIENTATION = 0x0112
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def list_photos(root: str | Path, argument: str = "root", problems: Problems | None = None) -> list[Path]:
    """Every photo under a folder, at any depth, sorted by path.

    Args:
        root: The folder. Hidden files and folders are left out.
        argument: Name of the user's argument, for the error.
        problems: Collects files whose names are not UTF-8; without it they raise.

    Raises:
        InputError: If the folder does not exist or holds no photo.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise InputError(argument, str(root), "no such folder; give a folder of photos")
    relative = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    # Sorted by parts: the order must not depend on the file system, and "a/z" comes before "a-b/c" everywhere.
    names = sorted((p for p in relative if not any(part.startswith(".") for part in p.parts)), key=lambda p: p.parts)
    photos, problems = [], problems or Problems()
    for name in names:
        with problems.record():
            if (folder / name).is_file():
                check_name(folder / name)
                photos.append(folder / name)
    if not photos:
        raise InputError(argument, str(root), f"holds no photo; give a folder with files ending in {_endings()}")
    return photos


def check_name(path: Path) -> None:
    """Refuses a file whose name cannot stand in results.

    Raises:
        InputError: The name of the file or of its folder is not UTF-8.
    """
    try:
        f"{path.parent.name}/{path.name}".encode()
    except UnicodeEncodeError as error:
        raise InputError("image", str(path), "its name is not UTF-8; rename the file or its folder") from error


def read_photo(path: str | Path) -> Tensor:
    """Decodes a photo the way it is meant to be seen.

    EXIF orientation is applied, grey is repeated over the channels, 16 bits are scaled to 8, transparent
    pixels show white, and of an animation the first frame is read.

    Returns:
        `(3, H, W)` uint8 RGB.

    Raises:
        InputError: If the file is missing, is no image, is cut short, or holds floating-point pixels.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
    except _DECODING_ERRORS as error:
        raise _unreadable(path, error) from error
    if upright.mode == "F":
        raise InputError("image", str(path), "floating-point pixels; convert it to 8 or 16 bits")
    return torch.from_numpy(np.ascontiguousarray(_as_rgb(upright).transpose(2, 0, 1)))


def photo_size(path: str | Path) -> tuple[int, int]:
    """Height and width that `read_photo` will give, from the header alone.

    Raises:
        InputError: If the file is missing or is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except _DECODING_ERRORS as error:
        raise _unreadable(path, error) from error
    return (width, height) if turned else (height, width)


def builtin_file(name: str) -> Path:
    """Path of a data file inside the installed scikit-image package; nothing is imported or downloaded.

    Raises:
        InputError: If scikit-image is absent or its wheel lacks the file.
    """
    spec = importlib.util.find_spec("skimage")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "data" / name
        if path.is_file():
            return path
    raise InputError("root", name, "not inside the installed scikit-image; install its wheel or give your own photos")


def builtin_photos() -> list[Path]:
    """The `BUILTIN_PHOTOS`, in that order."""
    return [builtin_file(name) for name in BUILTIN_PHOTOS]


def _as_rgb(image: Image.Image) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """`(H, W, 3)` uint8 from any mode of PIL with whole numbers."""
    if image.mode in _SIXTEEN_BIT:
        # 65535 = 255 * 257, so this maps the full range of 16 bits onto the full range of 8.
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _unreadable(path: str | Path, error: BaseException) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError("image", str(path), "no such file; check the path")
    if isinstance(error, PermissionError):
        return InputError("image", str(path), "may not be read; change its permissions or remove it")
    return InputError("image", str(path), "no image or a damaged one; replace or remove the file")


def _endings() -> str:
    return ", ".join(sorted(SUFFIXES))
