"""A drawing as data: filled outlines in a frame of their own, and the named places on them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Points: TypeAlias = NDArray[np.float64]
"""`(N, 2)` float64, x to the right before y down."""

Colour: TypeAlias = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

Patch: TypeAlias = tuple[Points, Colour]
"""One filled polygon of a texture."""

_STEPS = 4
_T = np.arange(_STEPS)[:, None] / _STEPS
_CATMULL_ROM = 0.5 * np.hstack(
    [-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, -(_T**2) + _T**3]
)
_CIRCLES = {n: np.stack([np.cos(a), np.sin(a)], 1) for n in (6, 8, 12, 24) for a in [np.arange(n) * (2 * np.pi / n)]}


@dataclass(slots=True)
class Shape:
    """A filled polygon and the texture that it clips.

    Attributes:
        points: Outline.
        colour: Fill.
        texture: Polygons drawn over the fill, only where the outline is filled.
        contour: Whether a contour is drawn around it, where the drawing has contours.
    """

    points: Points
    colour: Colour
    texture: Sequence[Patch] = ()
    contour: bool = False


@dataclass(slots=True)
class Sketch:
    """Shapes in drawing order and keypoints between them.

    A keypoint lies on top of the shapes drawn before it was marked and may be covered by those drawn after.

    Attributes:
        shapes: From back to front.
        names: Names of the keypoints, in the order of marking.
        places: Their coordinates.
        order: Per keypoint, the number of shapes drawn before it was marked.
        main: Colour that the background should differ from.
        outline: Colour of contours, or None for a drawing without.
        bend: Curvature: a point is lifted by `bend * x**2`.
    """

    main: Colour
    outline: Colour | None = None
    bend: float = 0.0
    shapes: list[Shape] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    places: list[tuple[float, float]] = field(default_factory=list)
    order: list[int] = field(default_factory=list)

    def add(self, points: Points, colour: Colour, texture: Sequence[Patch] = (), *, contour: bool = False) -> None:
        """Draws a polygon over everything drawn so far."""
        self.shapes.append(Shape(points, colour, texture, contour))

    def mark(self, name: str, x: float, y: float) -> None:
        """Names a place on what has been drawn so far."""
        self.names.append(name)
        self.places.append((float(x), float(y)))
        self.order.append(len(self.shapes))


def polygon(*corners: tuple[float, float]) -> Points:
    """Straight lines between the given corners."""
    return np.array(corners, dtype=np.float64)


def smooth(*corners: tuple[float, float]) -> Points:
    """Closed Catmull-Rom curve through the given points, four samples to a span."""
    p = np.array(corners, dtype=np.float64)
    n = len(p)
    around = p[(np.arange(n)[:, None] + np.arange(-1, 3)) % n]  # (n, 4, 2)
    curve: Points = (_CATMULL_ROM @ around).reshape(-1, 2)
    return curve


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0, corners: int = 24) -> Points:
    """Ellipse around (x, y) as a polygon of 6, 8, 12 or 24 corners, turned by `turn` radians."""
    p = _CIRCLES[corners] * (rx, ry)
    if turn:
        c, s = np.cos(turn), np.sin(turn)
        p = p @ np.array([[c, s], [-s, c]])
    return np.add(p, (x, y))


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    """Upright rectangle."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.float64)


def ribbon(line: Sequence[tuple[float, float]], widths: Sequence[float]) -> Points:
    """Band along a line, with the given full width at every point of it."""
    p = np.array(line, dtype=np.float64)
    along = np.empty_like(p)
    along[1:-1] = p[2:] - p[:-2]
    along[0] = p[1] - p[0]
    along[-1] = p[-1] - p[-2]
    half = np.array(widths)[:, None] / 2 / np.sqrt((along**2).sum(1, keepdims=True))
    across = along[:, ::-1] * (-1.0, 1.0) * half
    return np.concatenate([p + across, (p - across)[::-1]])
