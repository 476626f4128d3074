"""The keypoints that all rows of a data set share, by pair: what every score is an average over."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditf_probe.errors import InputError
from ditf_probe.metrics.pck import pck_scores
from ditf_probe.metrics.predictions import Booleans, Integers
from ditf_probe.tasks.records import DatasetResult, PairFacts

DECIMALS = 4  # of percentages in files
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Keypoints:
    """R keypoints of N pairs.

    Attributes:
        rows: `(T,)` bool, which of all rows of the predictions these are.
        pairs: The facts of the N pairs.
        pair: `(R,)` position of each keypoint's pair among them.
        present: `(R,)` bool, visible in both images.
        geometry_aware: `(R,)` bool.
    """

    rows: Booleans
    pairs: list[PairFacts]
    pair: Integers
    present: Booleans
    geometry_aware: Booleans

    def counts(self, which: Booleans) -> Integers:
        """`(N,)` how many of some keypoints each pair has."""
        return np.bincount(self.pair[which], minlength=len(self.pairs))

    def correct(self, which: Booleans, right: Booleans) -> Integers:
        """`(N, A)` how many of them are right, from `(R, A)`."""
        return np.stack([self.counts(which & column) for column in right.T], axis=1)

    def scores(self, which: Booleans, right: Booleans, alphas: Sequence[float]) -> Scores | None:
        """All averages of PCK over some keypoints; None where there are none."""
        if not which.any():
            return None
        categories = [facts.category for facts in self.pairs]
        return rounded(pck_scores(self.counts(which), self.correct(which, right), categories, alphas))


def rounded(scores: Scores) -> Scores:
    """Scores as they stand in files."""
    return {name: {key: round(score, DECIMALS) for key, score in row.items()} for name, row in scores.items()}


def shared_keypoints(dataset: DatasetResult, indices: Sequence[int] | None = None) -> Keypoints:
    """The keypoints of a data set, or of some of its pairs.

    Raises:
        InputError: Rows are not over the same keypoints, or nothing is visible in both images of any pair.
    """
    first = dataset.rows[0].predictions if dataset.rows else None
    if first is None or not first.present.any():
        raise InputError(f"test.{dataset.name}", "no predictions", "give pairs with a keypoint visible in both images")
    # The canvas is that of each row's own model.
    base = () if dataset.threshold == "canvas" else ("threshold_base",)
    for row in dataset.rows:
        for name in ("pair_index", "keypoint", "present", "true_x", "true_y", *base):
            if not _same(getattr(row.predictions, name), getattr(first, name)):
                raise InputError(
                    f"{dataset.name}/{row.name}", name, "rows must be over the same keypoints, test them in one run"
                )
    chosen = np.ones(len(first), dtype=bool) if indices is None else np.isin(first.pair_index, indices)
    pairs, pair = np.unique(first.pair_index[chosen], return_inverse=True)
    facts = [dataset.pairs[int(index)] for index in pairs]
    marked = [k in facts[n].geometry_aware for n, k in zip(pair, first.keypoint[chosen], strict=True)]
    return Keypoints(chosen, facts, pair, first.present[chosen], np.array(marked, dtype=bool) & first.present[chosen])


def _same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
