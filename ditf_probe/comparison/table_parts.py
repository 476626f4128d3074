"""What the tables of a comparison share."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ditf_probe.printing import WIDEST

STYLES = {"zero-shot": "", "probe": "bold", "control": "dim"}
WORDS = {"per_point": "per point", "per_image": "per image"}
NOTES = "notes"
"""Header of the column of remarks, which may wrap."""

_WIDTH_OF_NOTES = 40  # narrower ones stand better under the table


def interval_text(interval: list[float] | None, sign: str = "") -> str:
    """An interval in words; nothing for None."""
    return "" if interval is None else f"{interval[0]:{sign}.1f} to {interval[1]:{sign}.1f}"


def difference_text(value: float | None, interval: list[float] | None) -> str:
    """A difference with its sign, and its interval where it has one; nothing for None."""
    if value is None:
        return ""
    return f"{value:+.1f}" + (f" ({interval_text(interval, '+')})" if interval else "")


def number_text(value: float | None) -> str:
    """A percentage with one decimal; nothing for None."""
    return "" if value is None else f"{value:.1f}"


def fitted(table: Table, width: int, spare: Sequence[str]) -> Table:
    """Makes a table readable in a terminal: cells that are cut off say nothing.

    Args:
        table: A table whose first column names its rows; changed.
        width: Characters in a line of the terminal.
        spare: Headers of columns that may be left out, the first to go first. The caption names those that are.

    Returns:
        The same table. Notes that would be narrow columns stand in its caption, a line for each row.
    """
    remarks: list[str] = []
    notes = next((column for column in table.columns if column.header == NOTES), None)
    if notes is not None and _natural_width(table) > width:
        table.columns.remove(notes)
        if width - _natural_width(table) >= _WIDTH_OF_NOTES:
            table.columns.append(notes)
            return table
        named = zip(table.columns[0].cells, notes.cells, strict=True)
        remarks += [f"{name}: {note}" for name, note in named if note]
    left_out = []
    for column in [column for header in spare for column in table.columns if column.header == header]:
        if _natural_width(table) > width:
            table.columns.remove(column)
            left_out.append(str(column.header))
    if left_out:
        remarks.append(f"left out in this width: {', '.join(left_out)}")
    table.caption = "\n".join([str(table.caption or ""), *remarks])
    return table


def _natural_width(table: Table) -> int:
    return Console(width=WIDEST).measure(table).maximum
