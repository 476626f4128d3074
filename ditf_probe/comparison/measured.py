"""Comparisons of scores other than PCK: the numbers, a table for people, and files."""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ditf_probe.comparison.table_parts import NOTES, fitted
from ditf_probe.files import ensure_writable, write_text
from ditf_probe.metrics.intervals import percentile_interval
from ditf_probe.printing import console
from ditf_probe.tasks.measured import MeasuredDataset, MeasuredRow, MeasuredRun
from ditf_probe.tasks.records import frozen_words

DECIMALS = 4
_STYLES = {"zero-shot": "", "probe": "bold", "control": "dim"}


def summarise_measured(result: MeasuredRun) -> dict[str, Any]:
    """The comparison as plain JSON values.

    Each row has, per metric, its score, the 95% interval, and the difference to the row "adaln" with its interval.
    """
    datasets = {dataset.name: _dataset(dataset) for dataset in result.datasets}
    return {"datasets": datasets, "settings": dict(result.settings)}


def report_measured(result: MeasuredRun, run_dir: Path) -> dict[str, Any]:
    """Writes `comparison.json` and `comparison.csv` of a finished test, and prints its tables.

    Returns:
        The comparison, as in `comparison.json`.
    """
    ensure_writable(run_dir, "run_dir")
    comparison = summarise_measured(result)
    write_text(run_dir / "comparison.json", json.dumps(comparison, indent=2, allow_nan=False) + "\n")
    write_text(run_dir / "comparison.csv", measured_csv(comparison))
    shown_on = console()
    for name, dataset in comparison["datasets"].items():
        others = [metric for metric in dataset["rows"][0]["scores"] if metric != dataset["primary"]]
        spare = [*reversed(others), "parameters"]
        shown_on.print(fitted(measured_table(name, dataset), shown_on.width, spare))
        shown_on.print()
    shown_on.print(f"comparison  {run_dir / 'comparison.json'}, {run_dir / 'comparison.csv'}", soft_wrap=True)
    shown_on.print(f"curves      tensorboard --logdir {run_dir}", soft_wrap=True)
    return comparison


def measured_table(name: str, dataset: dict[str, Any]) -> Table:
    """A table of every metric, with the interval and the difference of the primary one."""
    primary = dataset["primary"]
    caption = f"one {dataset['unit']}: no interval"
    if dataset["n"] > 1:
        caption = f"95% intervals of {primary} over n = {dataset['n']} units ({dataset['unit']}), differences paired"
    caption += f"; {frozen_words({row['name']: row['backbone'] for row in dataset['rows']})}"
    facts = ", ".join(f"{count:,} {what}" for what, count in dataset["facts"].items())
    title = f"{name}: {facts}" if facts else name
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("row", no_wrap=True)
    metrics = list(dataset["rows"][0]["scores"])
    for column in (*metrics, f"{primary} 95%", "to adaln", "95%", "parameters"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(NOTES)
    for row in dataset["rows"]:
        main = row["scores"][primary]
        delta = None if row["name"] == "adaln" else main["delta"]
        table.add_row(
            row["name"],
            *(_number(row["scores"][metric]["value"]) for metric in metrics),
            _interval(main["ci95"]),
            _number(delta["value"], "+") if delta else "",
            _interval(delta["ci95"], "+") if delta else "",
            f"{row['parameters']:,}",
            "; ".join(row["notes"]),
            style=_STYLES[row["kind"]],
        )
    return table


def measured_csv(comparison: dict[str, Any]) -> str:
    """Every number of every row, one line per row and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("dataset", "row", "kind", "metric", "value", "ci95_low", "ci95_high", "delta", "delta_low", "delta_high")
    writer.writerow((*head, "parameters", "backbone", "notes"))
    for name, dataset in comparison["datasets"].items():
        for row in dataset["rows"]:
            for metric, score in row["scores"].items():
                delta = score["delta"] or {"value": "", "ci95": None}
                numbers = (score["value"], *(score["ci95"] or ("", "")), delta["value"], *(delta["ci95"] or ("", "")))
                facts = (row["parameters"], row["backbone"], "; ".join(row["notes"]))
                writer.writerow((name, row["name"], row["kind"], metric, *numbers, *facts))
    return text.getvalue()


def _dataset(dataset: MeasuredDataset) -> dict[str, Any]:
    reference = next((row for row in dataset.rows if row.name == "adaln"), None)
    return {
        "unit": dataset.unit,
        "n": dataset.n,
        "primary": dataset.primary,
        "facts": dict(dataset.facts),
        "rows": [
            {
                "name": row.name,
                "kind": row.kind,
                "scores": dict(_scores(row, reference)),
                "parameters": row.parameters,
                "backbone": row.backbone,
                "notes": list(row.notes),
            }
            for row in dataset.rows
        ],
    }


def _scores(row: MeasuredRow, reference: MeasuredRow | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for metric, value in row.values.items():
        resampled = row.resampled.get(metric)
        delta = None
        if reference is not None:
            there = reference.resampled.get(metric)
            paired = None if resampled is None or there is None else resampled - there
            delta = {"value": _plain(value - reference.values[metric]), "ci95": _ends(paired)}
        yield metric, {"value": _plain(value), "ci95": _ends(resampled), "delta": delta}


def _ends(scores: Any) -> list[float] | None:
    if scores is None or not np.isfinite(scores).all():
        return None
    low, high = percentile_interval(scores)
    return [round(low, DECIMALS), round(high, DECIMALS)]


def _plain(value: float) -> float | None:
    """JSON knows no NaN: what could not be measured is null."""
    return None if math.isnan(value) else round(float(value), DECIMALS)


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.1f}"


def _interval(interval: list[float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{interval[0]:{sign}.1f} to {interval[1]:{sign}.1f}"
