"""What learned rows cost: a table for people, and a file of its own, because time is measured anew by every test."""

import csv
import io
from collections.abc import Iterator

from rich.table import Table

from ditf_probe.comparison.table_parts import STYLES
from ditf_probe.tasks.records import DatasetResult, RowResult, RunResult

PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def cost_table(dataset: DatasetResult) -> Table | None:
    """Parameters, operations and time of the rows with heads; None where there are none."""
    rows = list(_costed(dataset))
    if not rows:
        return None
    devices = sorted({row.cost.device for row in rows if row.cost})
    caption = f"added to an image by the heads of a row; median time on {', '.join(devices)}"
    title = f"{dataset.name}: cost"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("row", no_wrap=True)
    for column in ("parameters", "grid", "FLOPs", "ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        assert row.cost is not None
        grid = f"{row.cost.grid[0]} x {row.cost.grid[1]}"
        flops = readable_flops(row.cost.flops)
        table.add_row(
            row.name, f"{row.parameters:,}", grid, flops, f"{row.cost.latency_ms:.3g}", style=STYLES[row.kind]
        )
    return table


def costs_to_csv(result: RunResult) -> str:
    """One line per data set and row with heads; empty where there are none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    lines = []
    for dataset in result.datasets:
        for row in _costed(dataset):
            assert row.cost is not None
            cost = (row.cost.flops, *row.cost.grid, row.cost.latency_ms, row.cost.device)
            lines.append((dataset.name, row.name, row.parameters, *cost))
    if lines:
        writer.writerow(("dataset", "row", "parameters", "flops", "grid_h", "grid_w", "latency_ms", "device"))
        writer.writerows(lines)
    return text.getvalue()


def readable_flops(flops: int) -> str:
    """A number of operations with three digits, such as 12.3 M."""
    for size, prefix in PREFIXES:
        if flops >= size:
            return f"{flops / size:.3g} {prefix}"
    return str(flops)


def _costed(dataset: DatasetResult) -> Iterator[RowResult]:
    return (row for row in dataset.rows if row.cost is not None)
