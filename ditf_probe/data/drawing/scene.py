"""An instance in its picture, as geometry: posed object, occluders, background. No pixels yet.

Coordinates are shares of the picture: (0, 0) is its top-left corner, (1, 1) its bottom-right corner.
"""

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from ditf_probe.data.drawing.categories import Category
from ditf_probe.data.drawing.dice import Dice, mix
from ditf_probe.data.drawing.sketch import Colour, Points, Shape, Sketch, ellipse, polygon, ribbon, smooth
from ditf_probe.data.drawing.textures import texture

EDGE = 1 / 32
"""A visible keypoint keeps this distance to the border: half a pixel of the smallest picture (16 px)."""


@dataclass(slots=True)
class Scene:
    """What a picture shows.

    Attributes:
        shapes: Object, then occluders, from back to front.
        occluders: How many of them, the last ones, are occluders.
        keypoints: `(K, 2)`, in the order of the category's names.
        visible: `(K,)` bool: inside the picture and covered by nothing.
        bbox: x0, y0, x1, y1 of the whole object, hidden parts included, cut at the border.
        outline: Colour of contours, or None.
        main: Colour that the background avoids.
        size: Longer side of the box before cutting.
        dice: Goes on with the background.
    """

    shapes: list[Shape]
    occluders: int
    keypoints: Points
    visible: NDArray[np.bool_]
    bbox: tuple[float, float, float, float]
    outline: Colour | None
    main: Colour
    size: float
    dice: Dice


def compose(category: Category, dice: Dice) -> Scene:
    """Draws, poses and partly hides one instance.

    More than half of the keypoints are visible, so that two instances always share one: occluders
    that hide too much are left out, and an instance that the border cuts too far is drawn anew.
    """
    sketch = category.draw(dice)
    shapes, places, low, high = _pose(sketch, category, dice)
    own = len(shapes)
    size = float((high - low).max())
    order = np.array(sketch.order)
    if dice.chance(0.6):
        shapes = shapes + [_occluder(dice, places, size) for _ in range(dice.integer(1, 2))]
    inside = ((places >= EDGE) & (places <= 1 - EDGE)).all(1)
    covered = _covered(places, order, shapes)
    visible = np.logical_and(inside, ~covered.any(1))
    while len(shapes) > own and 2 * visible.sum() <= len(places):
        shapes.pop()
        visible = np.logical_and(inside, ~covered[:, : len(shapes)].any(1))
    if 2 * visible.sum() <= len(places):
        return compose(category, dice)
    x0, y0, x1, y1 = np.concatenate([low, high]).clip(0, 1).tolist()
    return Scene(shapes, len(shapes) - own, places, visible, (x0, y0, x1, y1), sketch.outline, sketch.main, size, dice)


def _pose(sketch: Sketch, category: Category, dice: Dice) -> tuple[list[Shape], Points, Points, Points]:
    """Puts a sketch into the picture; returns shapes, keypoints and the two corners of the object's box."""
    outlines = [shape.points for shape in sketch.shapes]
    patches = [points for shape in sketch.shapes for points, _ in shape.texture]
    arrays = [np.array(sketch.places), *outlines, *patches]
    flat = np.concatenate(arrays)
    solid = sum(len(points) for points in outlines)
    first = len(sketch.places)
    flat[:, 1] -= sketch.bend * flat[:, 0] ** 2
    mirror = dice.chance(0.5)
    flat = _project(flat, dice, -1.0 if mirror else 1.0)
    body = flat[first : first + solid]
    low, high = body.min(0), body.max(0)
    scale = dice.between(0.5, 0.88) / float((high - low).max())
    room = 1 - (high - low) * scale
    slack = 0.06 if dice.chance(0.25) else -0.02  # some objects are cut by the border
    corner = np.array([_place(dice, float(r), slack) for r in room])
    flat = (flat - low) * scale + corner
    ends = list(accumulate(len(a) for a in arrays))
    pieces = [flat[start:end] for start, end in pairwise([0, *ends])]
    shapes, used = [], 1 + len(outlines)
    for shape, points in zip(sketch.shapes, pieces[1:used], strict=True):
        count = len(shape.texture)
        clipped = [(p, c) for p, (_, c) in zip(pieces[used : used + count], shape.texture, strict=True)]
        used += count
        shapes.append(Shape(points, shape.colour, clipped, shape.contour))
    places = pieces[0]
    if mirror and category.frontal:
        rows = category.mirrored
        places = places[rows]
        sketch.order = [sketch.order[row] for row in rows]
    return shapes, places, corner, corner + (high - low) * scale


def _place(dice: Dice, room: float, slack: float) -> float:
    """Where the box starts on one axis, given the room that is left."""
    start, end = -slack, room + slack
    return dice.between(start, end) if end > start else room / 2


def _project(points: Points, dice: Dice, sign: float) -> Points:
    """Mirrors, stretches, shears, turns and tilts."""
    turn = math.radians(dice.between(-35, 35))
    c, s = math.cos(turn), math.sin(turn)
    stretch, shear = math.exp(dice.between(-0.15, 0.15)), dice.between(-0.15, 0.15)
    matrix = np.array([[c, -s], [s, c]]) @ np.array([[stretch, shear], [0.0, 1 / stretch]]) @ np.diag([sign, 1.0])
    points = points @ matrix.T
    tilt = np.array([dice.between(-0.13, 0.13), dice.between(-0.13, 0.13)])
    scaled: Points = points / (1.0 + points @ tilt)[:, None]
    return scaled


def _covered(points: Points, order: NDArray[np.int64], shapes: list[Shape]) -> NDArray[np.bool_]:
    """`(K, S)`: which shapes drawn after a keypoint contain it (even-odd rule, all edges at once)."""
    starts = np.concatenate([s.points for s in shapes])
    ends = np.concatenate([part for s in shapes for part in (s.points[1:], s.points[:1])])
    x, y = points[:, :1], points[:, 1:]
    straddles = (starts[:, 1] > y) != (ends[:, 1] > y)
    rise = ends[:, 1] - starts[:, 1]
    slope = (ends[:, 0] - starts[:, 0]) / np.where(rise == 0, 1.0, rise)
    crosses = straddles & (x < starts[:, 0] + (y - starts[:, 1]) * slope)
    first = np.cumsum([0] + [len(s.points) for s in shapes[:-1]])
    inside = np.add.reduceat(crosses, first, axis=1, dtype=np.int64) % 2 == 1
    covered: NDArray[np.bool_] = inside & (np.arange(len(shapes)) >= order[:, None])
    return covered


def _occluder(dice: Dice, places: Points, size: float) -> Shape:
    """A thing in front of the object, near one of its keypoints."""
    x, y = dice.pick(places.tolist())
    reach = size * dice.between(0.08, 0.17)
    x, y = x + reach * dice.between(-0.6, 0.6), y + reach * dice.between(-0.6, 0.6)
    points = _thing(dice, x, y, reach)
    colour = dice.colour((0.1, 0.9), (0.2, 1.0))
    return Shape(points, colour, texture(dice, points, colour) if dice.chance(0.4) else ())


def _thing(dice: Dice, x: float, y: float, reach: float) -> Points:
    """A bar, an ellipse, a quadrilateral or a blob around (x, y)."""
    kind, turn = dice.integer(0, 3), dice.between(0, 2 * math.pi)
    c, s = math.cos(turn) * reach, math.sin(turn) * reach
    if kind == 0:
        long, wide = dice.between(1.5, 3.5), dice.between(0.4, 0.8) * reach
        return ribbon([(x - c * long, y - s * long), (x + c * long, y + s * long)], [wide, wide])
    if kind == 1:
        return ellipse(x, y, reach, reach * dice.between(0.5, 1.0), turn, corners=12)
    if kind == 2:
        return polygon((x + c, y + s), (x - s, y + c), (x - c * 1.1, y - s), (x + s, y - c * 0.8))
    a, b, d = (dice.between(0.6, 1.2) for _ in range(3))
    return smooth((x + c * a, y + s * a), (x - s * b, y + c * b), (x - c * d, y - s * d), (x + s, y - c))


@dataclass(slots=True)
class Background:
    """What lies behind the object, and the light on everything.

    Attributes:
        corners: Colours of the four corners, blended in between.
        clutter: Shapes behind the object.
        light: `(16, 16)` float32 factors on brightness, blended in between: a gradient and noise.
    """

    corners: list[Colour]
    clutter: list[Shape]
    light: NDArray[np.float32]


def background(scene: Scene) -> Background:
    """A background for a scene. To be called once: it goes on with the scene's random numbers."""
    dice = scene.dice
    sat, val = (0.0, 0.55), (0.2, 0.95)
    base = dice.colour(sat, val)
    if sum(abs(a - b) for a, b in zip(base, scene.main, strict=True)) < 120:
        base = (base[0] ^ 128, base[1] ^ 128, base[2] ^ 128)
    corners = [mix(base, dice.colour(sat, val), dice.between(0.0, 0.45)) for _ in range(4)]
    clutter = []
    for _ in range(dice.integer(2, 7)):
        x, y, reach = dice.random(), dice.random(), dice.between(0.05, 0.22)
        colour = mix(base, dice.colour((0.1, 0.8), (0.2, 1.0)), dice.between(0.25, 0.7))
        clutter.append(Shape(_thing(dice, x, y, reach), colour))
    if dice.chance(0.3):
        left, right = dice.between(0.5, 0.95), dice.between(0.5, 0.95)
        ground = mix(base, dice.colour(sat, val), 0.6)
        clutter.insert(0, Shape(polygon((-0.1, left), (1.1, right), (1.1, 1.1), (-0.1, 1.1)), ground))
    ramp = np.linspace(-1, 1, 16)
    light = 1 + dice.between(-0.15, 0.15) * ramp + dice.between(-0.15, 0.15) * ramp[:, None]
    light += dice.between(0.0, 0.05) * dice.normal(16, 16)
    return Background(corners, clutter, light.astype(np.float32))
