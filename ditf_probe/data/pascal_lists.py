"""The pair lists of PF-PASCAL as NC-Net publishes them (Rocco et al., NeurIPS 2018)."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from ditf_probe.data.annotations import Points, decode, text_lines
from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError

CLASSES: Final = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The classes of PASCAL VOC; the lists count them from 1."""

_COORDINATES: Final = ("XA", "YA", "XB", "YB")


@dataclass(frozen=True, slots=True)
class Listed:
    """One row of a list.

    Attributes:
        source: File name of the source image, without its folder.
        target: File name of the target image.
        category: Name of the class.
        flip: Whether both images are mirrored.
        points: Keypoints `(K, 2)` of source and target; None where the list has none or they are not wanted.
    """

    source: str
    target: str
    category: str
    flip: bool
    points: tuple[Points, Points] | None


class TrainingImages:
    """What the training list holds, to tell which other pairs a trained probe has seen.

    Args:
        path: The training list.

    Raises:
        InputError: If it is damaged. A part of it would not tell what was seen, so nothing is left out.
    """

    def __init__(self, path: Path) -> None:
        rows = [row for _, row in read_list(path, "train", False, Problems())]
        self._pairs = {frozenset((row.source, row.target)) for row in rows}
        self._images = {name for row in rows for name in (row.source, row.target)}

    def attributes(self, source: str, target: str) -> dict[str, str]:
        """The levels "pair in train" and "images in train" of a pair of file names."""
        seen = "yes" if frozenset((source, target)) in self._pairs else "no"
        return {"pair in train": seen, "images in train": str(sum(name in self._images for name in {source, target}))}


def find_list(folders: Sequence[Path], split: str) -> Path:
    """The list of a split in the first folder that has it.

    Raises:
        InputError: If none has.
    """
    names = (f"{split}_pairs.csv", f"{split}_pairs_pf_pascal.csv")
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    remedy = f"holds no {names[0]}; give the folder of the lists of NC-Net"
    raise InputError("lists", str(folders[0]), remedy + (" or set `leakage` to false" if split == "train" else ""))


def read_list(path: Path, split: str, coordinates: bool, problems: Problems) -> Iterator[tuple[str, Listed]]:
    """Rows of a list.

    Args:
        path: The CSV file.
        split: "train", whose rows are repeated on purpose, "val" or "test".
        coordinates: Read the keypoints, which only the test list has.
        problems: Decides what becomes of damaged rows.

    Yields:
        Where the row stands, and the row.

    Raises:
        InputError: If the file or a column is missing, or a row is damaged and `problems` does not keep going.
    """
    lines = text_lines(path)
    where, header = next(lines, (str(path), b""))
    columns = [cell.strip() for cell in next(csv.reader([decode(header, where)]), [])]
    for name in ("source_image", "target_image", "class", *(_COORDINATES if coordinates else ())):
        if name not in columns:
            raise InputError("lists", str(path), f"has no column `{name}`; restore the list")
    seen = set[tuple[str, str]]()
    for where, line in lines:
        with problems.record():
            cells = next(csv.reader([decode(line, where)]))
            if len(cells) != len(columns):
                raise InputError("lists", where, f"{len(cells)} cells where the header has {len(columns)}; restore it")
            row = _row(dict(zip(columns, cells, strict=True)), coordinates, where)
            if split != "train" and (row.source, row.target) in seen:
                raise InputError("lists", where, f"pair {row.source}, {row.target} stands there twice; remove one")
            seen.add((row.source, row.target))
            yield where, row


def _row(cells: dict[str, str], coordinates: bool, where: str) -> Listed:
    number, flip = cells["class"].strip(), cells.get("flip", "0").strip()
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= len(CLASSES)):
        raise InputError("lists", where, f"class {number!r} is none of 1 to {len(CLASSES)}; restore the list")
    if flip not in ("0", "1"):
        raise InputError("lists", where, f"flip {flip!r} is neither 0 nor 1; restore the list")
    source, target = (PurePosixPath(cells[name].strip()).name for name in ("source_image", "target_image"))
    points = None
    if coordinates:
        xa, ya, xb, yb = (_coordinates(cells[name], name, where) for name in _COORDINATES)
        if len({len(xa), len(ya), len(xb), len(yb)}) != 1:
            raise InputError("lists", where, "XA, YA, XB and YB differ in length; restore the list")
        points = np.stack([xa, ya], axis=1), np.stack([xb, yb], axis=1)
    return Listed(source, target, CLASSES[int(number) - 1], flip == "1", points)


def _coordinates(text: str, name: str, where: str) -> Points:
    """Numbers divided by semicolons."""
    try:
        return np.array([float(part) for part in text.split(";") if part.strip()], dtype=np.float32)
    except ValueError as error:
        raise InputError("lists", where, f"`{name}` is not made of numbers; restore the list") from error
