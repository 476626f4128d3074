"""One table of all runs of a sweep."""

import csv
import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ditf_probe.comparison.csv_files import with_subsets
from ditf_probe.comparison.table_parts import STYLES, difference_text, interval_text, number_text
from ditf_probe.metrics.pck import alpha_key
from ditf_probe.probes import load_probe
from ditf_probe.sweeping.grid import short_keys
from ditf_probe.sweeping.records import Record, probe_folders, read_comparison

SEED = "seed_everything"
_COLUMNS = ("dataset", "row", "kind", "metric", "primary", "score", "ci95_low", "ci95_high", "delta", "delta_low")
COLUMNS = (*_COLUMNS, "delta_high", "gain", "gain_low", "gain_high", "parameters")


@dataclass(frozen=True)
class Score:
    """One number of one row of one run.

    Attributes:
        dataset: Name of the data set; "val" for what a training says of its own probes.
        row: Name of the row.
        kind: "zero-shot", "probe" or "control".
        metric: Name of the metric.
        primary: Whether intervals and differences refer to it.
        score: Its value.
        ci95: Its 95% interval, where there is one.
        delta: Difference to AdaLN, value and interval.
        gain: Difference of a probe to the best zero-shot row, value and interval.
        parameters: Number of trained parameters of the row.
    """

    dataset: str
    row: str
    kind: str
    metric: str
    primary: bool
    score: float | None
    ci95: list[float] | None = None
    delta: Mapping[str, Any] | None = None
    gain: Mapping[str, Any] | None = None
    parameters: int = 0

    def cells(self) -> list[Any]:
        """Its values in the order of `COLUMNS`."""
        differences = [cell for found in (self.delta, self.gain) for cell in _difference(found)]
        named = (self.dataset, self.row, self.kind, self.metric, int(self.primary), _blank(self.score))
        return [*named, *(self.ci95 or ("", "")), *differences, self.parameters]


def scores_of(run_dir: Path) -> list[Score]:
    """What a run has found: its comparison, or else what training says of its probes."""
    comparison = read_comparison(run_dir)
    if comparison is None:
        return list(_of_probes(run_dir))
    found: list[Score] = []
    for name, dataset in with_subsets(comparison):
        for row in dataset["rows"]:
            found += _of_pck(name, row, dataset, comparison) if "pck" in row else _of_measured(name, row, dataset)
    return found


def to_csv(records: Sequence[Record], scores: Mapping[str, Sequence[Score]]) -> str:
    """One line per run, row and metric; a failed run has one line with its error.

    Args:
        records: The runs, in order.
        scores: Run to what it found.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = _keys(records)
    writer.writerow(("run", *keys, "state", "exit_code", "error", *COLUMNS))
    for record in records:
        failure = record.failure
        place = [record.name, *(record.overrides.get(key, "") for key in keys)]
        if failure is not None:
            writer.writerow([*place, "failed", failure.exit_code, failure.error, *([""] * len(COLUMNS))])
            continue
        for cells in [score.cells() for score in scores[record.name]] or [[""] * len(COLUMNS)]:
            writer.writerow([*place, "finished", 0, "", *cells])
    return text.getvalue()


def table(title: str, records: Sequence[Record], scores: Mapping[str, Sequence[Score]]) -> Table:
    """For people: the primary score of every row that is no control, and why runs failed."""
    keys = _keys(records)
    found = _empty(title, keys, ("dataset", "row", "metric", "score", "95%", "to best zero-shot", "parameters"))
    for record in records:
        place = [record.overrides.get(key, "") for key in keys]
        if record.failure is not None:
            step = record.failure
            found.add_row(*place, "", f"{step.verb} failed: {step.error}", style="red")
            continue
        for score in scores[record.name]:
            if score.primary and score.kind != "control":
                gain = difference_text(score.gain["value"], score.gain["ci95"]) if score.gain else ""
                numbers = (number_text(score.score), interval_text(score.ci95), gain, f"{score.parameters:,}")
                found.add_row(*place, score.dataset, score.row, score.metric, *numbers, style=STYLES[score.kind])
    return found


def over_seeds(title: str, records: Sequence[Record], scores: Mapping[str, Sequence[Score]]) -> Table | None:
    """Mean and standard deviation over runs that differ in their seed alone; None where no two runs do."""
    keys = [key for key in _keys(records) if key != SEED]
    groups: dict[tuple[str, ...], list[float]] = {}
    for record in records:
        if SEED not in record.overrides or record.failure is not None:
            continue
        place = [record.overrides.get(key, "") for key in keys]
        for score in scores[record.name]:
            if score.primary and score.kind != "control" and score.score is not None:
                groups.setdefault((*place, score.dataset, score.row, score.metric), []).append(score.score)
    if not any(len(values) > 1 for values in groups.values()):
        return None
    found = _empty(f"{title}, over seeds", keys, ("dataset", "row", "metric", "mean", "standard deviation", "seeds"))
    for words, values in groups.items():
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
        found.add_row(*words, f"{statistics.fmean(values):.2f}", spread, str(len(values)))
    return found


def _of_pck(name: str, row: dict[str, Any], dataset: dict[str, Any], comparison: dict[str, Any]) -> Iterator[Score]:
    primary = alpha_key(float(comparison["settings"]["scoring"]["alpha"]))
    for alpha, value in row["pck"][dataset["statistic"]].items():
        place = (name, row["name"], row["kind"], f"pck_{alpha}", alpha == primary)
        spreads = {"ci95": row["ci95"], "delta": row["delta"], "gain": row["delta_best_zero_shot"]}
        yield Score(*place, value, parameters=row["parameters"], **(spreads if alpha == primary else {}))


def _of_measured(name: str, row: dict[str, Any], dataset: dict[str, Any]) -> Iterator[Score]:
    for metric, score in row["scores"].items():
        place = (name, row["name"], row["kind"], metric, metric == dataset["primary"])
        spreads = {"ci95": score["ci95"], "delta": score["delta"]}
        yield Score(*place, score["value"], parameters=row["parameters"], **spreads)


def _of_probes(run_dir: Path) -> Iterator[Score]:
    for folder in probe_folders(run_dir / "probes"):
        probe, facts = load_probe(folder)
        count = sum(parameter.numel() for parameter in probe.parameters())
        row = folder.relative_to(run_dir / "probes").as_posix()
        score = facts.training.get("val_pck_0.10_per_point")
        yield Score("val", row, "probe", "pck_0.10", True, score, parameters=count)


def _keys(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record.overrides))


def _empty(title: str, keys: Sequence[str], columns: Sequence[str]) -> Table:
    found = Table(title=title, title_justify="left")
    for name in short_keys(keys).values():
        found.add_column(name, overflow="fold")
    for column in columns:
        right = column in ("score", "95%", "to best zero-shot", "parameters", "mean", "standard deviation", "seeds")
        found.add_column(column, justify="right" if right else "left", overflow="fold")
    return found


def _difference(found: Mapping[str, Any] | None) -> list[Any]:
    return ["", "", ""] if found is None else [_blank(found["value"]), *(found["ci95"] or ("", ""))]


def _blank(value: float | None) -> float | str:
    return "" if value is None else value
