"""Where each keypoint was matched: kept per rank, gathered once, written out and read back without loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from ditf_probe.metrics.nearest import nearest_keypoints
from ditf_probe.metrics.states import Floats, check_matches, check_points, check_shapes, joined

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row per keypoint that the source shows, ordered by pair and keypoint; every pair once.

    Attributes:
        pair_index: `(R,)` which pair.
        keypoint: `(R,)` which keypoint of the pair.
        x: `(R,)` predicted column, in pixels of the original target image.
        y: `(R,)` predicted row.
        true_x: `(R,)` annotated column; NaN where the keypoint is not present.
        true_y: `(R,)` annotated row; NaN where the keypoint is not present.
        similarity: `(R,)` cosine of the match in [-1, 1]; NaN where a row does not compare features.
        threshold_base: `(R,)` what alpha is multiplied by, in pixels of the original target image; may be NaN where no
            keypoint of the pair is present.
        present: `(R,)` bool, whether the target shows the keypoint too.
        accepted: `(R,)` bool, False where the matching rule says "no match".
        nearest: `(R,)` the visible keypoint of the target that is nearest to the prediction, -1 without any; see
            `nearest_keypoints`.
        ceiling: `(R,)` distance from the annotated keypoint to the nearest centre of a cell of the target's grid, in
            pixels of the original target image; NaN without a grid, and where the keypoint is not present.
    """

    pair_index: Integers
    keypoint: Integers
    x: Floats
    y: Floats
    true_x: Floats
    true_y: Floats
    similarity: Floats
    threshold_base: Floats
    present: Booleans
    accepted: Booleans
    nearest: Integers
    ceiling: Floats

    def __len__(self) -> int:
        return len(self.pair_index)

    def where(self, chosen: Booleans) -> "Predictions":
        """Some of the rows, by `(R,)` bool."""
        return Predictions(**{name: getattr(self, name)[chosen] for name in COLUMNS})


COLUMNS = tuple(field.name for field in fields(Predictions))
KINDS: dict[str, type[Any]] = dict.fromkeys(COLUMNS, np.float32) | {
    **dict.fromkeys(("pair_index", "keypoint", "nearest"), np.int64),
    **dict.fromkeys(("present", "accepted"), np.bool_),
}
"""The type of each column."""


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
        source_visible: Tensor,
        target_visible: Tensor,
        similarity: Tensor,
        threshold_base: Tensor,
        pair_index: Tensor,
        accepted: Tensor | None = None,
        ceiling: Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            predictions: `(B, K, 2)` x before y, in pixels of the original target image.
            targets: `(B, K, 2)` annotated keypoints.
            source_visible: `(B, K)` bool; keypoints that the source does not show, padding among them, are left out.
            target_visible: `(B, K)` bool.
            similarity: `(B, K)` cosine of each match; NaN where nothing is compared.
            threshold_base: `(B,)` what alpha is multiplied by, in pixels; may be NaN where nothing is visible in both.
            pair_index: `(B,)` integers below 2**24.
            accepted: `(B, K)` bool, False where a rule says "no match"; by default every match is accepted.
            ceiling: `(B, K)` distance from the annotated keypoint to the nearest cell centre; NaN without a grid.

        Raises:
            InputError: Shapes that do not fit, or NaN where a number is due.
        """
        predictions, targets = predictions.float(), targets.float()
        shapes = {"source_visible": source_visible, "target_visible": target_visible, "accepted": accepted}
        check_shapes(predictions, **shapes)
        numbers = {"similarity": similarity, "ceiling": ceiling}
        check_matches(
            predictions, targets, source_visible & target_visible, threshold_base, pair_index, **shapes, **numbers
        )
        check_points("predictions", predictions, source_visible, pair_index)
        check_points("targets", targets, target_visible, pair_index)
        accepted = torch.ones_like(source_visible) if accepted is None else accepted
        ceiling = torch.full_like(similarity, torch.nan) if ceiling is None else ceiling
        nearest = nearest_keypoints(predictions, targets, target_visible)
        targets = targets.masked_fill(~target_visible[..., None], torch.nan)
        ceiling = ceiling.masked_fill(~target_visible, torch.nan)
        pair, keypoint = source_visible.nonzero(as_tuple=True)
        found, truth = predictions[pair, keypoint], targets[pair, keypoint]
        rest = (x[pair, keypoint] for x in (target_visible, accepted, nearest, ceiling))
        columns = (
            pair_index[pair],
            keypoint,
            *found.T,
            *truth.T,
            similarity[pair, keypoint],
            threshold_base[pair],
            *rest,
        )
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
    return Predictions(**{name: columns[name][first].astype(kind) for name, kind in KINDS.items()})


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
