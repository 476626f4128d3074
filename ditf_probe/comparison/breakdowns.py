"""Scores by category and by what the annotations say of a pair: viewpoint, occlusion, whether it was trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ditf_probe.comparison.keypoints import rounded
from ditf_probe.metrics.pck import pck_scores
from ditf_probe.metrics.predictions import Booleans, Integers
from ditf_probe.tasks.records import PairFacts

CATEGORY = "category"


def breakdowns(
    pairs: Sequence[PairFacts], points: Integers, correct: Mapping[str, Integers], alphas: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """Scores of every row on the pairs of each level.

    Args:
        pairs: The facts of N pairs.
        points: `(N,)` keypoints visible in both images.
        correct: Per row `(N, A)` correct ones.
        alphas: The A thresholds.

    Returns:
        "category" or the name of an attribute, then the level, to `pairs` and `keypoints` in numbers and `rows`: name
        to per-point and per-image scores. Levels without a keypoint are left out.
    """
    found = {}
    for name, levels in _levels(pairs).items():
        entries = {level: _level(chosen & (points > 0), points, correct, alphas) for level, chosen in levels.items()}
        found[name] = {level: entry for level, entry in entries.items() if entry["pairs"]}
    return found


def _levels(pairs: Sequence[PairFacts]) -> dict[str, dict[str, Booleans]]:
    """Which pairs each level of each attribute holds, levels in order."""
    marks = [{CATEGORY: "", **facts.attributes} | {CATEGORY: facts.category} for facts in pairs]
    names = dict.fromkeys(name for own in marks for name in own)
    found = {}
    for name in names:
        own = np.array([mark.get(name, "") for mark in marks], dtype=object)
        found[name] = {level: own == level for level in sorted({*own} - {""}, key=_order)}
    return found


def _order(level: str) -> tuple[float, str]:
    """Numbers by value, then words."""
    return (float(level), "") if level.isdecimal() else (float("inf"), level)


def _level(
    chosen: Booleans, points: Integers, correct: Mapping[str, Integers], alphas: Sequence[float]
) -> dict[str, Any]:
    nowhere = [""] * int(chosen.sum())
    rows = {}
    for name, own in correct.items():
        scores = rounded(pck_scores(points[chosen], own[chosen], nowhere, alphas))
        rows[name] = {average: scores[average] for average in ("per_point", "per_image")}
    return {"pairs": int(chosen.sum()), "keypoints": int(points[chosen].sum()), "rows": rows}
