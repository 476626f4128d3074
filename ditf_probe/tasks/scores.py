"""Scores of several rows on one data set, accumulated over batches and ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ditf_probe.data.pairs import Pair, PairDataset, Threshold, threshold_base
from ditf_probe.errors import check_choice
from ditf_probe.metrics.ceiling import distance_to_cells
from ditf_probe.metrics.pck import PercentageCorrectKeypoints
from ditf_probe.metrics.predictions import KeypointPredictions, Predictions, pad_points
from ditf_probe.tasks.matches import Match


class Scores:
    """One PCK metric and one collection of predictions per row.

    Args:
        dataset: The data set that is scored.
        rows: Names of the rows.
        alphas: PCK thresholds as fractions.
        strict: As in `PercentageCorrectKeypoints`.
        device: Where states live; that of the process group on several ranks.
        threshold: What thresholds are relative to, as in `threshold_base`; None takes that of the data set.

    Raises:
        InputError: An unknown threshold.
    """

    def __init__(
        self,
        dataset: PairDataset,
        rows: Sequence[str],
        alphas: Sequence[float],
        strict: bool,
        device: torch.device,
        threshold: str | None = None,
    ) -> None:
        self.threshold = dataset.threshold if threshold is None else threshold
        check_choice("threshold", self.threshold, Threshold)
        self.dataset, self.device = dataset, device
        self.pck = {row: PercentageCorrectKeypoints(alphas, strict=strict).to(device) for row in rows}
        self._predictions = {row: KeypointPredictions().to(device) for row in rows}
        self._last: _Annotations | None = None

    def update(self, row: str, pairs: Sequence[Pair], matches: Sequence[Match]) -> None:
        """Adds a batch of pairs.

        Args:
            row: Name of the row.
            pairs: Annotations.
            matches: Per pair what was found.
        """
        shown = self._annotations(pairs)
        bases = [threshold_base(pair, self.threshold, match.canvas) for pair, match in zip(pairs, matches, strict=True)]
        shared = {
            "predictions": shown.scattered([match.points.float() for match in matches]),
            "targets": shown.targets,
            "threshold_base": torch.tensor(bases),
            "pair_index": shown.indices,
            "accepted": shown.scattered([match.accepted for match in matches]),
        }
        numbers = {
            "similarity": shown.scattered([match.similarity.float() for match in matches]),
            "ceiling": torch.stack([shown.ceiling(i, match.grid) for i, match in enumerate(matches)]),
        }
        sides = {"source_visible": shown.source_visible, "target_visible": shown.target_visible}
        shared, numbers, sides = ({k: x.to(self.device) for k, x in part.items()} for part in (shared, numbers, sides))
        visible = sides["source_visible"] & sides["target_visible"]
        self.pck[row].update(**shared, visible=visible, category=[pair.category for pair in pairs])
        self._predictions[row].update(**shared, **sides, **numbers)

    def _annotations(self, pairs: Sequence[Pair]) -> "_Annotations":
        """What all rows share of a batch; they come one after the other."""
        if self._last is None or self._last.pairs is not pairs:
            self._last = _Annotations(pairs)
        return self._last

    def predictions(self) -> dict[str, Predictions]:
        """The predictions of every row over all ranks; a collective operation."""
        return {row: state.rows() for row, state in self._predictions.items()}


class _Annotations:
    """A batch of pairs as padded tensors."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self.source_visible, _ = pad_points([pair.source.visible for pair in pairs])
        self.target_visible, _ = pad_points([pair.target.visible for pair in pairs])
        self.targets, _ = pad_points([pair.target.keypoints for pair in pairs])
        self.indices = torch.tensor([pair.index for pair in pairs])
        self._ceilings: dict[tuple[int, tuple[int, int] | None], Tensor] = {}

    def scattered(self, found: Sequence[Tensor]) -> Tensor:
        """What was found for the keypoints that each source shows, on the rows of all; zeros elsewhere."""
        values = torch.cat(list(found))
        padded = values.new_zeros(*self.source_visible.shape, *values.shape[1:])
        padded[self.source_visible] = values
        return padded

    def ceiling(self, number: int, grid: tuple[int, int] | None) -> Tensor:
        """`(K,)` distance from the target keypoints of a pair to the cells of a grid, NaN without one."""
        if (number, grid) not in self._ceilings:
            side, padded = self.pairs[number].target, self.targets.new_full(self.targets.shape[1:2], torch.nan)
            if grid is not None:
                padded[: len(side.keypoints)] = distance_to_cells(side.keypoints, side.size, grid).float()
            self._ceilings[number, grid] = padded
        return self._ceilings[number, grid]
