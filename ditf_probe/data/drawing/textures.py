"""Textures as polygons in the frame of the object, so that they turn with it and look alike at every size."""

import math
from collections.abc import Callable

import numpy as np

from ditf_probe.data.drawing.dice import Dice, darker, lighter, mix
from ditf_probe.data.drawing.sketch import Colour, Patch, Points, ellipse


def texture(dice: Dice, points: Points, colour: Colour) -> list[Patch]:
    """A random texture over the box around `points`: none, stripes, spots, gradient or blotches."""
    kind = dice.pick(_KINDS)
    return kind(dice, points, colour) if kind else []


def _second(dice: Dice, colour: Colour) -> Colour:
    """A colour that shows on the given one."""
    roll = dice.random()
    if roll < 0.35:
        return darker(colour, dice.between(0.3, 0.6))
    if roll < 0.7:
        return lighter(colour, dice.between(0.4, 0.8))
    return mix(dice.colour(), colour, 0.2)


def _bands(points: Points, edges: list[float], angle: float) -> list[Points]:
    """Quadrilaterals between successive edges (shares of the extent along the direction `angle`)."""
    low, high = points.min(0), points.max(0)
    middle, reach = (low + high) / 2, float(np.hypot(*(high - low))) / 2
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]]) * reach
    starts = middle + np.outer(np.array(edges) * 2 - 1, along * reach)
    left, right = starts + across, starts - across
    return [np.stack([left[i], left[i + 1], right[i + 1], right[i]]) for i in range(len(edges) - 1)]


def _stripes(dice: Dice, points: Points, colour: Colour) -> list[Patch]:
    count = dice.integer(3, 7)
    fill = _second(dice, colour)
    width = dice.between(0.35, 0.6)
    edges = [(i + part) / count for i in range(count) for part in (0.0, width)]
    return [(band, fill) for band in _bands(points, edges, dice.between(0, math.pi))[::2]]


def _gradient(dice: Dice, points: Points, colour: Colour) -> list[Patch]:
    end = _second(dice, colour)
    bands = _bands(points, [0.1 * i for i in range(11)], dice.between(0, 2 * math.pi))
    return [(band, mix(colour, end, i / 9)) for i, band in enumerate(bands) if i]


def _spots(dice: Dice, points: Points, colour: Colour) -> list[Patch]:
    low, high = points.min(0), points.max(0)
    fill = _second(dice, colour)
    n = dice.integer(3, 4)
    step = (high - low) / n
    radius = float(step.min()) * dice.between(0.22, 0.36)
    spots = []
    for i in range(n):
        for j in range(n):
            x = low[0] + step[0] * (i + 0.5 + dice.between(-0.25, 0.25))
            y = low[1] + step[1] * (j + 0.5 + dice.between(-0.25, 0.25))
            spots.append((ellipse(x, y, radius, radius, corners=8), fill))
    return spots


def _blotches(dice: Dice, points: Points, colour: Colour) -> list[Patch]:
    low, high = points.min(0), points.max(0)
    size = high - low
    shades = [darker(colour, 0.18), lighter(colour, 0.22), darker(colour, 0.3)]
    patches = []
    for _ in range(9):
        x, y = low[0] + size[0] * dice.random(), low[1] + size[1] * dice.random()
        rx, ry = size[0] * dice.between(0.08, 0.2), size[1] * dice.between(0.08, 0.2)
        patches.append((ellipse(x, y, rx, ry, dice.between(0, 3), corners=6), dice.pick(shades)))
    return patches


_KINDS: tuple[Callable[[Dice, Points, Colour], list[Patch]] | None, ...] = (
    None,
    _stripes,
    _spots,
    _gradient,
    _gradient,
    _blotches,
)
