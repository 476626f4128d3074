"""What a row is told beside PCK: PCK-dagger, geometry-aware subset, ceiling of the grid, KAP, rejections."""

from typing import Any

import numpy as np

from ditf_probe.comparison.keypoints import DECIMALS, Keypoints
from ditf_probe.comparison.scoring import Judgement, Scoring
from ditf_probe.metrics.average_precision import average_precision
from ditf_probe.metrics.pck import alpha_key
from ditf_probe.metrics.predictions import Booleans, Predictions


def measures(keypoints: Keypoints, found: Predictions, judged: Judgement, scoring: Scoring) -> dict[str, Any]:
    """The entries of one row; None where a measure does not apply.

    Args:
        keypoints: R keypoints.
        found: The row's predictions of them.
        judged: What it gets right.
        scoring: The thresholds.
    """
    alphas, present = scoring.alphas, keypoints.present
    return {
        "pck_dagger": keypoints.scores(present, judged.own, alphas),
        "geometry_aware": keypoints.scores(keypoints.geometry_aware, judged.correct, alphas),
        "ceiling": None if judged.reachable is None else keypoints.scores(present, judged.reachable, alphas),
        "kap": _kap(found, judged, scoring),
        "coverage": _coverage(found, judged, scoring),
    }


def _kap(found: Predictions, judged: Judgement, scoring: Scoring) -> dict[str, float] | None:
    """Average precision of all keypoints that the sources show; None where a row has no similarity."""
    if np.isnan(found.similarity).any():
        return None
    confidence = np.where(found.accepted, found.similarity, -np.inf)
    return {
        alpha_key(alpha): round(average_precision(confidence, positive), DECIMALS)
        for alpha, positive in zip(scoring.alphas, judged.within.T, strict=True)
    }


def _coverage(found: Predictions, judged: Judgement, scoring: Scoring) -> dict[str, Any]:
    """How many keypoints the matching rule accepts, and how many of those are right."""
    accepted = found.present & found.accepted
    hidden = ~found.present
    shares = [_share(correct, accepted) for correct in judged.correct.T]
    precision = {alpha_key(alpha): share for alpha, share in zip(scoring.alphas, shares, strict=True)}
    return {
        "accepted": _share(found.accepted, found.present),
        "pck_accepted": precision if accepted.any() else None,
        "rejected_hidden": _share(~found.accepted, hidden),
    }


def _share(part: Booleans, whole: Booleans) -> float | None:
    """Percent of the keypoints in `whole` that are in `part` too."""
    return round(100 * float(part[whole].mean()), DECIMALS) if whole.any() else None
