"""Tables are as wide as they need to be where no terminal limits them."""

import pytest
from rich.table import Table

from ditf_probe.printing import console


def test_no_line_of_a_piped_table_wraps(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="many columns", title_justify="left")
    for number in range(40):
        table.add_column(f"column {number}")
    table.add_row(*(f"{number} {'words ' * 9}" for number in range(40)))
    console().print(table)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6, "title, border, header, line, row, border"
    assert len(lines[1]) == len(lines[4]) > 40 * 54
    console().print(Table("short"))
    assert max(map(len, capsys.readouterr().out.splitlines())) == 9
