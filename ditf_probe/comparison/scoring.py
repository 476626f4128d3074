"""How predictions are scored, and what they get right keypoint by keypoint."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ditf_probe.errors import InputError
from ditf_probe.metrics.pck import ALPHAS, pck_counts
from ditf_probe.metrics.predictions import Booleans, Predictions


@dataclass(frozen=True)
class Scoring:
    """How predictions are scored.

    Attributes:
        alphas: PCK thresholds as fractions.
        alpha: The one that intervals and differences refer to.
        strict: Compare with `<` instead of `<=`.
        resamples: Bootstrap resamples.
        seed: Of the bootstrap.
    """

    alphas: tuple[float, ...] = ALPHAS
    alpha: float = 0.10
    strict: bool = False
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.alpha not in self.alphas:
            raise InputError("alphas", list(self.alphas), f"name {self.alpha:g} among them, intervals refer to it")


@dataclass(frozen=True)
class Judgement:
    """What one row of a comparison gets right.

    Attributes:
        within: `(R, A)` bool, present in the target and matched within the threshold.
        correct: `(R, A)` bool, those of them that the matching rule accepts: what PCK counts.
        own: `(R, A)` bool, those of them that are nearest to their own keypoint: what PCK-dagger counts.
        reachable: `(R, A)` bool, whether a cell centre lies within the threshold; None where a keypoint has no grid.
    """

    within: Booleans
    correct: Booleans
    own: Booleans
    reachable: Booleans | None


def judge(predictions: Predictions, scoring: Scoring) -> Judgement:
    """Compares predictions with the annotation."""
    found = np.stack([predictions.x, predictions.y], axis=1)
    truth = np.stack([predictions.true_x, predictions.true_y], axis=1)
    within = _within(found, truth, predictions, scoring)
    correct = within & predictions.accepted[:, None]
    reachable = None
    if not np.isnan(predictions.ceiling[predictions.present]).any():
        gaps = np.stack([predictions.ceiling, np.zeros_like(predictions.ceiling)], axis=1)
        reachable = _within(gaps, np.zeros_like(gaps), predictions, scoring)
    return Judgement(within, correct, correct & (predictions.nearest == predictions.keypoint)[:, None], reachable)


def _within(
    points: NDArray[np.float32], others: NDArray[np.float32], predictions: Predictions, scoring: Scoring
) -> Booleans:
    a, b = (torch.from_numpy(values)[:, None] for values in (points, others))
    present, base = torch.from_numpy(predictions.present)[:, None], torch.from_numpy(predictions.threshold_base)
    _, correct = pck_counts(a, b, present, base, scoring.alphas, strict=scoring.strict)
    found: Booleans = correct.numpy().astype(bool)
    return found
