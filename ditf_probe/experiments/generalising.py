"""Generalisation: what heads have learned from, beside what they have not."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ditf_probe.comparison.predictions_files import read_predictions
from ditf_probe.comparison.table_parts import STYLES, difference_text
from ditf_probe.experiments.entries import CELLS, Entry, comparison_of, entries
from ditf_probe.experiments.plans import DISTILLED, PLAIN
from ditf_probe.experiments.twins import to_twins
from ditf_probe.files import write_text
from ditf_probe.tasks.records import RunResult

SIDES = ("seen", "unseen")
"""The test sets of each kind."""


@dataclass(frozen=True)
class Score:
    """What a row has on one test set.

    Attributes:
        entry: Its score.
        to_plain: Of a head that was distilled, the difference to the same head that was not, and its paired interval,
            as `comparison.summary.differences` returns it.
    """

    entry: Entry
    to_plain: dict[str, Any] | None = None

    def cells(self) -> list[Any]:
        """Those of the entry, then the difference and its interval, blank where there is none."""
        found = self.to_plain or {"value": "", "ci95": None}
        return [*self.entry.cells(), found["value"], *(found["ci95"] or ("", ""))]


Sides = Mapping[str, tuple[Score, Score]]
"""Row to what it has on both."""


def side_by_side(run_dir: Path) -> Sides:
    """The rows of a comparison over both test sets.

    Raises:
        InputError: The run has no comparison or no predictions.
    """
    comparison, result = comparison_of(run_dir), read_predictions(run_dir)
    seen, unseen = (_scores(comparison, result, side) for side in SIDES)
    return {row: (score, unseen[row]) for row, score in seen.items()}


def _scores(comparison: dict[str, Any], result: RunResult, side: str) -> dict[str, Score]:
    found = {entry.row: entry for entry in entries(comparison, side)}
    to_plain = to_twins(result, side, found, DISTILLED, PLAIN)
    return {row: Score(entry, to_plain.get(row)) for row, entry in found.items()}


def generalisation_csv(kinds: Mapping[str, Sides]) -> str:
    """One line per kind and row, seen before unseen."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = (f"{side}_{cell}" for side in SIDES for cell in (*CELLS, "to_plain", "to_plain_low", "to_plain_high"))
    writer.writerow(("generalisation", "row", "kind", "seeds", *columns, "parameters"))
    for kind, rows in kinds.items():
        for row, (seen, unseen) in rows.items():
            place = (kind, row, seen.entry.kind, seen.entry.seeds)
            writer.writerow((*place, *seen.cells(), *unseen.cells(), seen.entry.parameters))
    return text.getvalue()


def generalisation_table(kind: str, rows: Sides) -> Table:
    """For people: score and deviation over seeds; differences to the best zero-shot row, and of distilled to plain."""
    caption = "± standard deviation over seeds; differences to the best zero-shot row of the same pairs"
    caption += ", and to the same head without distillation; paired 95% intervals"
    table = Table(title=f"{kind}: PCK@0.10", caption=caption, title_justify="left", caption_justify="left")
    table.add_column("row", no_wrap=True)
    for side in SIDES:
        for column in (side, "to zero-shot", "to plain"):
            table.add_column(column, justify="right", no_wrap=True)
    for row, both in rows.items():
        table.add_row(row, *(cell for score in both for cell in _words(score)), style=STYLES[both[0].entry.kind])
    return table


def _words(score: Score) -> tuple[str, str, str]:
    entry, plain = score.entry, score.to_plain or {"value": None, "ci95": None}
    gains = ((entry.gain, entry.gain_ci95), (plain["value"], plain["ci95"]))
    to_zero_shot, to_plain = (difference_text(value, interval) for value, interval in gains)
    return entry.words, to_zero_shot, to_plain


def write_generalisation(folder: Path, kinds: Mapping[str, Sides]) -> Path:
    """Writes `generalise.csv` and returns it."""
    file = folder / "generalise.csv"
    write_text(file, generalisation_csv(kinds))
    return file
