"""Copies of a probe that were trained from several seeds, as one row: their mean, and how far they lie apart."""

from collections.abc import Sequence

import numpy as np

from ditf_probe.comparison.keypoints import DECIMALS, Scores
from ditf_probe.tasks.records import RowResult
from ditf_probe.tasks.rows import head_of


def copies_by_head(rows: Sequence[RowResult]) -> dict[str, list[str]]:
    """Name of each head that has two copies or more to the names of their rows, in order of the table."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.kind == "probe" and (head := head_of(row.name)) != row.name:
            found.setdefault(head, []).append(row.name)
    return {head: names for head, names in found.items() if len(names) > 1}


def mean_and_deviation(scores: Sequence[Scores]) -> tuple[Scores, Scores]:
    """Mean and standard deviation over copies, score by score.

    Args:
        scores: Scores of two copies or more, in percent.

    Returns:
        The means, and the standard deviations as those of a sample (the sum of squares divided by their number less
        one).
    """
    means: Scores = {}
    deviations: Scores = {}
    for average, by_alpha in scores[0].items():
        values = {alpha: np.array([copy[average][alpha] for copy in scores]) for alpha in by_alpha}
        means[average] = {alpha: round(float(found.mean()), DECIMALS) for alpha, found in values.items()}
        deviations[average] = {alpha: round(float(found.std(ddof=1)), DECIMALS) for alpha, found in values.items()}
    return means, deviations
