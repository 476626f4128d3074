"""A comparison for people: rich tables of each data set."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from ditf_probe.comparison.csv_files import alphas_of, with_subsets
from ditf_probe.comparison.measure_tables import breakdown_tables, measure_table
from ditf_probe.comparison.table_parts import NOTES, STYLES, WORDS, difference_text, fitted, interval_text
from ditf_probe.metrics.pck import alpha_key
from ditf_probe.printing import WIDEST
from ditf_probe.tasks.records import frozen_words


def tables(comparison: dict[str, Any], width: int = WIDEST) -> Iterator[Table]:
    """The scores of each data set and its subsets; under a whole data set also its other measures and break-downs.

    Args:
        comparison: As `summarise` returns it.
        width: Characters in a line of the terminal; in a narrow one scores keep the primary threshold only.
    """
    key = alpha_key(float(comparison["settings"]["scoring"]["alpha"]))
    alphas = alphas_of(comparison)
    for name, dataset in with_subsets(comparison):
        spare = [*(f"@{alpha}" for alpha in alphas if alpha != key), "parameters"]
        yield fitted(_table(name, dataset, alphas, key), width, spare)
        if name in comparison["datasets"]:
            yield measure_table(name, dataset, key)
            yield from breakdown_tables(name, dataset, key)


def _table(name: str, dataset: dict[str, Any], alphas: list[str], key: str) -> Table:
    statistic = dataset["statistic"]
    caption = f"{WORDS[statistic]}, threshold alpha x {dataset['threshold']}; "
    if dataset["n"] < 2:
        caption += f"one {dataset['unit']}: no interval"
    else:
        caption += f"95% intervals of PCK@{key} over n = {dataset['n']} units ({dataset['unit']}), differences paired"
    if "seeds" in dataset:
        caption += "; ± standard deviation over seeds, intervals of the mean over them"
    caption += f"; {frozen_words({row['name']: row['backbone'] for row in _shown(dataset)})}"
    title = f"{name}: {dataset['pairs']} pairs, {dataset['keypoints']} keypoints"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("row", no_wrap=True)
    for column in (*(f"@{alpha}" for alpha in alphas), f"@{key} 95%", "to adaln", "95%", "parameters"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(NOTES)
    best = max((row["pck"][statistic][key] for row in _shown(dataset)), default=0.0)
    for row in _shown(dataset):
        table.add_row(*_cells(row, statistic, key, best), style=STYLES[row["kind"]])
    return table


def _shown(dataset: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows, with the mean over the copies of a probe in place of its copies."""
    seeds = {copy: entry for entry in dataset.get("seeds", ()) for copy in entry["copies"]}
    for row in dataset["rows"]:
        entry = seeds.get(row["name"])
        if entry is None:
            yield row
        elif row["name"] == entry["copies"][0]:
            yield {**entry, "kind": "probe", "name": f"{entry['name']} ({len(entry['copies'])} seeds)"}


def _cells(row: dict[str, Any], statistic: str, key: str, best: float) -> Iterator[str]:
    yield row["name"]
    for alpha, score in row["pck"][statistic].items():
        spread = f" ± {row['pck_std'][statistic][alpha]:.1f}" if "pck_std" in row else ""
        yield f"[green]{score:.1f}[/]{spread}" if alpha == key and score == best else f"{score:.1f}{spread}"
    yield interval_text(row["ci95"])
    delta = None if row["delta"] is None or row["name"] == row["delta"]["reference"] else row["delta"]
    yield f"{delta['value']:+.1f}" if delta else ""
    yield interval_text(delta["ci95"], "+") if delta else ""
    yield f"{row['parameters']:,}" if row["parameters"] else "0"
    against = (("best zero-shot row", row["delta_best_zero_shot"]), ("best control", row["delta_best_control"]))
    yield "; ".join([*(_gain(gain, what) for what, gain in against if gain), *row["notes"]])


def _gain(gain: dict[str, Any], what: str) -> str:
    return f"{difference_text(gain['value'], gain['ci95'])} to {gain['reference']}, the {what}"
