"""Objects seen from the front: face, house, flower. Left and right are the object's own sides.

The object faces the viewer, so its own left lies at positive x of the drawing.
"""

import math

from ditf_probe.data.drawing.dice import BLACK, WHITE, Dice, darker, hsv, lighter, mix
from ditf_probe.data.drawing.sketch import Colour, Sketch, box, ellipse, polygon, ribbon, smooth
from ditf_probe.data.drawing.textures import texture

FACE = (
    "left ear", "right ear", "crown", "chin", "left eye", "right eye",
    "nose tip", "left mouth corner", "right mouth corner",
)  # fmt: skip
HOUSE = (
    "chimney top", "left base corner", "right base corner", "left eave", "right eave", "gable top",
    "left window", "right window", "door foot", "attic window",
)  # fmt: skip
FLOWER = (
    "left leaf tip", "right leaf tip", "left pot rim", "right pot rim", "pot base",
    "top petal tip", "left petal tip", "right petal tip", "flower centre",
)  # fmt: skip

_SIDES = (("left", 1.0), ("right", -1.0))


def draw_face(dice: Dice) -> Sketch:
    """A head with ears, hair, brows, eyes, nose and mouth, turned a little to one side."""
    skin = hsv(dice.between(0.0, 0.13), dice.between(0.2, 0.65), dice.between(0.45, 1.0))
    if dice.chance(0.35):
        skin = dice.colour((0.3, 0.7), (0.55, 1.0))
    hair = dice.colour((0.2, 0.9), (0.1, 0.75))
    s = Sketch(skin, darker(skin, 0.65) if dice.chance(0.5) else None)
    w, h = dice.between(0.62, 0.86), 1.0
    yaw = dice.between(-0.18, 0.18)
    jaw = dice.between(0.45, 0.75)
    long_hair = dice.chance(0.4)
    if long_hair:
        mane = smooth((0, -1.16), (w * 1.2, -0.6), (w * 1.2, 0.7), (0, 0.5), (-w * 1.2, 0.7), (-w * 1.2, -0.6))
        s.add(mane, hair)
    ear = dice.between(0.13, 0.24)
    for side, sign in _SIDES:
        x, y = sign * (w + ear * 0.3) - yaw * 0.3, -0.02
        s.add(ellipse(x, y, ear * 0.75, ear * 1.25, corners=12), skin, contour=True)
        s.add(ellipse(x, y, ear * 0.4, ear * 0.8, corners=8), darker(skin, 0.3))
        s.mark(f"{side} ear", x, y)
    head = smooth(
        (0, -h), (w * 0.75, -0.75), (w, -0.1), (w * jaw + 0.12, 0.7), (0, h),
        (-w * jaw - 0.12, 0.7), (-w, -0.1), (-w * 0.75, -0.75),
    )  # fmt: skip
    s.add(head, skin, texture(dice, head, skin) if dice.chance(0.3) else (), contour=True)
    line = dice.between(-0.72, -0.5)
    part = dice.between(-0.5, 0.5) * w
    top = 1.1 + dice.between(0, 0.12)
    cap = smooth(
        (0, -top), (w * 0.9, -0.85), (w * 1.03, -0.25), (w * 0.8, line + 0.05), (part, line - 0.15),
        (-w * 0.8, line + 0.05), (-w * 1.03, -0.25), (-w * 0.9, -0.85),
    )  # fmt: skip
    s.add(cap, hair)
    s.mark("crown", 0, -top)
    s.mark("chin", 0, h)
    _features(s, dice, w, yaw, darker(hair, 0.2), skin)
    return s


def _features(s: Sketch, dice: Dice, w: float, yaw: float, brow: Colour, skin: Colour) -> None:
    iris = dice.colour((0.5, 0.9), (0.35, 0.8))
    size, gap, y = dice.between(0.15, 0.22), dice.between(0.34, 0.42), dice.between(-0.22, -0.05)
    tilt = dice.between(-0.08, 0.08)
    for side, sign in _SIDES:
        x = sign * gap + yaw
        over = y - size - 0.12
        s.add(ribbon([(x - 0.2, over + sign * tilt), (x + 0.2, over - sign * tilt)], [0.09, 0.09]), brow)
        s.add(ellipse(x, y, size * 1.15, size), WHITE, contour=True)
        s.add(ellipse(x + yaw * 0.2, y, size * 0.68, size * 0.68, corners=12), iris)
        s.add(ellipse(x + yaw * 0.2, y, size * 0.38, size * 0.38, corners=8), BLACK)
        s.mark(f"{side} eye", x, y)
    nose, wide = y + dice.between(0.36, 0.48), dice.between(0.1, 0.17)
    nx = yaw * 1.5
    bridge = smooth((yaw * 0.8, y + 0.05), (nx + wide, nose), (nx, nose + 0.08), (nx - wide, nose))
    s.add(bridge, darker(skin, 0.25))
    s.mark("nose tip", nx, nose)
    my, mw, smile = nose + dice.between(0.2, 0.28), dice.between(0.24, 0.36), dice.between(-0.05, 0.14)
    lips = mix((200, 40, 60), dice.colour((0.6, 0.9), (0.4, 0.9)), 0.3)
    ends = my - smile / 2
    s.add(smooth((yaw + mw, ends), (yaw, my + smile + 0.1), (yaw - mw, ends), (yaw, my + smile - 0.06)), lips)
    if dice.chance(0.5):
        bite = [(yaw + mw * 0.7, my), (yaw, my + smile + 0.02), (yaw - mw * 0.7, my)]
        s.add(ribbon(bite, [0.03, 0.07, 0.03]), WHITE)
    s.mark("left mouth corner", yaw + mw, ends)
    s.mark("right mouth corner", yaw - mw, ends)


def draw_house(dice: Dice) -> Sketch:
    """A gabled front with a chimney, two windows, a door and a round attic window."""
    wall = dice.colour((0.15, 0.75), (0.6, 1.0))
    roof = dice.colour((0.4, 0.9), (0.25, 0.7))
    s = Sketch(wall, darker(wall, 0.7) if dice.chance(0.5) else None)
    w, top, base = dice.between(0.6, 0.95), dice.between(-0.25, 0.05), 0.95
    peak, over = dice.between(-1.15, -0.75), dice.between(0.1, 0.22)
    brick = dice.colour((0.3, 0.8), (0.3, 0.7))
    cx, cw = dice.between(0.35, 0.6) * w, dice.between(0.09, 0.14)
    ctop = peak + dice.between(-0.15, 0.12)
    s.add(box(cx - cw, ctop, cx + cw, top), brick, contour=True)
    s.add(box(cx - cw * 1.3, ctop, cx + cw * 1.3, ctop + 0.09), darker(brick))
    s.mark("chimney top", cx, ctop + 0.045)
    front = box(-w, top, w, base)
    s.add(front, wall, texture(dice, front, wall), contour=True)
    for side, sign in _SIDES:
        s.mark(f"{side} base corner", sign * w, base)
    gable = polygon((-w - over, top + 0.04), (0, peak), (w + over, top + 0.04))
    s.add(gable, roof, texture(dice, gable, roof) if dice.chance(0.6) else (), contour=True)
    for side, sign in _SIDES:
        s.mark(f"{side} eave", sign * (w + over), top + 0.04)
    s.mark("gable top", 0, peak)
    glass = hsv(dice.between(0.1, 0.65), dice.between(0.15, 0.6), dice.between(0.75, 1.0))
    frame = WHITE if dice.chance(0.6) else darker(roof, 0.4)
    shift = dice.between(-0.08, 0.08)
    ww, wh = dice.between(0.16, 0.21) * min(1.0, w / 0.8), dice.between(0.15, 0.22)
    wx, wy = w * 0.6, (top + base) / 2 + dice.between(-0.16, -0.02)
    for side, sign in _SIDES:
        x = sign * wx + shift * 0.3
        s.add(box(x - ww, wy - wh, x + ww, wy + wh), frame)
        s.add(box(x - ww * 0.75, wy - wh * 0.75, x + ww * 0.75, wy + wh * 0.75), glass)
        s.add(box(x - 0.025, wy - wh, x + 0.025, wy + wh), frame)
        s.add(box(x - ww, wy - 0.025, x + ww, wy + 0.025), frame)
        s.mark(f"{side} window", x, wy)
    door = dice.colour((0.4, 0.9), (0.2, 0.6))
    dw, dh = dice.between(0.13, 0.19) * min(1.0, w / 0.75), dice.between(0.4, 0.58)
    s.add(box(shift - dw, base - dh, shift + dw, base), door, contour=True)
    s.add(ellipse(shift + dw * 0.55, base - dh * 0.45, 0.04, 0.04, corners=8), (250, 220, 90))
    s.mark("door foot", shift, base)
    r, ay = dice.between(0.1, 0.15), top + (peak - top) * dice.between(0.3, 0.42)
    s.add(ellipse(0, ay, r * 1.3, r * 1.3, corners=12), frame)
    s.add(ellipse(0, ay, r, r, corners=12), glass)
    s.mark("attic window", 0, ay)
    return s


def draw_flower(dice: Dice) -> Sketch:
    """A flower with petals around an eye, a stem with two leaves, and a pot."""
    petal = dice.colour((0.45, 0.95), (0.6, 1.0))
    green = hsv(dice.between(0.2, 0.45), dice.between(0.45, 0.9), dice.between(0.35, 0.75))
    pot = dice.colour((0.3, 0.85), (0.35, 0.85))
    s = Sketch(petal, darker(petal, 0.65) if dice.chance(0.5) else None)
    fx, fy = dice.between(-0.18, 0.18), dice.between(-0.62, -0.45)
    rim = dice.between(0.5, 0.62)
    bow = dice.between(-0.15, 0.15)
    stem = [(fx, fy), (fx * 0.6 + bow, fy * 0.4 + rim * 0.4), (bow * 0.5, 0.35), (0.0, rim)]
    s.add(ribbon(stem, [0.08, 0.09, 0.1, 0.1]), green)
    for side, sign in _SIDES:
        y, reach, lift = dice.between(0.3, 0.42), dice.between(0.45, 0.65), dice.between(0.15, 0.4)
        root, tip, out = (bow * 0.5, y), (sign * reach, y - lift), sign * reach
        s.add(smooth(root, (out * 0.5, y - lift * 0.95), tip, (out * 0.6, y - lift * 0.2)), green, contour=True)
        s.add(ribbon([root, (out * 0.55, y - lift * 0.6), tip], [0.03, 0.03, 0.01]), lighter(green, 0.3))
        s.mark(f"{side} leaf tip", *tip)
    pw, foot = dice.between(0.32, 0.48), dice.between(0.6, 0.85)
    body = polygon((-pw, rim), (pw, rim), (pw * foot, 1.0), (-pw * foot, 1.0))
    s.add(body, pot, texture(dice, body, pot), contour=True)
    s.add(box(-pw * 1.12, rim - 0.03, pw * 1.12, rim + 0.1), darker(pot, 0.2), contour=True)
    for side, sign in _SIDES:
        s.mark(f"{side} pot rim", sign * pw * 1.12, rim + 0.035)
    s.mark("pot base", 0.0, 1.0)
    _head(s, dice, fx, fy, petal)
    return s


def _head(s: Sketch, dice: Dice, x: float, y: float, petal: Colour) -> None:
    count, reach = dice.pick((4, 8, 12)), dice.between(0.45, 0.6)
    wide = reach * {4: 0.55, 8: 0.3, 12: 0.2}[count] * dice.between(0.85, 1.15)
    second = petal if dice.chance(0.6) else lighter(petal, 0.45)
    for i in range(count):
        a = 2 * math.pi * i / count
        middle = reach * 0.58
        leaf = ellipse(x + middle * math.cos(a), y + middle * math.sin(a), reach * 0.42, wide, a, corners=12)
        s.add(leaf, second if i % 2 else petal, contour=True)
    s.mark("top petal tip", x, y - reach * 0.96)
    s.mark("left petal tip", x + reach * 0.96, y)
    s.mark("right petal tip", x - reach * 0.96, y)
    eye = hsv(dice.between(0.06, 0.16), dice.between(0.6, 1.0), dice.between(0.3, 1.0))
    r = reach * dice.between(0.26, 0.38)
    s.add(ellipse(x, y, r, r), eye, contour=True)
    s.add(ellipse(x, y, r * 0.55, r * 0.55, corners=12), darker(eye, 0.35))
    s.mark("flower centre", x, y)
