"""Generalisation: what heads have learned from, beside what they have not."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from ditf_probe.comparison.table_parts import STYLES, interval_text
from ditf_probe.experiments.entries import CELLS, Entry, comparison_of, entries
from ditf_probe.files import write_text

SIDES = ("seen", "unseen")
"""The test sets of each kind."""

Sides = Mapping[str, tuple[Entry, Entry]]
"""Row to its scores on both."""


def side_by_side(run_dir: Path) -> Sides:
    """The rows of a comparison over both test sets.

    Raises:
        InputError: The run has no comparison.
    """
    comparison = comparison_of(run_dir)
    seen, unseen = ({entry.row: entry for entry in entries(comparison, side)} for side in SIDES)
    return {row: (entry, unseen[row]) for row, entry in seen.items()}


def generalisation_csv(kinds: Mapping[str, Sides]) -> str:
    """One line per kind and row, seen before unseen."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (f"{side}_{cell}" for side in SIDES for cell in CELLS)
    writer.writerow(("generalisation", "row", "kind", "seeds", *columns, "parameters"))
    for kind, rows in kinds.items():
        for row, (seen, unseen) in rows.items():
            place = (kind, row, seen.kind, seen.seeds)
            writer.writerow((*place, *seen.cells(), *unseen.cells(), seen.parameters))
    return text.getvalue()


def generalisation_table(kind: str, rows: Sides) -> Table:
    """For people: score, deviation over seeds, and difference to the best zero-shot row with its interval."""
    caption = "± standard deviation over seeds; differences to the best zero-shot row of the same pairs, paired 95%"
    table = Table(title=f"{kind}: PCK@0.10", caption=caption, title_justify="left", caption_justify="left")
    table.add_column("row", no_wrap=True)
    for side in SIDES:
        for column in (side, "to zero-shot"):
            table.add_column(column, justify="right", no_wrap=True)
    for row, both in rows.items():
        table.add_row(row, *(cell for entry in both for cell in _words(entry)), style=STYLES[both[0].kind])
    return table


def _words(entry: Entry) -> tuple[str, str]:
    spread = "" if entry.deviation is None else f" ± {entry.deviation:.1f}"
    span = f" ({interval_text(entry.gain_ci95, '+')})" if entry.gain_ci95 else ""
    return f"{entry.score:.1f}{spread}", "" if entry.gain is None else f"{entry.gain:+.1f}{span}"


def write_generalisation(folder: Path, kinds: Mapping[str, Sides]) -> Path:
    """Writes `generalise.csv` and returns it."""
    file = folder / "generalise.csv"
    write_text(file, generalisation_csv(kinds))
    return file
