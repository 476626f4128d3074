"""Progress bars with rates for whatever takes longer than two seconds."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PATIENCE = 2.0  # seconds; what is done sooner needs no bar


class _Rate(ProgressColumn):
    """Items per second since the start."""

    def render(self, task: Task) -> Text:
        speed = task.completed / task.elapsed if task.elapsed else 0.0
        return Text(f"{speed:.1f} {task.fields['unit']}/s", style="progress.data.speed")


@contextmanager
def progress(description: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A bar on standard error that appears once the work has taken two seconds, on the first rank only.

    Args:
        description: What is being done.
        total: Number of items.
        unit: What the items are.

    Yields:
        A function to call with the number of items done since the last call.
    """
    hidden = os.environ.get("LOCAL_RANK", "0") != "0"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), disable=hidden)
    task = bar.add_task(description, total=total, unit=unit)
    start, shown = time.monotonic(), False

    def advance(count: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - start >= PATIENCE:
            bar.start()
            shown = True
        bar.advance(task, count)

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
