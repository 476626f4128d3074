"""Scores of several rows on one data set of videos, over batches and ranks, and the rows that they become."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ditf_probe.data.videos import VideoSequence
from ditf_probe.metrics.intervals import resample_counts
from ditf_probe.metrics.segmentation import ObjectScores, VideoObjectSegmentation
from ditf_probe.tasks.measured import MeasuredRow
from ditf_probe.tasks.records import FROZEN, Kind

PRIMARY = "J&F"


class VideoScores:
    """One metric per row.

    Args:
        rows: Names of the rows.
        device: Where states live; that of the process group on several ranks.
    """

    def __init__(self, rows: Sequence[str], device: torch.device) -> None:
        self._metrics = {row: VideoObjectSegmentation().to(device) for row in rows}

    def update(self, row: str, sequence: VideoSequence, predictions: Tensor, targets: Tensor) -> None:
        """Adds a sequence, `(T, H, W)` predicted and annotated objects."""
        self._metrics[row].update(predictions, targets, sequence.num_objects, sequence.index)

    def objects(self) -> dict[str, ObjectScores]:
        """The objects of every row over all ranks; a collective operation."""
        return {row: metric.rows() for row, metric in self._metrics.items()}


def row_of_objects(
    name: str,
    kind: Kind,
    scores: ObjectScores,
    *,
    parameters: int = 0,
    notes: tuple[str, ...] = (),
    backbone: str = FROZEN,
    resamples: int = 2000,
    seed: int = 0,
) -> MeasuredRow:
    """A row of means over objects, as the official evaluation takes them; resampled by sequence.

    Args:
        name: Name of the row.
        kind: Kind of the row.
        scores: Of every object of every sequence.
        parameters: Number of trained parameters.
        notes: Remarks for the table.
        backbone: As in `RowResult`.
        resamples: R, number of bootstrap resamples of the sequences.
        seed: Of the bootstrap; the same for all rows.
    """
    names, sequence = np.unique(scores.sequence_index, return_inverse=True)
    counts = np.bincount(sequence, minlength=len(names))
    values, resampled = {}, {}
    times = resample_counts(len(names), resamples, seed) if len(names) > 1 else None
    for metric, per_object in scores.metrics().items():
        values[metric] = float(per_object.mean()) if len(per_object) else float("nan")
        if times is not None:
            # Objects of one sequence go right or wrong together, so sequences are drawn.
            sums = np.bincount(sequence, weights=per_object, minlength=len(names))
            resampled[metric] = (times @ sums) / (times @ counts)
    return MeasuredRow(name, kind, values, resampled, parameters, notes, backbone)
