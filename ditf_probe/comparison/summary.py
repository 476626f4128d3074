"""From predictions to the numbers of a comparison: a pure function of what a test left behind."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditf_probe.comparison.breakdowns import breakdowns
from ditf_probe.comparison.keypoints import DECIMALS, Keypoints, Scores, rounded, shared_keypoints
from ditf_probe.comparison.measures import measures
from ditf_probe.comparison.scoring import Judgement, Scoring, judge
from ditf_probe.comparison.seeds import copies_by_head, mean_and_deviation
from ditf_probe.errors import InputError
from ditf_probe.metrics.intervals import percentile_interval, resampled_scores, unit_count
from ditf_probe.metrics.pck import alpha_key, pck_scores
from ditf_probe.metrics.predictions import Booleans, Integers, Predictions
from ditf_probe.tasks.records import DatasetResult, Kind, PairFacts, RowResult, RunResult

REFERENCE, POSITION = "adaln", "same_position"
_Best = Mapping[Kind, str | None]


def summarise(result: RunResult) -> dict[str, Any]:
    """The comparison as plain JSON values; `comparison.schema.json` describes them.

    Args:
        result: What a test left behind. `settings["scoring"]`, where given, holds the arguments of `Scoring`.

    Raises:
        InputError: Rows of one data set are not over the same keypoints, or there are none.
    """
    scoring = scoring_of(result)
    settings = {**result.settings, "scoring": asdict(scoring) | {"alphas": list(scoring.alphas)}}
    return {"datasets": {d.name: summarise_dataset(d, scoring) for d in result.datasets}, "settings": settings}


def scoring_of(result: RunResult) -> Scoring:
    """How the predictions of a test are scored."""
    given = dict(result.settings.get("scoring", {}))
    return Scoring(**given | ({"alphas": tuple(given["alphas"])} if "alphas" in given else {}))


def summarise_dataset(dataset: DatasetResult, scoring: Scoring) -> dict[str, Any]:
    """Scores, intervals and differences of all rows on one data set.

    Where the data set shows the same two images more than once, the same numbers without repeats stand under
    `subsets.distinct`.
    """
    everything = _block(dataset, scoring)
    first = dataset.rows[0].predictions
    counted = {int(index): dataset.pairs[int(index)] for index in first.pair_index[first.present]}
    distinct = distinct_pairs(counted)
    if 0 < len(distinct) < len(counted):
        everything["subsets"] = {"distinct": _block(dataset, scoring, distinct)}
    return everything


def distinct_pairs(pairs: Mapping[int, PairFacts]) -> list[int]:
    """Indices of the pairs of two different images, the first of those with the same source and target."""
    first: dict[tuple[str, str], int] = {}
    for index, facts in sorted(pairs.items()):
        if facts.source_id != facts.target_id:
            first.setdefault((facts.source_id, facts.target_id), index)
    return sorted(first.values())


def differences(dataset: DatasetResult, scoring: Scoring, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Differences between rows over the same pairs, in percentage points, with paired 95% intervals.

    Args:
        dataset: What the rows found.
        scoring: How that is scored.
        pairs: Names of a row and of the one that is subtracted; of a probe with copies from several seeds, its name
            without the seed stands for the mean over them.

    Returns:
        As the differences in a comparison: `reference`, `value` and `ci95`, which is None with one unit.

    Raises:
        InputError: There is no such row, or rows are not over the same keypoints.
    """
    intervals = _scored(dataset, scoring, shared_keypoints(dataset)).intervals
    for name in (name for pair in pairs for name in pair):
        if name not in intervals.names:
            raise InputError(f"test.{dataset.name}", name, f"is no row, use one of {', '.join(intervals.names)}")
    return [found for pair in pairs if (found := intervals.delta(*pair)) is not None]


@dataclass(frozen=True)
class _Intervals:
    """Scores of all rows on the same resamples `(R, M)`, None with one unit, and the scores themselves."""

    names: list[str]
    values: list[float]
    resampled: NDArray[np.float64] | None = field(repr=False)

    def with_means(self, copies: Mapping[str, Sequence[str]]) -> "_Intervals":
        """With further rows, each the mean of others on every resample, by the name of the mean."""
        places = {head: [self.names.index(name) for name in names] for head, names in copies.items()}
        values = [float(np.mean([self.values[i] for i in found])) for found in places.values()]
        resampled = self.resampled
        if resampled is not None:
            means = [resampled[:, found].mean(axis=1, keepdims=True) for found in places.values()]
            resampled = np.concatenate([resampled, *means], axis=1)
        return _Intervals([*self.names, *copies], [*self.values, *values], resampled)

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


@dataclass(frozen=True)
class _Scored:
    """The rows of a data set, each by its name: predictions, what they get right, scores; and those resampled."""

    found: dict[str, Predictions]
    judged: dict[str, Judgement]
    correct: dict[str, Integers]
    scores: dict[str, Scores]
    copies: dict[str, list[str]]
    intervals: _Intervals


def _scored(dataset: DatasetResult, scoring: Scoring, keypoints: Keypoints) -> _Scored:
    points, present = keypoints.counts(keypoints.present), keypoints.present
    found = {row.name: row.predictions.where(keypoints.rows) for row in dataset.rows}
    judged = {name: judge(predictions, scoring) for name, predictions in found.items()}
    correct = {name: keypoints.correct(present, judgement.correct) for name, judgement in judged.items()}
    categories = [facts.category for facts in keypoints.pairs]
    scores = {name: pck_scores(points, counts, categories, scoring.alphas) for name, counts in correct.items()}
    copies = copies_by_head(dataset.rows)
    intervals = _intervals(dataset, keypoints, scores, correct, scoring).with_means(copies)
    return _Scored(found, judged, correct, scores, copies, intervals)


def _block(dataset: DatasetResult, scoring: Scoring, indices: Sequence[int] | None = None) -> dict[str, Any]:
    keypoints = shared_keypoints(dataset, indices)
    points, present = keypoints.counts(keypoints.present), keypoints.present
    scored = _scored(dataset, scoring, keypoints)
    best: _Best = {kind: _best(dataset, scored.intervals.values, kind) for kind in ("zero-shot", "control")}
    rows = []
    for row in dataset.rows:
        more = measures(keypoints, scored.found[row.name], scored.judged[row.name], scoring)
        rows.append(_row(row, scored.scores[row.name], scored.intervals, best) | more)
    block: dict[str, Any] = {
        "unit": dataset.unit,
        "n": unit_count([facts.unit for facts in keypoints.pairs], points),
        "pairs": int((points > 0).sum()),
        "keypoints": int(points.sum()),
        "hidden_keypoints": int((~present).sum()),
        "geometry_aware": _extent(keypoints, keypoints.geometry_aware),
        "statistic": dataset.statistic,
        "threshold": dataset.threshold,
        "rows": rows,
        "breakdowns": breakdowns(keypoints.pairs, points, scored.correct, scoring.alphas),
    }
    if scored.copies:
        block["seeds"] = [_seeds(head, dataset, scored, best) for head in scored.copies]
    return block


def _extent(keypoints: Keypoints, which: Booleans) -> dict[str, int]:
    """How many pairs and keypoints a subset has."""
    counts = keypoints.counts(which)
    return {"pairs": int((counts > 0).sum()), "keypoints": int(counts.sum())}


def _intervals(
    dataset: DatasetResult,
    keypoints: Keypoints,
    scores: Mapping[str, Scores],
    correct: Mapping[str, Integers],
    scoring: Scoring,
) -> _Intervals:
    position = scoring.alphas.index(scoring.alpha)
    own = np.stack([counts[:, position] for counts in correct.values()], axis=1)
    resampled = resampled_scores(
        [facts.unit for facts in keypoints.pairs],
        keypoints.counts(keypoints.present),
        own,
        statistic=dataset.statistic,
        resamples=scoring.resamples,
        seed=scoring.seed,
    )
    key = alpha_key(scoring.alpha)
    return _Intervals(list(scores), [score[dataset.statistic][key] for score in scores.values()], resampled)


def _row(row: RowResult, pck: Scores, intervals: _Intervals, best: _Best) -> dict[str, Any]:
    position = POSITION if row.kind != "control" else None
    compared = _compared(row.name, intervals, position, best if row.kind == "probe" else {})
    return {
        "name": row.name,
        "kind": row.kind,
        "pck": rounded(pck),
        **compared,
        "parameters": row.parameters,
        "backbone": row.backbone,
        "notes": [*row.notes, *_beaten(compared["delta_same_position"])],
        # Without the time, so that the same predictions give the same file.
        **({"cost": {"flops": row.cost.flops, "grid": list(row.cost.grid)}} if row.cost else {}),
    }


def _seeds(head: str, dataset: DatasetResult, scored: _Scored, best: _Best) -> dict[str, Any]:
    """The copies of a head as one row."""
    names = scored.copies[head]
    mean, deviation = mean_and_deviation([scored.scores[name] for name in names])
    compared = _compared(head, scored.intervals, POSITION, best)
    first = next(row for row in dataset.rows if row.name == names[0])
    return {
        "name": head,
        "copies": list(names),
        "pck": mean,
        "pck_std": deviation,
        **compared,
        "parameters": first.parameters,
        "backbone": first.backbone,
        "notes": _beaten(compared["delta_same_position"]),
    }


def _compared(name: str, intervals: _Intervals, position: str | None, best: _Best) -> dict[str, Any]:
    return {
        "ci95": intervals.of(name),
        "delta": intervals.delta(name, REFERENCE),
        "delta_same_position": intervals.delta(name, position),
        "delta_best_zero_shot": intervals.delta(name, best.get("zero-shot")),
        "delta_best_control": intervals.delta(name, best.get("control")),
    }


def _best(dataset: DatasetResult, values: Sequence[float], kind: Kind) -> str | None:
    """The best row of a kind, the first of equals; values of further rows may follow."""
    scored = [(value, row.name) for row, value in zip(dataset.rows, values, strict=False) if row.kind == kind]
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


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(end, DECIMALS) for end in interval]
