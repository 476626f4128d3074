"""Percentile bootstrap of PCK over independent units.

Pairs of one photo or one set go right or wrong together, so units are resampled, never pairs. Several methods scored on
the same pairs share the resamples: differences of their columns are paired.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ditf_probe.errors import InputError

Statistic = Literal["per_point", "per_image"]
Interval = tuple[float, float]
Floats = NDArray[np.float64]

RESAMPLES_AT_ONCE = 2**22  # numbers in memory: resamples times units


def unit_count(units: Sequence[str], num_points: NDArray[Any]) -> int:
    """Number of units that have a visible keypoint; what the width of an interval rests on."""
    return len(set(np.asarray(units, dtype=object)[np.asarray(num_points) > 0]))


def resampled_scores(
    units: Sequence[str],
    num_points: NDArray[Any],
    num_correct: NDArray[Any],
    *,
    statistic: Statistic = "per_point",
    resamples: int = 2000,
    seed: int = 0,
) -> Floats | None:
    """Scores of several methods on random resamples of the units, drawn with replacement.

    The same units and seed give the same resamples, whatever the order of the pairs.

    Args:
        units: N names of sampling units, one per pair; each pair once.
        num_points: `(N,)` visible keypoints per pair; pairs without any count nowhere.
        num_correct: `(N, M)` correct ones of each of M methods.
        statistic: `per_point` (all points alike) or `per_image` (the mean of the shares of the pairs).
        resamples: R, number of resamples.
        seed: Of the random generator.

    Returns:
        `(R, M)` percentages, or None with fewer than two units: one unit says nothing about its spread.

    Raises:
        InputError: If shapes do not fit, there are more correct than visible points, or an option is unknown.
    """
    points, correct = _checked(units, num_points, num_correct, statistic, resamples)
    counted = points > 0
    if unit_count(units, points) < 2:
        return None
    points, correct = points[counted], correct[counted]
    names, unit = np.unique(np.asarray(units, dtype=object)[counted].astype(str), return_inverse=True)
    if statistic == "per_image":
        correct, points = correct / points[:, None], np.ones_like(points)
    above, below = np.zeros((len(names), correct.shape[1])), np.zeros(len(names))
    np.add.at(above, unit, correct)
    np.add.at(below, unit, points)
    scores = []
    for times in _resamples(len(names), resamples, seed):
        scores.append(100 * (times @ above) / (times @ below)[:, None])
    return np.concatenate(scores)


def resample_counts(units: int, resamples: int = 2000, seed: int = 0) -> Floats:
    """How often each unit is in each resample: `(R, units)`, rows that sum to `units`; for any mean over units."""
    return np.concatenate(list(_resamples(units, resamples, seed)))


def _resamples(units: int, resamples: int, seed: int) -> Iterator[Floats]:
    generator = np.random.default_rng(seed)
    even = np.full(units, 1 / units)
    step = max(1, RESAMPLES_AT_ONCE // units)
    for start in range(0, resamples, step):
        yield generator.multinomial(units, even, size=min(step, resamples - start)).astype(np.float64)


def percentile_interval(scores: NDArray[Any], level: float = 0.95) -> Interval:
    """The central part of resampled scores or differences.

    Args:
        scores: `(R,)`.
        level: Share of them inside.

    Returns:
        Lower and upper end.

    Raises:
        InputError: If `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise InputError("level", level, "give a share between 0 and 1, such as 0.95")
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(
    units: Sequence[str], num_points: NDArray[Any], num_correct: NDArray[Any], statistic: str, resamples: int
) -> tuple[Floats, Floats]:
    points, correct = np.asarray(num_points, dtype=np.float64), np.asarray(num_correct, dtype=np.float64)
    if statistic not in get_args(Statistic):
        raise InputError("statistic", statistic, f"use one of {', '.join(get_args(Statistic))}")
    if resamples < 1:
        raise InputError("resamples", resamples, "give a positive number")
    if points.shape != (len(units),):
        raise InputError("num_points", points.shape, f"give one number per pair, {len(units)}")
    if correct.ndim != 2 or len(correct) != len(units):
        raise InputError("num_correct", correct.shape, f"give ({len(units)}, methods)")
    wrong = ~((correct >= 0) & (correct <= points[:, None]))
    if wrong.any():
        pair, method = np.argwhere(wrong)[0]
        remedy = f"give pair {pair} between 0 and its {points[pair]:g} points"
        raise InputError("num_correct", float(correct[pair, method]), remedy)
    return points, correct
