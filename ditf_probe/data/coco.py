"""Pairs from keypoint files in the format of COCO: people, animals, hands, or one's own annotations."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from ditf_probe.data.coco_files import Annotation, Visibility, read_coco, visible_flags
from ditf_probe.data.instances import Instance, InstancePairs, check_keypoints, mirrored_groups
from ditf_probe.data.pair_forming import pairs_within_categories
from ditf_probe.data.pairs import Side, check_range
from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError, check_choice


class COCOKeypoints(InstancePairs):
    """Pairs of two objects of one category in two images, from a COCO keypoint file.

    Keypoint names come from the file, and keypoints whose names differ in "left" and "right" only make the groups. The
    source image is the sampling unit; pairs still share target images, so intervals are somewhat too narrow.

    Args:
        root: The folder that the other paths start from.
        annotations: The JSON file.
        images: The image folder.
        num_pairs: Draws so many pairs; None takes all ordered pairs, category by category.
        min_visible: Fewest keypoints that are visible in both objects.
        visibility: "clear" takes keypoints that are labelled visible (2), "labelled" also occluded ones (1).
        categories: Names of the categories to take; None for all.
        min_area: Leave out objects of a smaller area in pixels; COCO itself evaluates keypoints above 32 x 32.
        keep_crowd: Keep objects that are marked `iscrowd`.
        threshold: "bbox" (the annotated box), "keypoints" or "image".
        seed: Seed of the draw.
        pairs_file: A list that `write_pairs` wrote, or a CSV file of annotation ids, in place of forming pairs.
        keep_going: Leave out damaged records and list them in `problems`.

    Raises:
        InputError: An argument cannot be used, a file is missing or damaged, or no pair can be formed.
    """

    name = "coco"
    unit = "source image"

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path,
        images: str | Path = ".",
        num_pairs: int | None = None,
        min_visible: int = 3,
        visibility: Visibility = "clear",
        categories: Sequence[str] | None = None,
        min_area: float = 0.0,
        keep_crowd: bool = False,
        threshold: Literal["bbox", "keypoints", "image"] = "bbox",
        seed: int = 0,
        pairs_file: str | Path | None = None,
        keep_going: bool = False,
    ) -> None:
        check_choice("visibility", visibility, Visibility)
        check_choice("threshold", threshold, Literal["bbox", "keypoints", "image"])
        check_range("min_visible", min_visible, 1)
        check_range("seed", seed, 0)
        if num_pairs is not None:
            check_range("num_pairs", num_pairs, 1)
        self.annotations, self.visibility, self.threshold, self.seed = str(annotations), visibility, threshold, seed
        self.num_pairs, self.min_visible, self.min_area, self.keep_crowd = num_pairs, min_visible, min_area, keep_crowd
        self.categories = None if categories is None else tuple(categories)
        problems, folder = Problems(keep_going), Path(root).expanduser()
        file = folder / annotations
        found = read_coco(file, problems)
        self._names = {annotation.category.name: annotation.category.keypoints for annotation in found}
        self._check_categories()
        # Ids must mean equal pixels everywhere, and file names such as 0001.jpg are in many data sets.
        prefix = f"coco/{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
        instances = []
        for annotation in filter(self._wanted, found):
            with problems.record():
                instances.append(_instance(annotation, folder / images, prefix, visibility))
        formed = partial(pairs_within_categories, instances, num_pairs, min_visible, seed)
        self._pair_up(instances, formed, pairs_file, problems)

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        """The names that the file gives to the keypoints of a category."""
        return self._names[category]

    def keypoint_groups(self, category: str) -> tuple[tuple[int, ...], ...]:
        """Keypoints of a category whose names differ in "left" and "right" only."""
        return mirrored_groups(self._names[category])

    def _check_categories(self) -> None:
        for name in self.categories or ():
            if name not in self._names:
                known = ", ".join(sorted(self._names)) or "none"
                raise InputError("categories", name, f"no object of it has keypoints; there are {known}")

    def _wanted(self, found: Annotation) -> bool:
        return (
            (self.categories is None or found.category.name in self.categories)
            and found.area >= self.min_area
            and (self.keep_crowd or not found.crowd)
            and int(visible_flags(found.flags, self.visibility).sum()) >= self.min_visible
        )


def _instance(found: Annotation, folder: Path, prefix: str, visibility: Visibility) -> Instance:
    photo = found.photo
    file = folder / photo.file_name
    if not file.is_file():
        raise InputError("image", str(file), "no such file, though it is annotated; restore it or correct `images`")
    visible = visible_flags(found.flags, visibility)
    check_keypoints(f"{photo.file_name}, annotation {found.number}", found.keypoints, visible, photo.size)
    points = torch.where(visible[:, None], found.keypoints, 0.0)
    side = Side(f"{prefix}/{photo.file_name}", photo.size, points, visible, torch.tensor(found.bbox))
    return Instance(str(found.number), file, found.category.name, side, found.category.family)
