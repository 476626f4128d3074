"""What adapters inside the backbone add to the same heads over the frozen one."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ditf_probe.comparison.predictions_files import read_predictions
from ditf_probe.comparison.table_parts import STYLES, difference_text
from ditf_probe.experiments.entries import CELLS, Entry, comparison_of, entries
from ditf_probe.experiments.plans import ADAPTED, FROZEN
from ditf_probe.experiments.twins import to_twins
from ditf_probe.files import write_text


@dataclass(frozen=True)
class AdaptedEntry:
    """A row, and what was trained inside its backbone.

    Attributes:
        entry: Its score.
        backbone: "frozen", "none", or in words what was trained.
        to_frozen: Of a head with adapters, the difference to the same head without, and its paired interval, as
            `comparison.summary.differences` returns it.
    """

    entry: Entry
    backbone: str
    to_frozen: dict[str, Any] | None


def adapted_entries(run_dir: Path) -> list[AdaptedEntry]:
    """The rows of the comparison of heads with and without adapters, in order of its table.

    Raises:
        InputError: The run has no comparison or no predictions.
    """
    comparison = comparison_of(run_dir)
    ((name, dataset),) = comparison["datasets"].items()
    backbones = {row["name"]: row["backbone"] for row in [*dataset["rows"], *dataset.get("seeds", ())]}
    found = entries(comparison, name)
    gains = to_twins(read_predictions(run_dir), name, [entry.row for entry in found], ADAPTED, FROZEN)
    return [AdaptedEntry(entry, backbones[entry.row], gains.get(entry.row)) for entry in found]


def adapters_csv(rows: list[AdaptedEntry]) -> str:
    """One line per row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    gains = ("to_frozen", "to_frozen_low", "to_frozen_high")
    writer.writerow(("row", "kind", "backbone", "seeds", *CELLS, *gains, "parameters"))
    for row in rows:
        entry, gain = row.entry, row.to_frozen or {"value": "", "ci95": None}
        cells = (*entry.cells(), gain["value"], *(gain["ci95"] or ("", "")), entry.parameters)
        writer.writerow((entry.row, entry.kind, row.backbone, entry.seeds, *cells))
    return text.getvalue()


def adapters_table(rows: list[AdaptedEntry]) -> Table:
    """For people: score and deviation over seeds, and what adapters add to a head."""
    caption = (
        "± standard deviation over seeds; differences to the same head over the frozen backbone, paired 95% intervals"
    )
    table = Table(title="adapters: PCK@0.10", caption=caption, title_justify="left", caption_justify="left")
    table.add_column("row", no_wrap=True)
    table.add_column("backbone")
    for column in ("parameters", "PCK@0.10", "to frozen"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        entry, gain = row.entry, row.to_frozen or {"value": None, "ci95": None}
        numbers = f"{entry.parameters:,}", entry.words, difference_text(gain["value"], gain["ci95"])
        table.add_row(entry.row, row.backbone, *numbers, style=STYLES[entry.kind])
    return table


def write_adapters(folder: Path, rows: list[AdaptedEntry]) -> Path:
    """Writes `adapters.csv` and returns it."""
    file = folder / "adapters.csv"
    write_text(file, adapters_csv(rows))
    return file
