"""What a pair is: two images, their keypoints, and what an evaluation needs to know about them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from ditf_probe.errors import InputError, check_choice

Threshold = Literal["bbox", "keypoints", "image", "canvas"]
"""What PCK thresholds can be relative to."""


@dataclass(frozen=True, slots=True)
class Side:
    """One image of a pair, in the pixels of the original image.

    Attributes:
        image_id: Identifies the picture; equal ids mean equal pixels.
        size: Height and width of the original image.
        keypoints: `(K, 2)` float32, x before y; (0, 0) is the centre of the top-left pixel.
        visible: `(K,)` bool. Coordinates of invisible keypoints carry no meaning.
        bbox: `(4,)` float32, x0, y0, x1, y1 of the object.
    """

    image_id: str
    size: tuple[int, int]
    keypoints: Tensor
    visible: Tensor
    bbox: Tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images of one category with keypoints that correspond row by row.

    Attributes:
        index: Position in the data set; metrics count each index once.
        category: Name of the category.
        unit: The independent sampling unit (instance pair, photo, set) that a bootstrap resamples.
        source: The image whose keypoints are given.
        target: The image whose keypoints are sought.
        label: Class label known to a class-conditional backbone, if any. Never used in zero-shot rows.
        attributes: What else the annotations say of the pair, for break-downs: name to level, such as "viewpoint" to
            "1" or "split" to "intra-species".
    """

    index: int
    category: str
    unit: str
    source: Side
    target: Side
    label: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def visible(self) -> Tensor:
        """`(K,)` bool: keypoints visible in both images."""
        return self.source.visible & self.target.visible


class ImageSource(Protocol):
    """Images by id, as a feature bank reads them: equal ids mean equal pixels.

    Attributes:
        name: Key of the data set in results.
    """

    name: str

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) of every image, in order of first use."""

    def image(self, image_id: str) -> Tensor:
        """The pixels of an image at its native size: `(3, H, W)` uint8 RGB."""


class PairDataset(Dataset[Pair], ABC):
    """A list of pairs. Annotations and pixels are apart, so that an image is decoded once, not once per pair.

    Attributes:
        name: Key of the data set in results.
        unit: What the sampling units are, in words ("instance pair", "photo", "set").
        threshold: What PCK thresholds are relative to: "bbox", "keypoints", "image" or "canvas".
        problems: Records that were left out because they are damaged, where the data set was told to keep going.
    """

    name: str
    unit: str
    threshold: str = "bbox"
    problems: tuple[InputError, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Pair:
        """The annotations of one pair, without pixels. Raises IndexError past the end."""

    @abstractmethod
    def image(self, image_id: str) -> Tensor:
        """The pixels of an image at its native size: `(3, H, W)` uint8 RGB."""

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        """Names of the keypoints of a category, in row order; empty where there are none."""
        del category
        return ()

    def keypoint_groups(self, category: str) -> tuple[tuple[int, ...], ...]:
        """Keypoints of a category that differ in left, right or order only, as groups of row numbers.

        They make the geometry-aware subset of GeoAware-SC (Zhang et al., CVPR 2024); empty where none are known.
        """
        del category
        return ()

    def files(self) -> tuple[Path, ...]:
        """The image files of the pair list, each once; empty where images are made or come with a package."""
        return ()

    def counts(self) -> dict[str, int]:
        """How many pairs, images and keypoints visible in both images there are, for reports."""
        visible = sum(int(self[index].visible.sum()) for index in range(len(self)))
        return {"pairs": len(self), "images": len(self.image_ids()), "keypoints": visible}

    def image_ids(self) -> list[str]:
        """Every image of the pair list once, in order of first use."""
        pairs = (self[i] for i in range(len(self)))
        return list(dict.fromkeys(side.image_id for pair in pairs for side in (pair.source, pair.target)))

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) of every image of the pair list, in order of first use."""
        pairs = (self[index] for index in range(len(self)))
        return {side.image_id: side.size for pair in pairs for side in (pair.source, pair.target)}


def threshold_base(pair: Pair, kind: str, canvas: float | None = None) -> float:
    """Length in target pixels that PCK thresholds are relative to: the longer side of a box.

    Args:
        pair: The pair.
        kind: "bbox" (object box of the target), "keypoints" (extent of the target keypoints that are visible in both
            images), "image" (the target image) or "canvas" (the padded input of the model: GeoAware-SC on PF-PASCAL).
            Old code took the extent of the keypoints with the -1 of missing ones among them, which inflates it; that is
            not reproduced.
        canvas: Longer side of the padded input, in pixels of the original target image; without padding the image
            itself is the canvas.

    Returns:
        The longer side, in pixels of the original target image; NaN where "keypoints" has nothing to span.

    Raises:
        InputError: An unknown kind.
    """
    check_choice("threshold", kind, Threshold)
    if kind == "canvas" and canvas is not None:
        return float(canvas)
    if kind in ("image", "canvas"):
        return float(max(pair.target.size))
    if kind == "bbox":
        x0, y0, x1, y1 = pair.target.bbox.tolist()
        return float(max(x1 - x0, y1 - y0))
    points = pair.target.keypoints[pair.visible]
    return float((points.amax(0) - points.amin(0)).max()) if len(points) else float("nan")


def check_range(name: str, value: int, least: int, most: int | None = None) -> None:
    """Refuses an argument of a data set that is out of range.

    Raises:
        InputError: If `value` is less than `least` or more than `most`.
    """
    if value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(name, value, f"use a whole number {limits}")
