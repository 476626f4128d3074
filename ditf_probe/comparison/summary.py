"""From predictions to the numbers of a comparison: a pure function of what a test left behind."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ditf_probe.errors import InputError
from ditf_probe.metrics.intervals import percentile_interval, resampled_scores, unit_count
from ditf_probe.metrics.pck import ALPHAS, alpha_key, pck_counts, pck_scores
from ditf_probe.metrics.predictions import Predictions
from ditf_probe.tasks.records import DatasetResult, PairFacts, RowResult, RunResult

REFERENCE, POSITION = "adaln", "same_position"
DECIMALS = 4  # of percentages in files


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


def summarise(result: RunResult) -> dict[str, Any]:
    """The comparison as plain JSON values; `comparison.schema.json` describes them.

    Args:
        result: What a test left behind. `settings["scoring"]`, where given, holds the arguments of `Scoring`.

    Raises:
        InputError: Rows of one data set are not over the same keypoints, or there are none.
    """
    given = dict(result.settings.get("scoring", {}))
    scoring = Scoring(**given | ({"alphas": tuple(given["alphas"])} if "alphas" in given else {}))
    settings = {**result.settings, "scoring": asdict(scoring) | {"alphas": list(scoring.alphas)}}
    return {"datasets": {d.name: summarise_dataset(d, scoring) for d in result.datasets}, "settings": settings}


def summarise_dataset(dataset: DatasetResult, scoring: Scoring) -> dict[str, Any]:
    """Scores, intervals and differences of all rows on one data set.

    Where the data set shows the same two images more than once, the same numbers without repeats stand under
    `subsets.distinct`.
    """
    everything = _block(dataset, scoring)
    distinct = distinct_pairs(dataset.pairs)
    if len(distinct) < len(dataset.pairs):
        everything["subsets"] = {"distinct": _block(dataset, scoring, distinct)}
    return everything


def distinct_pairs(pairs: dict[int, PairFacts]) -> list[int]:
    """Indices of the pairs of two different images, the first of those with the same source and target."""
    first: dict[tuple[str, str], int] = {}
    for index, facts in sorted(pairs.items()):
        if facts.source_id != facts.target_id:
            first.setdefault((facts.source_id, facts.target_id), index)
    return sorted(first.values())


@dataclass(frozen=True)
class _Counts:
    """Counts of N pairs for M rows.

    Attributes:
        units: N names of sampling units.
        categories: N names.
        points: `(N,)` visible keypoints.
        correct: `(M, N, A)` correct ones.
    """

    units: list[str]
    categories: list[str]
    points: NDArray[np.int64]
    correct: NDArray[np.int64]


@dataclass(frozen=True)
class _Intervals:
    """Scores of all rows on the same resamples `(R, M)`, None with one unit, and the scores themselves."""

    names: list[str]
    values: list[float]
    resampled: NDArray[np.float64] | None = field(repr=False)

    def of(self, name: str) -> list[float] | None:
        """95% interval of a row."""
        if self.resampled is None:
            return None
        return _rounded(percentile_interval(self.resampled[:, self.names.index(name)]))

    def delta(self, name: str, reference: str | None) -> dict[str, Any] | None:
        """Difference to another row and its interval; None where there is no such row."""
        if reference not in self.names:
            return None
        a, b = self.names.index(name), self.names.index(reference)
        interval = None
        if self.resampled is not None:
            interval = _rounded(percentile_interval(self.resampled[:, a] - self.resampled[:, b]))
        return {"reference": reference, "value": round(self.values[a] - self.values[b], DECIMALS), "ci95": interval}


def _block(dataset: DatasetResult, scoring: Scoring, indices: Sequence[int] | None = None) -> dict[str, Any]:
    counts = _count(dataset, scoring, indices)
    scores = [pck_scores(counts.points, correct, counts.categories, scoring.alphas) for correct in counts.correct]
    key = alpha_key(scoring.alpha)
    resampled = resampled_scores(
        counts.units,
        counts.points,
        counts.correct[:, :, scoring.alphas.index(scoring.alpha)].T,
        statistic=dataset.statistic,
        resamples=scoring.resamples,
        seed=scoring.seed,
    )
    values = [score[dataset.statistic][key] for score in scores]
    intervals = _Intervals([row.name for row in dataset.rows], values, resampled)
    return {
        "unit": dataset.unit,
        "n": unit_count(counts.units, counts.points),
        "pairs": len(counts.points),
        "keypoints": int(counts.points.sum()),
        "statistic": dataset.statistic,
        "threshold": dataset.threshold,
        "rows": [
            _row(row, score, intervals, _best(dataset, values)) for row, score in zip(dataset.rows, scores, strict=True)
        ],
    }


def _row(
    row: RowResult, scores: dict[str, dict[str, float]], intervals: _Intervals, best: str | None
) -> dict[str, Any]:
    against_position = intervals.delta(row.name, POSITION if row.kind != "control" else None)
    return {
        "name": row.name,
        "kind": row.kind,
        "pck": {average: {k: round(v, DECIMALS) for k, v in values.items()} for average, values in scores.items()},
        "ci95": intervals.of(row.name),
        "delta": intervals.delta(row.name, REFERENCE),
        "delta_same_position": against_position,
        "delta_best_zero_shot": intervals.delta(row.name, best if row.kind == "probe" else None),
        "parameters": row.parameters,
        "notes": [*row.notes, *_beaten(against_position)],
    }


def _best(dataset: DatasetResult, values: Sequence[float]) -> str | None:
    """The best zero-shot row, the first of equals."""
    scored = [(value, row.name) for row, value in zip(dataset.rows, values, strict=True) if row.kind == "zero-shot"]
    return max(scored, key=lambda item: item[0])[1] if scored else None


def _beaten(delta: dict[str, Any] | None) -> list[str]:
    """What a row must be told that does not clearly beat the same relative position."""
    if delta is None:
        return []
    if delta["value"] <= 0:
        return ["does not beat same position"]
    if delta["ci95"] is not None and delta["ci95"][0] <= 0:
        return ["not clearly above same position"]
    return []


def _count(dataset: DatasetResult, scoring: Scoring, indices: Sequence[int] | None) -> _Counts:
    first = dataset.rows[0].predictions if dataset.rows else None
    if first is None or not len(first):
        raise InputError(f"test.{dataset.name}", "no predictions", "give pairs with a keypoint visible in both images")
    for row in dataset.rows:
        own = row.predictions
        for name in ("pair_index", "keypoint", "true_x", "true_y", "threshold_base"):
            if not np.array_equal(getattr(own, name), getattr(first, name)):
                raise InputError(
                    f"{dataset.name}/{row.name}", name, "rows must be over the same keypoints, test them in one run"
                )
    chosen = np.ones(len(first), dtype=bool) if indices is None else np.isin(first.pair_index, indices)
    pairs, pair = np.unique(first.pair_index[chosen], return_inverse=True)
    points = np.bincount(pair, minlength=len(pairs))
    correct = np.zeros((len(dataset.rows), len(pairs), len(scoring.alphas)), dtype=np.int64)
    for row, counted in zip(dataset.rows, correct, strict=True):
        np.add.at(counted, pair, correct_keypoints(row.predictions, scoring)[chosen])
    facts = [dataset.pairs[int(index)] for index in pairs]
    return _Counts([f.unit for f in facts], [f.category for f in facts], points, correct)


def correct_keypoints(predictions: Predictions, scoring: Scoring) -> NDArray[np.int64]:
    """Whether each keypoint is correct at each threshold: `(R, A)`, 0 or 1."""
    found = torch.from_numpy(np.stack([predictions.x, predictions.y], axis=1))[:, None]
    truth = torch.from_numpy(np.stack([predictions.true_x, predictions.true_y], axis=1))[:, None]
    visible = torch.ones(len(found), 1, dtype=torch.bool)
    base = torch.from_numpy(predictions.threshold_base)
    _, correct = pck_counts(found, truth, visible, base, scoring.alphas, strict=scoring.strict)
    return correct.numpy()


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(end, DECIMALS) for end in interval]
