"""Bars of means, in panels that share their height."""

import math
from collections.abc import Mapping, Sequence

from ditf_probe.pictures.canvas import INK, Picture, new_figure, pixels_of

_PANEL_WIDTH, _PANEL_HEIGHT, _COLUMNS = 300, 240, 4
_BAR, _DOT = "#9db8d6", "#2f6fb0"


def bar_panels(panels: Mapping[str, Mapping[str, Sequence[float]]], *, title: str = "", y_label: str = "") -> Picture:
    """Draws a bar at the mean of some values, and each of them as a dot; panels in rows of four.

    Args:
        panels: Title of each panel to the name of each bar to its values, one or more, from 0 on.
        title: Stands above all.
        y_label: Left of the first panel of each row.

    Returns:
        The picture, `(H, W, 3)` uint8.
    """
    columns = min(_COLUMNS, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = new_figure(columns * _PANEL_WIDTH, rows * _PANEL_HEIGHT + 30)
    every = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (name, bars) in zip(every.flat, panels.items(), strict=False):
        axes.bar(range(len(bars)), [sum(values) / len(values) for values in bars.values()], color=_BAR, width=0.7)
        for place, values in enumerate(bars.values()):
            axes.plot([place] * len(values), values, "o", color=_DOT, markersize=4)
        axes.set_xticks(range(len(bars)), list(bars), fontsize=8)
        axes.set_title(name, loc="left", fontsize=9, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(every.flat)[len(panels) :]:
        axes.set_axis_off()
    highest = max((value for bars in panels.values() for values in bars.values() for value in values), default=1.0)
    every[0, 0].set_ylim(0, 1.08 * highest)  # once all is drawn: limits are shared
    for axes in every[:, 0]:
        axes.set_ylabel(y_label, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    figure.tight_layout()
    return pixels_of(figure)
