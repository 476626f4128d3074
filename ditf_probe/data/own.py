"""One's own data: a folder of images and a table of keypoints."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from ditf_probe.data.instances import Instance, InstancePairs, check_box, check_keypoints
from ditf_probe.data.own_files import LabelledImage, read_labels
from ditf_probe.data.pair_forming import pairs_within_categories
from ditf_probe.data.pairs import Side, check_range
from ditf_probe.data.photos import photo_size
from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError, check_choice

Threshold = Literal["keypoints", "bbox", "image"]


class KeypointFolder(InstancePairs):
    """Pairs of two images of one category from a folder of images with keypoints, one object an image.

    A table has one row per keypoint, with the columns `image` (path below the folder), `category`, `keypoint` (its
    name), `x` and `y` in pixels, (0, 0) being the centre of the top-left pixel; and, if wanted, `visible` (0 or 1)
    and the object's box `x0`, `y0`, `x1`, `y1`. A keypoint without a row, with `visible` 0, or with empty or NaN
    coordinates is missing. A JSON file says the same as `keypoints.schema.json` of this package describes, and may
    name groups of keypoints that differ in left and right; otherwise groups are made from names such as `left_eye`
    and `right_eye`.

    Image ids are made of the content, so copies share one id, and two copies make no pair. The source image is the
    sampling unit; pairs still share target images, so intervals are somewhat too narrow.

    Args:
        root: The folder of images.
        annotations: The `.csv` or `.json` file; a relative path starts from the folder.
        num_pairs: Draws so many pairs; None takes all ordered pairs, category by category.
        min_visible: Fewest keypoints that are visible in both images.
        threshold: What PCK thresholds are relative to: "keypoints" (longer side of the box around the target's visible
            keypoints), "bbox" (the annotated box, which every image must then have) or "image".
        seed: Seed of the draw.
        pairs_file: A list that `write_pairs` wrote, or a CSV file with the columns `source` and `target` that hold
            images as in the annotations, in place of forming pairs.
        keep_going: Leave out damaged rows and images and list them in `problems`.

    Raises:
        InputError: An argument cannot be used, a file is missing or damaged, or no pair can be formed.
    """

    name = "keypoint-folder"
    unit = "source image"

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path = "keypoints.csv",
        num_pairs: int | None = None,
        min_visible: int = 1,
        threshold: Threshold = "keypoints",
        seed: int = 0,
        pairs_file: str | Path | None = None,
        keep_going: bool = False,
    ) -> None:
        check_choice("threshold", threshold, Threshold)
        check_range("min_visible", min_visible, 1)
        check_range("seed", seed, 0)
        if num_pairs is not None:
            check_range("num_pairs", num_pairs, 1)
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise InputError("root", str(root), "no such folder; give a folder of images")
        self.annotations, self.threshold, self.seed = str(annotations), threshold, seed
        self.num_pairs, self.min_visible = num_pairs, min_visible
        problems = Problems(keep_going)
        labels = read_labels(folder / annotations, problems)
        self._names, self._groups = labels.names, labels.groups
        instances = []
        for image in labels.images:
            with problems.record():
                instances.append(self._instance(folder, image))
        formed = partial(pairs_within_categories, instances, num_pairs, min_visible, seed)
        self._pair_up(instances, formed, pairs_file, problems)

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        """Names in row order: as the JSON file lists them, or as they first appear in the table."""
        return self._names[category]

    def keypoint_groups(self, category: str) -> tuple[tuple[int, ...], ...]:
        """Groups that the JSON file names, or keypoints whose names differ in "left" and "right" only."""
        return self._groups[category]

    def _instance(self, folder: Path, image: LabelledImage) -> Instance:
        file = folder / image.file
        size = photo_size(file)
        names = self._names[image.category]
        visible = torch.tensor([name in image.points for name in names])
        points = torch.tensor([image.points.get(name, (0.0, 0.0)) for name in names])
        check_keypoints(image.file, points, visible, size)
        if image.box is not None:
            check_box(image.file, image.box)
            box = torch.tensor(image.box)
        elif self.threshold == "bbox":
            raise InputError("bbox", image.file, 'has no box; give one, or use threshold "keypoints" or "image"')
        else:
            shown = points[visible] if visible.any() else torch.zeros(1, 2)
            box = torch.cat([shown.amin(0), shown.amax(0)])
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        side = Side(f"{self.name}/{digest[:16]}", size, points, visible, box)
        return Instance(image.file, file, image.category, side)
