"""Learning curves: score over the number of training pairs."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditf_probe.errors import InputError
from ditf_probe.experiments.entries import CELLS, Entry, comparison_of, entries
from ditf_probe.files import write_text
from ditf_probe.pictures import Curve, Picture, curve_panels, save_picture
from ditf_probe.pictures.canvas import INK

_COLOUR = "#2f6fb0"


@dataclass(frozen=True)
class Point:
    """One training of a learning curve.

    Attributes:
        fraction: Of the training pairs.
        pairs: How many those are.
        rows: The rows of its test.
    """

    fraction: float
    pairs: int
    rows: list[Entry]

    def row(self, name: str) -> Entry:
        """A row by its name."""
        return next(row for row in self.rows if row.row == name)


def learning_curves(folder: Path) -> list[Point]:
    """The trainings of a sweep over fractions of the training pairs, tested on one data set; fewest pairs first.

    Raises:
        InputError: There is no run, or one has no comparison.
    """
    runs = [path for path in (folder / "runs").glob("*") if path.is_dir()]
    if not runs:
        raise InputError("--run-dir", str(folder), "holds no runs, run `ditf-probe experiment curves` first")
    return sorted((_point(comparison_of(run)) for run in runs), key=lambda point: point.fraction)


def _point(comparison: dict[str, Any]) -> Point:
    pairs = next(iter(comparison["settings"]["probes"].values()))["training"]["train"]
    return Point(pairs["fraction"], pairs["pairs"], entries(comparison, next(iter(comparison["datasets"]))))


def curves_csv(points: Sequence[Point]) -> str:
    """One line per training and row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("fraction", "pairs", "row", "kind", "seeds", *CELLS, "parameters"))
    for point in points:
        for row in point.rows:
            writer.writerow((point.fraction, point.pairs, row.row, row.kind, row.seeds, *row.cells(), row.parameters))
    return text.getvalue()


def curves_picture(points: Sequence[Point]) -> Picture:
    """A panel per head: its mean over seeds with intervals, and the best zero-shot row, which no pairs move."""
    pairs, panels = [float(point.pairs) for point in points], {}
    for head in (row for row in points[-1].rows if row.kind == "probe"):
        found = [point.row(head.row) for point in points]
        spans = [(row.ci95[0], row.ci95[1]) for row in found if row.ci95]
        shown = [Curve("head", pairs, [row.score for row in found], spans or None, _COLOUR)]
        if head.best is not None:
            level = points[-1].row(head.best).score
            shown.append(Curve(f"zero-shot ({head.best})", pairs, [level] * len(pairs), colour=INK, dashed=True))
        panels[head.row] = shown
    return curve_panels(panels, title="Learning curves", x_label="training pairs", y_label="PCK@0.10", log_x=True)


def write_curves(folder: Path) -> list[Path]:
    """Writes `curves.csv` and `curves.png` into the folder of a sweep, and returns both.

    Raises:
        InputError: There is no run, or one has no comparison.
    """
    points, files = learning_curves(folder), [folder / "curves.csv", folder / "curves.png"]
    write_text(files[0], curves_csv(points))
    save_picture(files[1], curves_picture(points))
    return files
