"""Keypoint annotations in the format of COCO (cocodataset.org, "Data format", keypoint detection)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ditf_probe.data.instances import check_box
from ditf_probe.data.problems import Problems
from ditf_probe.data.text_files import read_json
from ditf_probe.errors import InputError

Visibility = Literal["clear", "labelled"]
"""Which flags mean visible: "clear" only 2 (labelled and visible), "labelled" also 1 (labelled, but occluded)."""


@dataclass(frozen=True, slots=True)
class Category:
    """A category: its name, the group that it belongs to, and the names of its keypoints in row order."""

    name: str
    family: str
    keypoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Photo:
    """An image: its number, its file as it is written in the annotations, height and width."""

    number: int
    file_name: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """An object of an image.

    Attributes:
        number: Its id.
        photo: The image.
        category: The category.
        keypoints: `(K, 2)` float32, x before y, as they stand; pixels of the image.
        flags: `(K,)` int64: 0 not labelled, 1 labelled but occluded, 2 labelled and visible.
        bbox: x0, y0, x1, y1, made from x, y, width and height.
        area: Its area in pixels, as it stands; that of the box where it is absent.
        crowd: Whether it stands for a crowd.
        num_keypoints: Number of labelled keypoints, as it stands.
    """

    number: int
    photo: Photo
    category: Category
    keypoints: Tensor
    flags: Tensor
    bbox: tuple[float, float, float, float]
    area: float
    crowd: bool
    num_keypoints: int


def read_coco(path: Path, problems: Problems, argument: str = "annotations") -> list[Annotation]:
    """Reads a keypoint file; objects of categories without keypoints are left out.

    Args:
        path: The JSON file.
        problems: Decides what becomes of damaged records.
        argument: Name of the user's argument, for errors.

    Returns:
        The objects in their order.

    Raises:
        InputError: The file cannot be read or is of another kind; without `keep_going` also a damaged record.
    """
    content = read_json(path, argument)
    parts = [
        content.get(name) if isinstance(content, dict) else None for name in ("categories", "images", "annotations")
    ]
    if not all(isinstance(part, list) for part in parts):
        remedy = "no COCO keypoint file; it needs the lists images, annotations and categories"
        raise InputError(argument, str(path), remedy)
    categories = _by_id(path, parts[0] or [], "category", parse_category, problems)
    photos = _by_id(path, parts[1] or [], "image", parse_photo, problems)
    found: dict[int, Annotation] = {}
    for record in parts[2] or []:
        with problems.record():
            where = _where(path, "annotation", record)
            category = _referred(where, record, "category_id", categories)
            if not category.keypoints:
                continue
            annotation = parse_annotation(where, record, _referred(where, record, "image_id", photos), category)
            if annotation.number in found:
                raise InputError("annotations", where, "second annotation with this id; give each its own")
            found[annotation.number] = annotation
    return list(found.values())


def visible_flags(flags: Tensor, visibility: str) -> Tensor:
    """`(K,)` bool: which keypoints a rule of `Visibility` calls visible."""
    return flags == 2 if visibility == "clear" else flags >= 1


def parse_category(where: str, record: Mapping[str, Any]) -> Category:
    """A category of a COCO file. Raises InputError with `where` if a field is missing or of another kind."""
    try:
        names = tuple(str(name) for name in record.get("keypoints", ()))
        return Category(str(record["name"]), str(record.get("supercategory", "")), names)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError("annotations", where, "no readable name or keypoints; correct it") from error


def parse_photo(where: str, record: Mapping[str, Any]) -> Photo:
    """An image of a COCO file. Raises InputError with `where` if a field is missing or of another kind."""
    try:
        photo = Photo(int(record["id"]), str(record["file_name"]), (int(record["height"]), int(record["width"])))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("annotations", where, "no readable id, file_name, height or width; correct it") from error
    if min(photo.size) < 1 or Path(photo.file_name).is_absolute() or ".." in Path(photo.file_name).parts:
        raise InputError("annotations", where, "size below 1 or a file outside the image folder; correct it")
    return photo


def parse_annotation(where: str, record: Mapping[str, Any], photo: Photo, category: Category) -> Annotation:
    """An object of a COCO file.

    Raises:
        InputError: With `where`: a field is missing or of another kind, the number of keypoints is not that of the
            category, a flag is not 0, 1 or 2, or the box is empty.
    """
    try:
        rows = torch.tensor(record["keypoints"], dtype=torch.float64).reshape(-1, 3)
        x, y, width, height = (float(value) for value in record["bbox"])
        flags = rows[:, 2].long()
        annotation = Annotation(
            number=int(record["id"]),
            photo=photo,
            category=category,
            keypoints=rows[:, :2].float(),
            flags=flags,
            bbox=(x, y, x + width, y + height),
            area=float(record.get("area", width * height)),
            crowd=bool(record.get("iscrowd", 0)),
            num_keypoints=int(record.get("num_keypoints", int((flags > 0).sum()))),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError("annotations", where, "no readable id, keypoints or bbox; correct it") from error
    if len(rows) != len(category.keypoints):
        remedy = f"{len(rows)} keypoints where {category.name} has {len(category.keypoints)}; correct it"
        raise InputError("annotations", where, remedy)
    if not torch.isin(rows[:, 2], torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)).all():
        raise InputError("annotations", where, "a visibility flag other than 0, 1 and 2; correct it")
    check_box(where, annotation.bbox)
    return annotation


def _by_id(path: Path, records: Sequence[Any], kind: str, parse: Any, problems: Problems) -> dict[int, Any]:
    """Records of one kind by id; a second record with an id is a problem, and the first one stays."""
    found: dict[int, Any] = {}
    for record in records:
        with problems.record():
            where = _where(path, kind, record)
            parsed = parse(where, record)
            number = record.get("id")
            if not isinstance(number, int):
                raise InputError("annotations", where, "its id is no whole number; correct it")
            if number in found:
                raise InputError("annotations", where, f"second {kind} with this id; give each its own")
            found[number] = parsed
    return found


def _referred(where: str, record: Any, field: str, found: Mapping[int, Any]) -> Any:
    number = record.get(field) if isinstance(record, dict) else None
    if not isinstance(number, int) or number not in found:
        raise InputError("annotations", where, f"{field} {number!r} is not in the file; correct it")
    return found[number]


def _where(path: Path, kind: str, record: Any) -> str:
    number = record.get("id") if isinstance(record, dict) else None
    return f"{path.name}, {kind} {'without id' if number is None else number}"
