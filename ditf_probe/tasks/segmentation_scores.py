"""Scores of dense prediction: per row and data set, accumulated over batches and ranks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditf_probe.data.segmentation import MaskDataset
from ditf_probe.data.segmentation_module import LoadedImage
from ditf_probe.metrics.intervals import resample_counts
from ditf_probe.metrics.miou import Floats, PixelCounts, segmentation_scores
from ditf_probe.tasks.measured import MeasuredDataset, MeasuredRow
from ditf_probe.tasks.rows import Row

RESAMPLES = 1000


def dataset_facts(dataset: MaskDataset) -> dict[str, Any]:
    """What is known of a data set that changes a number."""
    kind = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
    plain = {k: v for k, v in sorted(vars(dataset).items()) if not k.startswith("_") and isinstance(v, str | int)}
    return {"class": kind, "images": len(dataset), "classes": list(dataset.class_names), **plain}


class SegmentationSheet:
    """Pixel counts of several rows on one data set.

    Args:
        rows: Names of the rows.
        num_classes: Classes of the data.
        device: Where states live; that of the process group on several ranks.
    """

    def __init__(self, rows: Sequence[str], num_classes: int, device: torch.device) -> None:
        self.device = device
        self.counts = {row: PixelCounts(num_classes).to(device) for row in rows}

    def update(self, row: str, group: Sequence[LoadedImage], classes: Tensor) -> None:
        """Adds images of one size.

        Args:
            row: Name of the row.
            group: The images with their masks.
            classes: `(B, H, W)` predicted class of every pixel.
        """
        for loaded, found in zip(group, classes, strict=True):
            self.counts[row].update(found.to(self.device), loaded.mask.to(self.device), loaded.image.index)

    def result(
        self, name: str, dataset: MaskDataset, rows: Sequence[Row], parameters: Mapping[str, int]
    ) -> MeasuredDataset:
        """The scores of all ranks, with bootstrap resamples of the images; a collective operation."""
        measured, n = [], 0
        for row in rows:
            counts: Floats = self.counts[row.name].compute()["counts"]
            n = len(counts)
            values = {metric: float(score) for metric, score in segmentation_scores(counts.sum(0)).items()}
            resampled: dict[str, Floats] = {}
            if n > 1:
                times = resample_counts(n, RESAMPLES)
                resampled = segmentation_scores(np.tensordot(times, counts, axes=1))
            measured.append(MeasuredRow(row.name, row.kind, values, resampled, parameters[row.name]))
        facts = {"images": n, "classes": len(dataset.class_names)}
        return MeasuredDataset(name, dataset.unit, n, "mIoU", measured, facts)
