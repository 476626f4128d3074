"""A grid of scores as a heat map."""

from collections.abc import Mapping

import numpy as np

from ditf_probe.errors import InputError
from ditf_probe.pictures.canvas import INK, Picture, new_figure, pixels_of

_CELL_WIDTH, _CELL_HEIGHT = 46, 30  # pixels, for a number with one decimal
_MARGINS = (70, 40, 20, 50)  # left, top, right, bottom
_BEST = "#39d353"


def grid_picture(
    scores: Mapping[int, Mapping[int, float]], *, title: str = "", row_label: str = "", column_label: str = ""
) -> Picture:
    """Draws every score in a cell of its own, dark to bright, the first of the best ones framed.

    Args:
        scores: Row to column to score; all rows have the same columns.
        title: Stands above.
        row_label: What rows are.
        column_label: What columns are.

    Returns:
        The picture, `(H, W, 3)` uint8.

    Raises:
        InputError: No cells, or rows with different columns.
    """
    from matplotlib.patches import Rectangle

    columns = list(next(iter(scores.values()), {}))
    if not columns or any(list(row) != columns for row in scores.values()):
        raise InputError("scores", {row: list(found) for row, found in scores.items()}, "give rows of equal columns")
    values = np.array([list(row.values()) for row in scores.values()], dtype=np.float64)
    left, top, right, bottom = _MARGINS
    wide, high = len(columns) * _CELL_WIDTH, len(scores) * _CELL_HEIGHT
    width, height = max(left + wide + right, 8 * len(title) + 20), top + high + bottom
    figure = new_figure(width, height)
    axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
    axes.imshow(values, aspect="auto", cmap="inferno", interpolation="nearest")
    middle = (values.min() + values.max()) / 2
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if value <= middle else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=ink)
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=_BEST, linewidth=2.5)
    frame.set_clip_on(False)
    axes.add_patch(frame)
    axes.set_xticks(range(len(columns)), [str(name) for name in columns], fontsize=8)
    axes.set_yticks(range(len(scores)), [str(name) for name in scores], fontsize=8)
    axes.set_xlabel(column_label, fontsize=9)
    axes.set_ylabel(row_label, fontsize=9)
    figure.text(10 / width, 1 - top / 2 / height, title, fontsize=9, color=INK, va="center", ha="left")
    return pixels_of(figure)
