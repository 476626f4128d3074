"""Scores of several rows on one data set, accumulated over batches and ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ditf_probe.data.pairs import Pair, PairDataset, threshold_base
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
        threshold: What thresholds are relative to, as in `threshold_base`, or "canvas", the longer side of the
            prepared target image; None is the choice of the data set.
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
        self.dataset = dataset
        self.threshold = dataset.threshold if threshold is None else threshold
        self.device = device
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
        predictions, real = pad_points([points for points, _ in scattered])
        similarity, _ = pad_points([cosines for _, cosines in scattered])
        targets, _ = pad_points([pair.target.keypoints for pair in pairs])
        visible, _ = pad_points([pair.visible for pair in pairs])
        values = {
            "predictions": predictions,
            "targets": targets,
            "visible": visible & real,
            "threshold_base": torch.tensor(
                [self._base(pair, match) for pair, match in zip(pairs, matches, strict=True)]
            ),
            "pair_index": torch.tensor([pair.index for pair in pairs]),
        }
        values = {name: tensor.to(self.device) for name, tensor in values.items()}
        self.pck[row].update(**values, category=[pair.category for pair in pairs])
        self._predictions[row].update(**values, similarity=similarity.to(self.device))

    def _base(self, pair: Pair, match: Match) -> float:
        if self.threshold == "canvas" and match.canvas is not None:
            return match.canvas
        return threshold_base(pair, self.threshold)

    def predictions(self) -> dict[str, Predictions]:
        """The predictions of every row over all ranks; a collective operation."""
        return {row: state.rows() for row, state in self._predictions.items()}


def _scatter(pair: Pair, match: Match) -> tuple[Tensor, Tensor]:
    """Points and cosines of what the source shows, on the rows of all keypoints; the others are zero."""
    visible = pair.source.visible
    points, cosines = torch.zeros(len(visible), 2), torch.zeros(len(visible))
    points[visible], cosines[visible] = match.points.float(), match.similarity.float()
    return points, cosines
