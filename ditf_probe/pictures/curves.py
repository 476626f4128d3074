"""Curves with their intervals, in panels that share their axes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ditf_probe.pictures.canvas import INK, Picture, new_figure, pixels_of

if TYPE_CHECKING:
    from matplotlib.lines import Line2D

_PANEL_WIDTH, _PANEL_HEIGHT, _COLUMNS = 300, 240, 4


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        name: In the legend; curves of one name look alike in all panels.
        x: Positions in ascending order.
        y: A value for each.
        spans: Lower and upper end of the interval of each value, or None.
        colour: Of the line.
        dashed: For controls.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spans: Sequence[tuple[float, float]] | None = None
    colour: str = INK
    dashed: bool = False


def curve_panels(
    panels: Mapping[str, Sequence[Curve]],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    zero: bool = False,
    log_x: bool = False,
) -> Picture:
    """Draws panels in rows of four, with intervals as bands.

    Args:
        panels: Title of each panel to its curves; a panel may be empty.
        title: Stands above all.
        x_label: Under the panels of the last row.
        y_label: Left of the first panel of each row.
        zero: Whether to draw a line at y = 0.
        log_x: Whether x is on a logarithmic scale, with a tick at each position.

    Returns:
        The picture, `(H, W, 3)` uint8.
    """
    columns = min(_COLUMNS, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = new_figure(columns * _PANEL_WIDTH, rows * _PANEL_HEIGHT + 70)
    every = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    shown: dict[str, Line2D] = {}
    for axes, (name, curves) in zip(every.flat, panels.items(), strict=False):
        for curve in curves:
            style = "--" if curve.dashed else "-"
            (line,) = axes.plot(curve.x, curve.y, style, color=curve.colour, linewidth=1.6, marker="o", markersize=3)
            shown.setdefault(curve.name, line)
            if curve.spans is not None:
                low, high = zip(*curve.spans, strict=True)
                axes.fill_between(
                    curve.x, low, high, color=curve.colour, alpha=0.08 if curve.dashed else 0.16, linewidth=0
                )
        if log_x:
            places = sorted({x for curve in curves for x in curve.x})
            axes.set_xscale("log")
            axes.set_xticks(places, [f"{x:g}" for x in places])
            axes.set_xticks([], minor=True)
        if zero:
            axes.axhline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_title(name, loc="left", fontsize=10, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(every.flat)[len(panels) :]:
        axes.set_axis_off()
    for axes in every[:, 0]:
        axes.set_ylabel(y_label, fontsize=9)
    for axes in every[-1]:
        axes.set_xlabel(x_label, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    figure.legend(
        list(shown.values()), list(shown), loc="lower center", ncols=max(1, len(shown)), frameon=False, fontsize=9
    )
    figure.tight_layout(rect=(0, 36 / (rows * _PANEL_HEIGHT + 70), 1, 1))
    return pixels_of(figure)
