"""Where each visible keypoint was matched: kept per rank, gathered once, written out and read back without loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from ditf_probe.metrics.states import Floats, check_matches, joined

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row per visible keypoint, ordered by pair and keypoint; every pair once.

    Attributes:
        pair_index: `(R,)` which pair.
        keypoint: `(R,)` which keypoint of the pair.
        x: `(R,)` predicted column, in pixels of the original target image.
        y: `(R,)` predicted row.
        true_x: `(R,)` annotated column.
        true_y: `(R,)` annotated row.
        similarity: `(R,)` cosine of the match in [-1, 1]; NaN where a row does not compare features.
        threshold_base: `(R,)` what alpha is multiplied by, in pixels of the original target image.
    """

    pair_index: Integers
    keypoint: Integers
    x: Floats
    y: Floats
    true_x: Floats
    true_y: Floats
    similarity: Floats
    threshold_base: Floats

    def __len__(self) -> int:
        return len(self.pair_index)


COLUMNS = tuple(field.name for field in fields(Predictions))


class KeypointPredictions(Metric):
    """Collects predictions over batches and ranks.

    Padded loaders may show a pair twice; the first copy counts.
    """

    full_state_update = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in COLUMNS:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        predictions: Tensor,
        targets: Tensor,
        visible: Tensor,
        similarity: Tensor,
        threshold_base: Tensor,
        pair_index: Tensor,
    ) -> None:
        """Adds a batch.

        Args:
            predictions: `(B, K, 2)` x before y, in pixels of the original target image.
            targets: `(B, K, 2)` annotated keypoints.
            visible: `(B, K)` bool; other keypoints, padding among them, are left out.
            similarity: `(B, K)` cosine of each match; NaN where nothing is compared.
            threshold_base: `(B,)` what alpha is multiplied by, in pixels.
            pair_index: `(B,)` integers below 2**24.

        Raises:
            InputError: Shapes that do not fit, or NaN where a number is due.
        """
        predictions, targets = predictions.float(), targets.float()
        check_matches(predictions, targets, visible, threshold_base, pair_index, similarity)
        pair, keypoint = visible.nonzero(as_tuple=True)
        found, truth = predictions[pair, keypoint], targets[pair, keypoint]
        columns = (pair_index[pair], keypoint, *found.T, *truth.T, similarity[pair, keypoint], threshold_base[pair])
        for name, values in zip(COLUMNS, columns, strict=True):
            getattr(self, name).append(values.detach().to(self.device, torch.float32))

    def compute(self) -> dict[str, Floats]:
        """The columns of all ranks, as they came; on several ranks a collective operation.

        Arrays in a dictionary, since torchmetrics squeezes tensors of one element and refuses frozen dataclasses.
        """
        return {name: joined(getattr(self, name)) for name in COLUMNS}

    def rows(self) -> Predictions:
        """The rows of all ranks, each keypoint of each pair once; a collective operation like `compute`."""
        return unique_rows(self.compute())


def unique_rows(columns: Mapping[str, NDArray[Any]]) -> Predictions:
    """Sorts rows by pair and keypoint and keeps the first of equals.

    Args:
        columns: Equally long columns, named as in `Predictions`.
    """
    keys = np.stack([columns["pair_index"], columns["keypoint"]]).astype(np.int64)
    _, first = np.unique(keys, axis=1, return_index=True)
    numbers = (columns[name][first].astype(np.float32) for name in COLUMNS[2:])
    return Predictions(keys[0, first], keys[1, first], *numbers)


def pad_points(points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stacks ragged lists of points.

    Args:
        points: B tensors `(K_b, ...)`.

    Returns:
        `(B, K, ...)` padded with zeros to the longest, and `(B, K)` bool, True where a row is real.
    """
    padded = torch.nn.utils.rnn.pad_sequence(list(points), batch_first=True)
    lengths = torch.tensor([len(rows) for rows in points], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
