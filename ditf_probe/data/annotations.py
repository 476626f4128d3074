"""Reading the annotation files of published data sets: what is missing, damaged or impossible is named in one line."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ditf_probe.data.pairs import Side
from ditf_probe.data.photos import photo_size
from ditf_probe.errors import InputError

Points = NDArray[np.float32]
Size = tuple[int, int]


def require_folder(root: str | Path, inside: str, what: str) -> Path:
    """The root of a data set.

    Args:
        root: What the user gave.
        inside: A file or folder that it must hold.
        what: The data set, in words.

    Raises:
        InputError: If it is no folder or does not hold `inside`.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise InputError("root", str(root), f"no such folder; give the folder of {what}")
    if not (folder / inside).exists():
        raise InputError("root", str(root), f"holds no {inside}; give the folder of {what}")
    return folder


def text_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a text file that are not blank, as bytes: what is not UTF-8 concerns one record, not the file.

    Yields:
        Where the line stands, as "PATH line N", and the line without its end.

    Raises:
        InputError: If the file cannot be read.
    """
    for number, line in enumerate(_read(path).removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        if line.strip():
            yield f"{path} line {number}", line


def decode(line: bytes, where: str) -> str:
    """Text of a line.

    Raises:
        InputError: If it is not UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError("root", where, "not UTF-8; save the file as UTF-8") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: If the file is missing or holds no JSON object.
    """
    content = _read(path)
    try:
        found = json.loads(content)
    except ValueError as error:  # also UnicodeDecodeError
        raise InputError("root", str(path), "no readable JSON; restore the file") from error
    if not isinstance(found, dict):
        raise InputError("root", str(path), "no JSON object; restore the file")
    return found


def entry(record: Mapping[str, Any], name: str, path: Path) -> Any:
    """An entry that an annotation must have.

    Raises:
        InputError: If it is not there.
    """
    if name not in record:
        raise InputError("root", str(path), f"has no `{name}`; restore the file")
    return record[name]


def numbers(values: Any, shape: tuple[int | None, ...], where: str, what: str) -> Points:
    """Numbers of an annotation as float32.

    Args:
        values: Nested lists or an array.
        shape: Expected shape; None for any length.
        where: The file, and the line if there are many.
        what: What the numbers are, for the error.

    Raises:
        InputError: If they are no numbers or of another shape.
    """
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError("root", where, f"{what} is not made of numbers; restore the file") from error
    if array.size == 0 and None in shape:
        array = array.reshape([0 if length is None else length for length in shape])
    if array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        wanted = ", ".join("K" if length is None else str(length) for length in shape)
        raise InputError("root", where, f"{what} has shape {array.shape} instead of ({wanted}); restore the file")
    return array


def present(points: Points) -> NDArray[np.bool_]:
    """`(K,)` bool: which of the keypoints `(K, 2)` are not missing, that is without NaN."""
    return np.asarray(~np.isnan(points).any(1))


def inside(points: Points, size: Size, where: str) -> Points:
    """Keypoints within their image.

    Annotations that count from 1 or run to the far edge lie up to a pixel outside; they are moved to the border.

    Args:
        points: `(K, 2)` (x, y) in pixels; a keypoint with a NaN is missing.
        size: (height, width) of the image.
        where: The file, for the error.

    Returns:
        `(K, 2)`, both coordinates NaN where missing.

    Raises:
        InputError: If a keypoint lies farther outside.
    """
    height, width = size
    there = present(points)
    away = there & ((points < -1) | (points > [width, height])).any(1)
    if away.any():
        x, y = points[away][0].tolist()
        raise InputError("root", where, f"keypoint ({x:g}, {y:g}) outside the {width}x{height} image; correct the file")
    kept = np.clip(points, np.float32(-0.5), np.array([width - 0.5, height - 0.5], dtype=np.float32))
    return np.where(there[:, None], kept, np.float32(np.nan)).astype(np.float32)


def box(values: Any, where: str) -> Points:
    """A box `(4,)` x0, y0, x1, y1.

    Raises:
        InputError: If it has no area.
    """
    corners = numbers(values, (4,), where, "the box")
    if not (np.isfinite(corners).all() and corners[2] > corners[0] and corners[3] > corners[1]):
        shown = ", ".join(f"{value:g}" for value in corners.tolist())
        raise InputError("root", where, f"empty box ({shown}); correct the file")
    return corners


def extent(points: Points) -> Points:
    """The box `(4,)` around the keypoints `(K, 2)` that are not missing; zeros where all are."""
    found = points[present(points)]
    return np.concatenate([found.min(0), found.max(0)]) if len(found) else np.zeros(4, dtype=np.float32)


def side(image_id: str, size: Size, points: Points, corners: Points) -> Side:
    """One side of a pair.

    Args:
        image_id: Id of the image.
        size: (height, width) of the image.
        points: `(K, 2)` from `inside`; NaN becomes invisible.
        corners: `(4,)` box.
    """
    visible = present(points)
    keypoints = np.where(visible[:, None], points, np.float32(0)).astype(np.float32)
    return Side(image_id, size, torch.from_numpy(keypoints), torch.from_numpy(visible), torch.from_numpy(corners))


class ImageSizes:
    """Sizes of images from their headers, each read once.

    Args:
        file: The file of an image id.
    """

    def __init__(self, file: Callable[[str], Path]) -> None:
        self._file = file
        self._sizes: dict[str, Size] = {}

    def __call__(self, image_id: str) -> Size:
        """(height, width) of an image.

        Raises:
            InputError: If its file is missing or no image.
        """
        if image_id not in self._sizes:
            self._sizes[image_id] = photo_size(self._file(image_id))
        return self._sizes[image_id]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError("root", str(path), "no such file; restore it") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError("root", str(path), f"cannot be read ({reason}); restore it") from error
