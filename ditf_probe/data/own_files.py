"""Keypoints of one's own images, in a CSV table or a JSON file; `keypoints.schema.json` describes the latter."""

import math
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from ditf_probe.data.instances import mirrored_groups
from ditf_probe.data.problems import Problems
from ditf_probe.data.text_files import read_json, read_table
from ditf_probe.errors import InputError

COLUMNS: Final = ("image", "category", "keypoint", "x", "y")
"""Columns that a table must have: one row is one keypoint of one image."""
BOX_COLUMNS: Final = ("x0", "y0", "x1", "y1")
OPTIONAL_COLUMNS: Final = ("visible", *BOX_COLUMNS)
"""Columns that a table may have; the box stands in every row of its image or in one of them."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass
class LabelledImage:
    """An image with its keypoints.

    Attributes:
        file: Path below the image folder.
        category: Its category.
        points: Name to x, y in pixels; a keypoint that is not visible is absent.
        box: x0, y0, x1, y1 of the object, if given.
    """

    file: str
    category: str
    points: dict[str, Point] = field(default_factory=dict)
    box: Box | None = None


@dataclass
class Labels:
    """Everything that an annotation file says.

    Attributes:
        names: Category to the names of its keypoints, in row order.
        groups: Category to groups of row numbers that differ in left, right or order only.
        images: The images, in their order.
    """

    names: dict[str, tuple[str, ...]]
    groups: dict[str, tuple[tuple[int, ...], ...]]
    images: list[LabelledImage]


def read_labels(path: Path, problems: Problems) -> Labels:
    """Reads a table (`.csv`) or a JSON file (`.json`).

    Args:
        path: The file.
        problems: Decides what becomes of damaged rows and images.

    Raises:
        InputError: The file cannot be read, or has another ending, other columns or other fields.
    """
    if path.suffix.lower() == ".csv":
        return _read_csv(path, problems)
    if path.suffix.lower() == ".json":
        return _read_json(path, problems)
    raise InputError("annotations", str(path), "use a .csv or .json file")


def _read_csv(path: Path, problems: Problems) -> Labels:
    images: dict[str, LabelledImage] = {}
    names: dict[str, dict[str, None]] = {}
    seen: set[tuple[str, str]] = set()
    for line, row in read_table(path, "annotations", COLUMNS, OPTIONAL_COLUMNS, problems):
        with problems.record():
            where = f"{path.name}, line {line}"
            file, category, keypoint = _file(where, row["image"]), row["category"], row["keypoint"]
            if not category or not keypoint:
                raise InputError("annotations", where, "no category or no name of the keypoint; fill it in")
            point, box = _csv_point(where, row), _csv_box(where, row)
            image = images.get(file) or LabelledImage(file, category)
            if image.category != category:
                raise InputError(
                    "annotations", where, f"category {category!r}, but {image.category!r} before; keep one"
                )
            if (file, keypoint) in seen:
                raise InputError("annotations", where, f"second {keypoint!r} of {file!r}; keep one")
            if box and image.box and box != image.box:
                raise InputError("annotations", where, f"another box of {file!r} than before; keep one")
            images[file], image.box = image, image.box or box
            names.setdefault(category, {})[keypoint] = None
            seen.add((file, keypoint))
            if point is not None:
                image.points[keypoint] = point
    rows = {category: tuple(found) for category, found in names.items()}
    return Labels(rows, {category: mirrored_groups(found) for category, found in rows.items()}, list(images.values()))


def _csv_point(where: str, row: dict[str, str]) -> Point | None:
    """The keypoint of a row; None where it is not visible, or its coordinates are empty or NaN."""
    visible = row.get("visible", "")
    if visible not in ("", "0", "1"):
        raise InputError("annotations", where, f"visible is {visible!r}; use 0 or 1")
    cells = [row["x"].lower(), row["y"].lower()]
    if visible == "0" or all(cell in ("", "nan") for cell in cells):
        return None
    x, y = (_number(where, cell) for cell in cells)
    return x, y


def _csv_box(where: str, row: dict[str, str]) -> Box | None:
    cells = [row.get(column, "") for column in BOX_COLUMNS]
    if not any(cells):
        return None
    x0, y0, x1, y1 = (_number(where, cell) for cell in cells)
    return x0, y0, x1, y1


def _read_json(path: Path, problems: Problems) -> Labels:
    content = _fields(path.name, read_json(path, "annotations"), ("keypoints", "images"), ())
    if not isinstance(content["keypoints"], dict) or not isinstance(content["images"], list):
        raise InputError(
            "annotations", str(path), "keypoints is no object or images no list; see keypoints.schema.json"
        )
    names: dict[str, tuple[str, ...]] = {}
    groups: dict[str, tuple[tuple[int, ...], ...]] = {}
    for category, facts in content["keypoints"].items():
        names[category], groups[category] = _json_category(f"{path.name}, keypoints of {category!r}", facts)
    images: dict[str, LabelledImage] = {}
    for number, record in enumerate(content["images"]):
        with problems.record():
            image = _json_image(f"{path.name}, image {number}", record, names)
            if image.file in images:
                raise InputError("annotations", f"{path.name}, image {number}", f"second {image.file!r}; keep one")
            images[image.file] = image
    return Labels(names, groups, list(images.values()))


def _json_category(where: str, facts: Any) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    facts = _fields(where, facts, ("names",), ("groups",))
    names, groups = facts["names"], facts.get("groups")
    if not _distinct_texts(names) or not all(names):
        raise InputError("annotations", where, "names must be a list of different texts; correct it")
    if groups is None:
        return tuple(names), mirrored_groups(names)
    if not isinstance(groups, list) or not all(
        _distinct_texts(group, 2) and set(group) <= set(names) for group in groups
    ):
        raise InputError("annotations", where, "groups must list two or more names of the category each; correct it")
    return tuple(names), tuple(tuple(names.index(name) for name in group) for group in groups)


def _json_image(where: str, record: Any, names: dict[str, tuple[str, ...]]) -> LabelledImage:
    record = _fields(where, record, ("file", "category", "keypoints"), ("box",))
    image = LabelledImage(_file(where, record["file"]), record["category"])
    if not isinstance(image.category, str) or image.category not in names:
        raise InputError("annotations", where, f"category {image.category!r} is not in keypoints; add it there")
    if not isinstance(record["keypoints"], dict):
        raise InputError("annotations", where, "keypoints must be an object of name to [x, y]; correct it")
    for name, point in record["keypoints"].items():
        if name not in names[image.category]:
            raise InputError("annotations", where, f"keypoint {name!r} is not one of {image.category}; correct it")
        if point is not None:
            x, y = _numbers(where, point, 2)
            image.points[name] = (x, y)
    if "box" in record:
        x0, y0, x1, y1 = _numbers(where, record["box"], 4)
        image.box = (x0, y0, x1, y1)
    return image


def _fields(where: str, record: Any, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    """An object with the given fields and no others."""
    if not isinstance(record, dict):
        raise InputError("annotations", where, "no object; see keypoints.schema.json")
    for name in required:
        if name not in record:
            raise InputError("annotations", where, f"no field {name!r}; see keypoints.schema.json")
    for name in record:
        if name not in (*required, *optional):
            raise InputError("annotations", where, f"unknown field {name!r}; see keypoints.schema.json")
    return record


def _file(where: str, value: Any) -> str:
    path = PurePosixPath(value) if isinstance(value, str) else PurePosixPath()
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise InputError("annotations", where, f"image {value!r} is no path below the image folder; correct it")
    return str(path)


def _number(where: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError("annotations", where, f"{cell!r} is no number; correct it")
    return value


def _numbers(where: str, values: Any, count: int) -> list[float]:
    numbers = values if isinstance(values, list) else []
    if len(numbers) != count or not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
        raise InputError("annotations", where, f"{values!r} must be {count} numbers; correct it")
    return [float(value) for value in numbers]


def _distinct_texts(values: Any, least: int = 1) -> bool:
    return (
        isinstance(values, list)
        and len(values) >= least
        and all(isinstance(value, str) for value in values)
        and len(set(values)) == len(values)
    )
