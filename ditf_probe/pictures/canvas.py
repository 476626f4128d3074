"""A strip of images side by side, with marks on them, drawn by matplotlib's objects on an Agg canvas.

pyplot is never used, so that no global state or display is involved. Canvas coordinates are canvas
pixels under the convention of images: the centre of the top-left pixel is (0, 0).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ditf_probe.files import replacing
from ditf_probe.geometry import resize_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = NDArray[np.uint8]
Point = tuple[float, float]

GAP = 12
INK = "#1f2328"
_DPI = 100
_TITLE_HEIGHT = 32
_SHARPEST = 4.0  # pixels enlarged beyond this factor are shown as the squares that they are
_COLOURS = (
    *("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#b04fd8", "#42d4f4", "#f032e6"),
    *("#bfef45", "#fabed4", "#469990", "#dcbeff", "#b07430", "#aaffc3", "#ff9d76", "#7f8cff"),
)


def new_figure(width: int, height: int) -> "Figure":
    """An empty white figure of so many pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def pixels_of(figure: "Figure") -> Picture:
    """Renders a figure: `(H, W, 3)` uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = figure.canvas
    if not isinstance(canvas, FigureCanvasAgg):
        raise TypeError("the figure must come from new_figure")
    canvas.draw()  # type: ignore[no-untyped-call]  # matplotlib leaves it untyped
    shown: Picture = np.asarray(canvas.buffer_rgba(), dtype=np.uint8)  # type: ignore[no-untyped-call]  # so too
    return shown[..., :3].copy()


def save_picture(path: Path, picture: Picture) -> None:
    """Writes a picture as a PNG file, whole or not at all.

    Args:
        path: Of the file; its folder is created.
        picture: `(H, W, 3)` uint8.
    """
    with replacing(path) as temporary:
        # A third of the time of the default level, for 7% more bytes.
        Image.fromarray(picture).save(temporary, format="PNG", compress_level=3)


def distinct_colour(index: int) -> str:
    """A vivid colour per index, the same in every picture; 16 differ clearly, then they repeat."""
    return _COLOURS[index % len(_COLOURS)]


@dataclass(frozen=True, slots=True)
class _Box:
    """Where an image stands on the canvas, its own (height, width) and the one it is shown at."""

    left: int
    top: int
    size: tuple[int, int]
    shown: tuple[int, int]


class Strip:
    """Images in rows and columns at given heights, and marks in the pixels of each image.

    Args:
        rows: Images `(3, H, W)` uint8 of each row, from the top; each row has as many as the first.
        height: Of the images of each row in canvas pixels. Images of one column should have one shape.
        title: Stands above the images, if any.
        sharp_rows: Rows whose pixels stay squares.
    """

    def __init__(
        self, rows: list[list[Tensor]], height: int, title: str = "", sharp_rows: tuple[int, ...] = ()
    ) -> None:
        widths = [round(image.shape[2] * height / image.shape[1]) for image in rows[0]]
        top = _TITLE_HEIGHT if title else 0
        width, total = sum(widths) + GAP * (len(widths) - 1), top + len(rows) * (height + GAP) - GAP
        self.figure = new_figure(width, total)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(-0.5, width - 0.5), ylim=(total - 0.5, -0.5))
        self.axes.set_axis_off()
        self._boxes: list[list[_Box]] = []
        for r, row in enumerate(rows):
            y = top + r * (height + GAP)
            lefts = [sum(widths[:c]) + c * GAP for c in range(len(widths))]
            boxes = [
                _Box(x, y, (i.shape[1], i.shape[2]), (height, w)) for x, i, w in zip(lefts, row, widths, strict=True)
            ]
            self._boxes.append(boxes)
            for image, box in zip(row, boxes, strict=True):
                self._show(image, box, sharp=r in sharp_rows)
        # Showing an image changes the limits.
        self.axes.set(xlim=(-0.5, width - 0.5), ylim=(total - 0.5, -0.5))
        if title:
            self.axes.text(4, top / 2 - 1, title, fontsize=11, color=INK, va="center", ha="left")

    def scale(self, column: int, row: int = 0) -> float:
        """Canvas pixels per pixel of an image."""
        box = self._boxes[row][column]
        return box.shown[0] / box.size[0]

    def places(self, points: Tensor, column: int, row: int = 0) -> list[Point]:
        """Canvas coordinates of points `(K, 2)` in pixels of an image."""
        box = self._boxes[row][column]
        moved = resize_points(points.detach().cpu().double(), box.size, box.shown)
        return [(x + box.left, y + box.top) for x, y in moved.tolist()]

    def _show(self, image: Tensor, box: "_Box", sharp: bool) -> None:
        scale = box.shown[0] / box.size[0]
        smooth = "bicubic" if scale > 1 else "antialiased"
        left, top, (height, width) = box.left - 0.5, box.top - 0.5, box.shown
        self.axes.imshow(
            image.detach().cpu().permute(1, 2, 0).numpy(),
            extent=(left, left + width, top + height, top),
            interpolation="nearest" if sharp or scale > _SHARPEST else smooth,
            aspect="auto",
        )

    def dot(self, place: Point, colour: str) -> None:
        """A filled disc with a white rim."""
        self.axes.plot(*place, "o", color=colour, markersize=7, markeredgecolor="white", markeredgewidth=1.2, zorder=4)

    def ring(self, place: Point, colour: str) -> None:
        """A circle."""
        for edge, width, order in (("white", 4.2, 4), (colour, 2.4, 5)):
            self.axes.plot(
                *place,
                "o",
                markersize=11,
                markerfacecolor="none",
                markeredgecolor=edge,
                markeredgewidth=width,
                zorder=order,
            )

    def cross(self, place: Point, colour: str) -> None:
        """A diagonal cross."""
        for edge, width, size, order in (("white", 5.0, 11, 4), (colour, 2.8, 10, 5)):
            self.axes.plot(*place, "x", color=edge, markersize=size, markeredgewidth=width, zorder=order)

    def plus(self, place: Point, colour: str) -> None:
        """An upright cross."""
        for edge, width, size, order in (("black", 4.0, 13, 4), (colour, 2.0, 12, 5)):
            self.axes.plot(*place, "+", color=edge, markersize=size, markeredgewidth=width, zorder=order)

    def line(self, start: Point, end: Point, colour: str, *, style: str = "-", strong: bool = True) -> None:
        """A straight line between two places."""
        xs, ys = zip(start, end, strict=True)
        width, alpha = (1.8, 0.95) if strong else (1.1, 0.75)
        self.axes.plot(xs, ys, style, color=colour, linewidth=width, alpha=alpha, solid_capstyle="round", zorder=3)

    def circle(self, place: Point, radius: float, colour: str) -> None:
        """A dotted circle of a radius in canvas pixels."""
        from matplotlib.patches import Circle

        self.axes.add_patch(Circle(place, radius, fill=False, edgecolor=colour, linestyle=":", linewidth=1.7, zorder=3))

    def picture(self) -> Picture:
        """What has been drawn: `(H, W, 3)` uint8."""
        return pixels_of(self.figure)
