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

    def update(self, row: str, pairs: Sequence[Pair], matches: Sequence[Match]) -> None:
        """Adds a batch of pairs.

        Args:
            row: Name of the row.
            pairs: Annotations.
            matches: Per pair what was found.
        """
        scattered = [_scatter(pair, match) for pair, match in zip(pairs, matches, strict=True)]
        predictions, similarity, accepted, ceiling = (pad_points(column)[0] for column in zip(*scattered, strict=True))
        source_visible, _ = pad_points([pair.source.visible for pair in pairs])
        target_visible, _ = pad_points([pair.target.visible for pair in pairs])
        bases = [threshold_base(pair, self.threshold, match.canvas) for pair, match in zip(pairs, matches, strict=True)]
        shared = {
            "predictions": predictions,
            "targets": pad_points([pair.target.keypoints for pair in pairs])[0],
            "threshold_base": torch.tensor(bases),
            "pair_index": torch.tensor([pair.index for pair in pairs]),
            "accepted": accepted,
        }
        shared = {name: tensor.to(self.device) for name, tensor in shared.items()}
        shown = {"source_visible": source_visible.to(self.device), "target_visible": target_visible.to(self.device)}
        visible = (source_visible & target_visible).to(self.device)
        self.pck[row].update(**shared, visible=visible, category=[pair.category for pair in pairs])
        numbers = {"similarity": similarity.to(self.device), "ceiling": ceiling.to(self.device)}
        self._predictions[row].update(**shared, **shown, **numbers)

    def predictions(self) -> dict[str, Predictions]:
        """The predictions of every row over all ranks; a collective operation."""
        return {row: state.rows() for row, state in self._predictions.items()}


def _scatter(pair: Pair, match: Match) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What was found for the keypoints that the source shows, on the rows of all; and the ceiling of the grid."""
    visible = pair.source.visible
    count = len(visible)
    points, cosines, accepted = torch.zeros(count, 2), torch.zeros(count), torch.zeros(count, dtype=torch.bool)
    points[visible], cosines[visible] = match.points.float(), match.similarity.float()
    accepted[visible] = match.accepted
    if match.grid is None:
        return points, cosines, accepted, torch.full((count,), torch.nan)
    ceiling = distance_to_cells(pair.target.keypoints, pair.target.size, match.grid)
    return points, cosines, accepted, ceiling.float()
