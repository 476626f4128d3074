"""A comparison for people: one rich table per data set, and the same rows as CSV."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from rich.table import Table

from ditf_probe.metrics.pck import alpha_key

_STYLES = {"zero-shot": "", "probe": "bold", "control": "dim"}
_WORDS = {"per_point": "per point", "per_image": "per image"}


def tables(comparison: dict[str, Any]) -> Iterator[Table]:
    """One table per data set.

    Args:
        comparison: As `compare` returns it.
    """
    alpha = float(comparison["settings"]["scoring"]["alpha"])
    for name, dataset in _with_subsets(comparison):
        yield _table(name, dataset, alpha)


def to_csv(comparison: dict[str, Any]) -> str:
    """Every number of every row of every data set, one line per row and average."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    alphas = _alphas(next(iter(comparison["datasets"].values())))
    head = ("dataset", "row", "kind", "average", *(f"pck@{alpha}" for alpha in alphas))
    writer.writerow((*head, "ci95_low", "ci95_high", "delta", "delta_low", "delta_high", "parameters", "notes"))
    for name, dataset in _with_subsets(comparison):
        for row in dataset["rows"]:
            for average, scores in row["pck"].items():
                primary = average == dataset["statistic"]
                interval = (row["ci95"] or ("", "")) if primary else ("", "")
                delta: dict[str, Any] = (row["delta"] if primary else None) or {"value": "", "ci95": None}
                spread = delta["ci95"] or ("", "")
                values = (*(scores[alpha] for alpha in alphas), *interval, delta["value"], *spread)
                facts = (row["parameters"], "; ".join(row["notes"]))
                writer.writerow((name, row["name"], row["kind"], average, *values, *facts))
    return text.getvalue()


def _with_subsets(comparison: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, dataset in comparison["datasets"].items():
        yield name, dataset
        for subset, values in dataset.get("subsets", {}).items():
            yield f"{name}, {subset} pairs", values


def _alphas(dataset: dict[str, Any]) -> list[str]:
    return list(dataset["rows"][0]["pck"]["per_point"])


def _table(name: str, dataset: dict[str, Any], alpha: float) -> Table:
    statistic, key = dataset["statistic"], alpha_key(alpha)
    caption = f"{_WORDS[statistic]}, threshold alpha x {dataset['threshold']}; "
    if dataset["n"] < 2:
        caption += f"one {dataset['unit']}: no interval"
    else:
        caption += f"95% intervals of PCK@{key} over n = {dataset['n']} units ({dataset['unit']}), differences paired"
    title = f"{name}: {dataset['pairs']} pairs, {dataset['keypoints']} keypoints"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("row", no_wrap=True)
    for column in (*(f"@{alpha}" for alpha in _alphas(dataset)), f"@{key} 95%", "to adaln", "95%", "parameters"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("notes")
    best = max((row["pck"][statistic][key] for row in dataset["rows"]), default=0.0)
    for row in dataset["rows"]:
        table.add_row(*_cells(row, statistic, key, best), style=_STYLES[row["kind"]])
    return table


def _cells(row: dict[str, Any], statistic: str, key: str, best: float) -> Iterator[str]:
    yield row["name"]
    for alpha, score in row["pck"][statistic].items():
        yield f"[green]{score:.1f}[/]" if alpha == key and score == best else f"{score:.1f}"
    yield _interval(row["ci95"])
    delta = None if row["delta"] is None or row["name"] == row["delta"]["reference"] else row["delta"]
    yield f"{delta['value']:+.1f}" if delta else ""
    yield _interval(delta["ci95"], "+") if delta else ""
    yield f"{row['parameters']:,}" if row["parameters"] else "0"
    gain = row["delta_best_zero_shot"]
    spread = f" ({_interval(gain['ci95'], '+')})" if gain and gain["ci95"] else ""
    words = [f"{gain['value']:+.1f}{spread} to {gain['reference']}, the best zero-shot row"] if gain else []
    yield "; ".join([*words, *row["notes"]])


def _interval(interval: list[float] | None, sign: str = "") -> str:
    return "" if interval is None else f"{interval[0]:{sign}.1f} to {interval[1]:{sign}.1f}"
