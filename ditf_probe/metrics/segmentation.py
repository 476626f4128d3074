"""Region similarity J and boundary measure F of objects in video, as the official evaluation of DAVIS takes them.

Perazzi et al., CVPR 2016, section 4, and the code of the DAVIS 2017 evaluation: J is the intersection over union of a
frame, F the harmonic mean of precision and recall of boundary pixels, matched within 0.008 of the image diagonal. The
first frame of a sequence, whose mask is given, and the last (for the sake of early methods that had no result for it)
do not count, in DAVIS-2016 and DAVIS-2017 alike. Each object of a sequence has the mean of its frames, the share of
frames above one half ("recall"), and the first quarter of the frames less the last ("decay"); a data set has the means
over all its objects, and J&F is the mean of J and F.
"""

from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from ditf_probe.errors import InputError
from ditf_probe.metrics.states import LARGEST_INDEX, joined

BOUND_TH = 0.008
METRICS = ("J&F", "J", "J recall", "J decay", "F", "F recall", "F decay")

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


def region_similarity(prediction: Mask, target: Mask) -> float:
    """J of one object in one frame.

    Args:
        prediction: `(H, W)` bool.
        target: `(H, W)` bool.

    Returns:
        Intersection over union, 0 to 1; 1 where both are empty.
    """
    union = int(np.count_nonzero(prediction | target))
    return int(np.count_nonzero(prediction & target)) / union if union else 1.0


def boundary_map(mask: Mask) -> Mask:
    """Pixels that differ from the one to the right, below, or right and below.

    The boundary is one pixel wide and lies half a pixel towards the top left. In the last row only the pixel to the
    right counts, in the last column the one below, and the last pixel of all is never one (`seg2bmap` of D. Martin).

    Args:
        mask: `(H, W)` bool.

    Returns:
        `(H, W)` bool.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, across = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    # With the edge repeated, what lies across the last row is to the right, and across the last column below.
    boundary: Mask = (mask != right) | (mask != below) | (mask != across)
    return boundary


def boundary_measure(prediction: Mask, target: Mask, bound_th: float = BOUND_TH) -> float:
    """F of one object in one frame.

    Args:
        prediction: `(H, W)` bool.
        target: `(H, W)` bool.
        bound_th: Distance within which boundaries match: a part of the image diagonal, rounded up to whole pixels, or
            pixels where it is 1 or more.

    Returns:
        Harmonic mean of precision and recall, 0 to 1. Without any boundary pixel on both sides it is 1, on one side 0.
    """
    radius = int(bound_th if bound_th >= 1 else np.ceil(bound_th * np.linalg.norm(prediction.shape)))
    found, truth = boundary_map(prediction), boundary_map(target)
    num_found, num_truth = int(np.count_nonzero(found)), int(np.count_nonzero(truth))
    if not num_found or not num_truth:
        return float(num_found == num_truth)
    disk = _disk(radius)
    precision = int(np.count_nonzero(found & _dilated(truth, disk))) / num_found
    recall = int(np.count_nonzero(truth & _dilated(found, disk))) / num_truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def frame_scores(prediction: Tensor, target: Tensor, num_objects: int) -> tuple[Floats, Floats]:
    """J and F of every object in one frame.

    Args:
        prediction: `(H, W)` whole numbers, 0 the background, objects from 1.
        target: `(H, W)` the same.
        num_objects: K.

    Returns:
        J and F, each `(K,)`, 0 to 1.
    """
    found, truth = prediction.cpu().numpy(), target.cpu().numpy()
    objects = [(found == number, truth == number) for number in range(1, num_objects + 1)]
    region = np.array([region_similarity(*pair) for pair in objects])
    return region, np.array([boundary_measure(*pair) for pair in objects])


def sequence_statistics(values: Floats) -> tuple[float, float, float]:
    """Mean, recall and decay of one object.

    Args:
        values: `(T,)` J or F of the frames that count, in order.

    Returns:
        The mean; the share of frames above one half; and the mean of the first of four equal parts less that of the
        last, which share their border frames. NaN without any frame.
    """
    if not len(values):
        return (float("nan"),) * 3
    ends = np.floor(np.linspace(1, len(values), 5) + 0.5 + 1e-10).astype(int) - 1
    first, last = values[: ends[1] + 1], values[ends[3] :]
    return float(values.mean()), float((values > 0.5).mean()), float(first.mean() - last.mean())


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """One row per object, ordered by sequence and object; every object once. Scores are percentages.

    Attributes:
        sequence_index: `(R,)` which sequence.
        object_number: `(R,)` which of its objects, from 1.
        region: `(R,)` mean of J.
        region_recall: `(R,)` frames with J above one half.
        region_decay: `(R,)` J of the first quarter less the last.
        boundary: `(R,)` mean of F.
        boundary_recall: `(R,)` frames with F above one half.
        boundary_decay: `(R,)` F of the first quarter less the last.
    """

    sequence_index: NDArray[np.int64]
    object_number: NDArray[np.int64]
    region: Floats
    region_recall: Floats
    region_decay: Floats
    boundary: Floats
    boundary_recall: Floats
    boundary_decay: Floats

    def metrics(self) -> dict[str, Floats]:
        """Score of every object by the names of `METRICS`, each `(R,)`."""
        region = self.region, self.region_recall, self.region_decay
        boundary = self.boundary, self.boundary_recall, self.boundary_decay
        return dict(zip(METRICS, ((self.region + self.boundary) / 2, *region, *boundary), strict=True))


_COLUMNS = tuple(field.name for field in fields(ObjectScores))


class VideoObjectSegmentation(Metric):
    """J, F and J&F over the objects of all sequences, on any number of ranks.

    As input to `update` the metric accepts whole sequences:

    - `predictions` `(T, H, W)` and `targets` `(T, H, W)`: whole numbers, 0 the background, objects from 1. The first
      and the last frame do not count;
    - `num_objects`: objects of the first frame; a prediction or target beyond is an error;
    - `sequence_index`: a sequence counts once, the first time, however often padded loaders show it.

    As output it gives percentages by the names of `METRICS`, as 0-dimensional float32 tensors; NaN without any object.

    Args:
        **kwargs: Synchronisation options of torchmetrics.

    Raises:
        InputError: Shapes that do not fit, or objects that are none.

    Example:
        >>> import torch
        >>> metric = VideoObjectSegmentation()
        >>> targets = torch.zeros(4, 20, 30, dtype=torch.uint8)
        >>> targets[:, 5:15, 5:15] = 1
        >>> metric.update(targets, targets, num_objects=1, sequence_index=0)
        >>> metric.compute()["J&F"]
        tensor(100.)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 100.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in _COLUMNS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor, num_objects: int, sequence_index: int) -> None:
        """Adds a sequence; shapes are those of the class."""
        _check(predictions, targets, num_objects, sequence_index)
        frames = [
            frame_scores(found, truth, num_objects)
            for found, truth in zip(predictions[1:-1], targets[1:-1], strict=True)
        ]
        regions = np.array([region for region, _ in frames]).reshape(-1, num_objects)
        boundaries = np.array([boundary for _, boundary in frames]).reshape(-1, num_objects)
        rows = []
        for number in range(num_objects):
            scores = (*sequence_statistics(regions[:, number]), *sequence_statistics(boundaries[:, number]))
            rows.append((sequence_index, number + 1, *(100 * score for score in scores)))
        for name, values in zip(_COLUMNS, zip(*rows, strict=True), strict=True):
            getattr(self, name).append(torch.tensor(values, dtype=torch.float32, device=self.device))

    def compute(self) -> dict[str, Tensor]:
        """Means over all objects so far, over all ranks."""
        metrics = _unique({name: joined(getattr(self, name)) for name in _COLUMNS}).metrics()
        means = {name: values.mean() if len(values) else np.nan for name, values in metrics.items()}
        return {name: torch.tensor(mean, dtype=torch.float32, device=self.device) for name, mean in means.items()}

    def rows(self) -> ObjectScores:
        """Every object of all ranks once; a collective operation like `compute`."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return _unique({name: joined(getattr(self, name)) for name in _COLUMNS})


def _unique(columns: dict[str, NDArray[Any]]) -> ObjectScores:
    """Sorts rows by sequence and object and keeps the first of equals."""
    keys = np.stack([columns["sequence_index"], columns["object_number"]]).astype(np.int64)
    _, first = np.unique(keys, axis=1, return_index=True)
    scores = (columns[name][first].astype(np.float64) for name in _COLUMNS[2:])
    return ObjectScores(keys[0, first], keys[1, first], *scores)


def _disk(radius: int) -> NDArray[np.uint8]:
    """`(2 r + 1, 2 r + 1)`: 1 within the radius, as `skimage.morphology.disk`."""
    squares = np.arange(-radius, radius + 1) ** 2
    return (squares[:, None] + squares <= radius**2).astype(np.uint8)


def _dilated(mask: Mask, element: NDArray[np.uint8]) -> Mask:
    return np.asarray(cv2.dilate(mask.astype(np.uint8), element), dtype=np.bool_)


def _check(predictions: Tensor, targets: Tensor, num_objects: int, sequence_index: int) -> None:
    if predictions.ndim != 3 or predictions.shape != targets.shape:
        shapes = f"{tuple(predictions.shape)} for targets {tuple(targets.shape)}"
        raise InputError("predictions", shapes, "give (T, H, W), both alike")
    if num_objects < 1:
        raise InputError("num_objects", num_objects, "give the number of objects of the first frame, 1 or more")
    if not 0 <= sequence_index < LARGEST_INDEX:
        raise InputError("sequence_index", sequence_index, f"number the sequences from 0 to {LARGEST_INDEX - 1}")
    for name, masks in (("predictions", predictions), ("targets", targets)):
        if masks.is_floating_point() or masks.dtype == torch.bool:
            raise InputError(name, masks.dtype, "give whole numbers")
        if masks.numel() and (int(masks.max()) > num_objects or int(masks.min()) < 0):
            found = f"values {int(masks.min())} to {int(masks.max())}"
            raise InputError(name, found, f"number the objects from 1 to {num_objects}")
