"""Mean intersection over union of semantic segmentation."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix

from ditf_probe.errors import InputError
from ditf_probe.metrics.states import joined

Floats = NDArray[np.float64]


def class_counts(predictions: Tensor, targets: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Pixels per class of one image.

    Args:
        predictions: `(H, W)` integers, classes.
        targets: `(H, W)` integers, classes or `ignore_index`.
        num_classes: C.
        ignore_index: Marks pixels that count nowhere.

    Returns:
        `(3, C)` int64: pixels that are in both, predicted ones, and true ones.
    """
    confusion = multiclass_confusion_matrix(
        predictions.long(), targets.long(), num_classes, ignore_index=ignore_index, validate_args=False
    )
    return torch.stack([confusion.diagonal(), confusion.sum(0), confusion.sum(1)])


def segmentation_scores(counts: Floats) -> dict[str, Floats]:
    """Scores from summed counts.

    A class counts in the mean where it is predicted or there, as in mmsegmentation and torchmetrics.

    Args:
        counts: `(..., 3, C)` from `class_counts`, summed over images.

    Returns:
        Percentages `(...)` under "mIoU", "mAcc" (mean over the classes that are there of their recall) and "aAcc"
        (share of pixels); NaN without pixels.
    """
    both, predicted, true = np.moveaxis(counts, -2, 0)
    union = predicted + true - both
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "mIoU": 100 * _mean(both / union, union > 0),
            "mAcc": 100 * _mean(both / true, true > 0),
            "aAcc": 100 * both.sum(-1) / true.sum(-1),
        }


def _mean(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    total: Floats = np.where(chosen, values, 0).sum(-1) / chosen.sum(-1)
    return total


class PixelCounts(Metric):
    """Pixels per class of every image, over batches and ranks; each image counts once, the first time.

    Args:
        num_classes: C.
        ignore_index: Marks pixels that count nowhere.
        **kwargs: Synchronisation options of torchmetrics.

    Raises:
        InputError: There are no classes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    image_index: list[Tensor]
    counts: list[Tensor]

    def __init__(self, num_classes: int, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise InputError("num_classes", num_classes, "use at least one class")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        for name in ("image_index", "counts"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor, image_index: int) -> None:
        """Adds one image.

        Args:
            predictions: `(H, W)` integers, classes; fewer than 2**24 pixels.
            targets: `(H, W)` integers, classes or `ignore_index`.
            image_index: Which image.

        Raises:
            InputError: Shapes differ, or a value is no class.
        """
        if predictions.shape != targets.shape:
            remedy = f"give one class per pixel, {tuple(targets.shape)}"
            raise InputError("predictions", tuple(predictions.shape), remedy)
        for name, values in (("predictions", predictions), ("targets", targets[targets != self.ignore_index])):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < self.num_classes:
                raise InputError(name, int(values.max()), f"give classes from 0 to {self.num_classes - 1}")
        found = class_counts(predictions, targets, self.num_classes, self.ignore_index)
        self.counts.append(found.flatten().to(self.device, torch.float32))
        self.image_index.append(torch.tensor([image_index], device=self.device, dtype=torch.float32))

    def compute(self) -> dict[str, Any]:
        """The counts `(N, 3, C)` of N images, in order of their index; on several ranks a collective operation."""
        _, first = np.unique(joined(self.image_index), return_index=True)
        counts = joined(self.counts).reshape(-1, 3, self.num_classes).astype(np.float64)
        return {"counts": counts[first]}


class MeanIntersectionOverUnion(PixelCounts):
    """mIoU, mean accuracy and pixel accuracy over all images of a data set, on any number of ranks.

    `update` and arguments are those of `PixelCounts`; `compute` gives percentages as in `segmentation_scores`.

    Example:
        >>> import torch
        >>> metric = MeanIntersectionOverUnion(num_classes=2)
        >>> metric.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 255]]), 0)
        >>> {name: round(float(score), 1) for name, score in metric.compute().items()}
        {'mIoU': 50.0, 'mAcc': 75.0, 'aAcc': 66.7}
    """

    def compute(self) -> dict[str, Any]:
        """Scores as 0-dimensional float32 tensors; NaN without any pixel."""
        scores = segmentation_scores(super().compute()["counts"].sum(0))
        return {name: torch.tensor(float(score), device=self.device) for name, score in scores.items()}
