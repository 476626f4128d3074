"""SPair-71k: 70,958 pairs of 18 categories (Min, Lee, Ponce, Cho, 2019), and annotations of its form (SPair-U)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.data.annotations import (
    ImageSizes,
    Points,
    box,
    decode,
    entry,
    inside,
    numbers,
    present,
    read_json,
    require_folder,
    side,
    text_lines,
)
from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.data.photos import read_photo
from ditf_probe.data.problems import Problems
from ditf_probe.data.spair_keypoints import GROUPS, KEYPOINTS, LEVELS
from ditf_probe.errors import InputError, check_choice

Split = Literal["trn", "val", "test"]
LayoutSize = Literal["large", "small"]
Attribute = Literal["viewpoint", "scale", "truncation", "occlusion"]
Base = Literal["bbox", "keypoints", "image"]


class SPair71k(PairDataset):
    """The pairs of one split of SPair-71k in the published layout.

    A row of the keypoints is the keypoint id of the annotations, 0 to 29, so that a row means the same in every pair
    of a category; ids that a pair does not show are not visible. Coordinates are used as they stand. The category is
    the JSON field, whatever the name of the file says.

    Args:
        root: The folder `SPair-71k` with `Layout`, `PairAnnotation`, `ImageAnnotation` and `JPEGImages`.
        split: "trn" (53,340 pairs in the large layout), "val" (5,384) or "test" (12,234).
        size: The layout: "large", the benchmark, or "small" (10,652, 1,070 and 2,438 pairs).
        category: Only these categories; None for all 18.
        annotation_root: A folder with its own `PairAnnotation` (and `ImageAnnotation`, and `Layout` if its pairs
            differ), or that `PairAnnotation` itself, used in place of those of `root`. This is how SPair-U (Mariotti
            et al., 2025), the test pairs with other keypoints, is read.
        all_keypoints: Take the keypoints of each image from `ImageAnnotation`, so that those that only one image
            shows are known. Scores of visible keypoints stay the same; KAP and the geometry-aware subset of the
            publications need it.
        attributes: Which variations become `Pair.attributes`: "viewpoint" and "scale" ("easy", "medium", "hard"),
            "truncation" and "occlusion" ("none", "source", "target", "both").
        threshold: What PCK thresholds are relative to: "bbox", the usual choice, "keypoints" or "image".
        keep_going: Leave damaged pairs out and list what is wrong in `problems`, instead of raising.

    Raises:
        InputError: If an argument is not among its choices, the layout is not there, or a pair is damaged.
    """

    name = "spair-71k"
    unit = "source photo"

    def __init__(
        self,
        root: str | Path,
        split: Split = "test",
        size: LayoutSize = "large",
        category: str | list[str] | None = None,
        annotation_root: str | Path | None = None,
        all_keypoints: bool = False,
        attributes: Sequence[Attribute] = ("viewpoint", "scale", "truncation", "occlusion"),
        threshold: Base = "bbox",
        keep_going: bool = False,
    ) -> None:
        choices: list[tuple[str, object, object]] = [
            ("split", split, Split), ("size", size, LayoutSize), ("threshold", threshold, Base)
        ]  # fmt: skip
        for argument, value, allowed in [*choices, *(("attributes", name, Attribute) for name in attributes)]:
            check_choice(argument, value, allowed)
        self.split, self.size, self.threshold = split, size, threshold
        self.category = [category] if isinstance(category, str) else category
        self.annotation_root = None if annotation_root is None else str(annotation_root)
        self.all_keypoints, self.attributes = all_keypoints, tuple(attributes)
        folder = require_folder(root, "JPEGImages", "SPair-71k")
        base = folder if annotation_root is None else _annotation_base(Path(annotation_root).expanduser())
        self._reader = _Reader(folder / "JPEGImages", base, self.attributes, all_keypoints)
        layout = base if (base / "Layout").is_dir() else folder
        problems = Problems(keep_going)
        self._pairs = self._read(layout / "Layout" / size / f"{split}.txt", problems)
        self.problems = problems.found

    def _read(self, layout: Path, problems: Problems) -> list["_Record"]:
        pairs, seen, categories = [], set[str](), set[str]()
        for where, line in text_lines(layout):
            with problems.record():
                name = decode(line, where).strip()
                if name in seen:
                    raise InputError("root", where, f"pair {name} stands there twice; remove one")
                seen.add(name)
                record = self._reader.pair(self.split, name)
                categories.add(record.category)
                if self.category is None or record.category in self.category:
                    pairs.append(record)
        for name in self.category or ():
            if name not in categories:
                raise InputError("category", name, f"no such category; choose from {', '.join(sorted(categories))}")
        return pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        record = self._pairs[index]
        source, target = self._reader.sides(record)
        return Pair(index, record.category, source.image_id, source, target, None, record.attributes)

    def image(self, image_id: str) -> Tensor:
        """`(3, H, W)` uint8 RGB at native size."""
        return read_photo(self._reader.file(image_id))

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        """The keypoint ids: the publication names none."""
        del category
        return tuple(str(row) for row in range(KEYPOINTS))

    def keypoint_groups(self, category: str) -> tuple[tuple[int, ...], ...]:
        """The geometry-aware groups of GeoAware-SC; empty with `annotation_root`, whose keypoints are others."""
        return () if self.annotation_root is not None else GROUPS.get(category, ())

    def files(self) -> tuple[Path, ...]:
        """The photos of the pairs, each once."""
        names = (name for record in self._pairs for name in record.images)
        return tuple(self._reader.file(name) for name in dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class _Record:
    """A pair in little memory: ids `(k,)` of its keypoints, their places `(2, k, 2)` and the boxes `(2, 4)`."""

    category: str
    images: tuple[str, str]
    ids: NDArray[np.int64]
    points: Points
    boxes: Points
    attributes: dict[str, str]


class _Reader:
    """Reads pairs, and images once each."""

    def __init__(self, photos: Path, base: Path, attributes: Sequence[str], all_keypoints: bool) -> None:
        self._photos, self._base = photos, base
        self._attributes, self._all_keypoints = attributes, all_keypoints
        self._sizes, self._whole = ImageSizes(self.file), dict[str, Points]()

    def file(self, image_id: str) -> Path:
        return self._photos / image_id.removeprefix("spair-71k/")

    def pair(self, split: str, name: str) -> _Record:
        path = self._base / "PairAnnotation" / split / f"{name}.json"
        found = read_json(path)
        category = str(entry(found, "category", path))
        if found.get("mirror", 0):
            raise InputError("root", str(path), "`mirror` is set, which no published pair has; remove the pair")
        ids = _keypoint_ids(entry(found, "kps_ids", path), path)
        images, points, boxes = [], [], []
        for end in ("src", "trg"):
            image_id = f"spair-71k/{category}/{entry(found, f'{end}_imname', path)}"
            size = self._size(image_id, entry(found, f"{end}_imsize", path), path)
            places = numbers(entry(found, f"{end}_kps", path), (len(ids), 2), str(path), f"`{end}_kps`")
            images.append(image_id)
            points.append(inside(places, size, str(path)))
            boxes.append(box(entry(found, f"{end}_bndbox", path), str(path)))
        levels = {name: _level(entry(found, LEVELS[name][0], path), name, path) for name in self._attributes}
        record = _Record(category, (images[0], images[1]), ids, np.stack(points), np.stack(boxes), levels)
        if self._all_keypoints:
            self._check_whole(record, path)
        return record

    def sides(self, record: _Record) -> tuple[Side, Side]:
        ends = []
        for image_id, places, corners in zip(record.images, record.points, record.boxes, strict=True):
            points = self._whole[image_id].copy() if self._all_keypoints else _nowhere()
            points[record.ids] = places
            ends.append(side(image_id, self._sizes(image_id), points, corners))
        return ends[0], ends[1]

    def _size(self, image_id: str, annotated: Any, path: Path) -> tuple[int, int]:
        height, width = size = self._sizes(image_id)
        told = numbers(annotated, (None,), str(path), "the image size")[:2].tolist()
        if told != [width, height]:
            real = f"{self.file(image_id)} has {[width, height]}"
            raise InputError("root", str(path), f"image size {told} where {real}; restore both")
        return size

    def _check_whole(self, record: _Record, path: Path) -> None:
        """Reads the keypoints of both images; the pair must list exactly those that both show."""
        source, target = (present(self._read_whole(image_id)) for image_id in record.images)
        common = np.flatnonzero(source & target).tolist()
        if common != sorted(record.ids.tolist()):
            raise InputError(
                "root", str(path), f"`kps_ids` are not {common}, which both images show; restore the files"
            )

    def _read_whole(self, image_id: str) -> Points:
        """`(30, 2)` keypoints of an image, NaN where it does not show them."""
        if image_id not in self._whole:
            photo = self.file(image_id)
            path = self._base / "ImageAnnotation" / photo.parent.name / f"{photo.stem}.json"
            found = entry(read_json(path), "kps", path)
            if not isinstance(found, dict):
                raise InputError("root", str(path), "`kps` is no object of ids and places; restore the file")
            shown = {key: place for key, place in found.items() if place is not None}
            points = _nowhere()
            places = numbers(list(shown.values()), (None, 2), str(path), "`kps`")
            points[_keypoint_ids(list(shown), path)] = inside(places, self._sizes(image_id), str(path))
            self._whole[image_id] = points
        return self._whole[image_id]


def _nowhere() -> Points:
    return np.full((KEYPOINTS, 2), np.nan, dtype=np.float32)


def _annotation_base(folder: Path) -> Path:
    base = folder.parent if folder.name == "PairAnnotation" else folder
    if not (base / "PairAnnotation").is_dir():
        raise InputError("annotation_root", str(folder), "holds no PairAnnotation; give the folder of the annotations")
    return base


def _keypoint_ids(values: Any, path: Path) -> NDArray[np.int64]:
    """Keypoint ids, which the files write as strings."""
    try:
        ids = [int(value) for value in values]
    except (TypeError, ValueError) as error:
        raise InputError("root", str(path), "keypoint ids are no whole numbers; restore the file") from error
    if len(set(ids)) < len(ids) or not all(0 <= number < KEYPOINTS for number in ids):
        raise InputError(
            "root", str(path), f"keypoint ids {ids} are not distinct numbers from 0 to 29; restore the file"
        )
    return np.array(ids, dtype=np.int64)


def _level(value: Any, name: str, path: Path) -> str:
    field, names = LEVELS[name]
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise InputError("root", str(path), f"`{field}` is {value!r}, not from 0 to {len(names) - 1}; restore the file")
    return names[value]
