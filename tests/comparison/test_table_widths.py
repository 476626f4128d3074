"""Tables fit a terminal: columns are left out by name, never cut."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from ditf_probe.comparison.table_parts import fitted


def table(notes: str = "+8.2 (+6.5 to +10.2) to raw, the best zero-shot row") -> Table:
    """110 characters wide without its notes."""
    made = Table(title="synthetic: 320 pairs", caption="per point")
    for header in ("row", "@0.01", "@0.05", "@0.10", "@0.15", "@0.10 95%", "to adaln", "95%", "parameters"):
        made.add_column(header, no_wrap=True)
    made.add_column("notes")
    scores = ("1.0", "10.2", "18.7", "25.7")
    made.add_row("adaln+discard_post", *scores, "16.9 to 20.4", "+0.0", "+0.0 to +0.0", "0", "")
    made.add_row("linear", *scores, "25.9 to 30.1", "+9.3", "+7.5 to +11.1", "9,312", notes)
    return made


SPARE = ("@0.01", "@0.05", "@0.15", "parameters")


def shown(made: Table, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(fitted(made, width, SPARE))
    return stream.getvalue()


@pytest.mark.parametrize("width", [72, 80, 85, 100, 109, 120, 148, 149, 160, 200])
def test_nothing_is_cut(width: int) -> None:
    text = shown(table(), width)
    assert "…" not in text
    for kept in ("adaln+discard_post", "16.9 to 20.4", "+7.5 to +11.1", "@0.10"):
        assert kept in text
    for header in SPARE:
        assert header in text, "a column, or named as left out"
    assert max(map(len, text.splitlines())) <= width


def test_a_wide_terminal_has_everything_in_its_place() -> None:
    made = fitted(table(), 200, SPARE)
    assert [column.header for column in made.columns][-2:] == ["parameters", "notes"]
    assert made.caption == "per point"


def test_notes_go_under_the_table_before_a_column_is_left_out() -> None:
    made = fitted(table(), 120, SPARE)
    assert [column.header for column in made.columns][-1] == "parameters"
    assert made.caption == "per point\nlinear: +8.2 (+6.5 to +10.2) to raw, the best zero-shot row"


def test_columns_go_in_the_given_order_and_are_named() -> None:
    made = fitted(table(""), 100, SPARE)
    headers = ["row", "@0.10", "@0.15", "@0.10 95%", "to adaln", "95%", "parameters"]
    assert [column.header for column in made.columns] == headers
    assert made.caption == "per point\nleft out in this width: @0.01, @0.05"
