"""Animals seen from the side, facing positive x of the drawing: fish, bird, quadruped."""

from ditf_probe.data.drawing.dice import BLACK, WHITE, Dice, darker, hsv, lighter
from ditf_probe.data.drawing.sketch import Colour, Sketch, ellipse, polygon, ribbon, smooth
from ditf_probe.data.drawing.textures import texture

FISH = (
    "upper tail tip", "lower tail tip", "dorsal fin tip", "belly fin tip", "tail root", "mouth", "eye",
    "side fin tip",
)  # fmt: skip
BIRD = ("tail tip", "front foot", "back foot", "breast", "wing tip", "beak tip", "crown", "eye")
QUADRUPED = (
    "far front foot", "far hind foot", "tail tip", "tail root", "near front foot", "near hind foot", "ear tip",
    "snout", "eye",
)  # fmt: skip


def _eye(s: Sketch, x: float, y: float, r: float) -> None:
    s.add(ellipse(x, y, r, r, corners=12), WHITE)
    s.add(ellipse(x + r * 0.15, y, r * 0.58, r * 0.58, corners=8), BLACK)
    s.mark("eye", x, y)


def draw_fish(dice: Dice) -> Sketch:
    """A fish with a forked tail, three fins, a gill and a mouth."""
    skin = dice.colour()
    fin = darker(skin, 0.3) if dice.chance(0.5) else dice.colour()
    s = Sketch(skin, darker(skin, 0.65) if dice.chance(0.5) else None, dice.between(-0.18, 0.18))
    h, root = dice.between(0.32, 0.6), dice.between(-0.66, -0.55)
    spread, fork = dice.between(0.3, 0.5), dice.between(0.1, 0.25)
    upper, lower = (-1.05, -spread), (-1.05, spread * dice.between(0.8, 1.1))
    s.add(polygon((root + 0.1, -0.05), upper, (-1.05 + fork, 0), lower, (root + 0.1, 0.05)), fin, contour=True)
    s.mark("upper tail tip", *upper)
    s.mark("lower tail tip", *lower)
    top = (dice.between(-0.25, -0.05), -h - dice.between(0.2, 0.4))
    s.add(polygon((0.4, -h * 0.7), top, (-0.4, -h * 0.5)), fin, contour=True)
    s.mark("dorsal fin tip", *top)
    low = (dice.between(-0.2, 0.0), h + dice.between(0.15, 0.3))
    s.add(polygon((0.25, h * 0.7), low, (-0.2, h * 0.6)), fin, contour=True)
    s.mark("belly fin tip", *low)
    nose = dice.between(0.9, 1.05)
    body = smooth(
        (nose, 0), (0.62, -h * 0.78), (0.1, -h), (-0.4, -h * 0.5), (root - 0.05, -0.09), (root - 0.05, 0.09),
        (-0.4, h * 0.5), (0.1, h), (0.62, h * 0.78),
    )  # fmt: skip
    s.add(body, skin, texture(dice, body, skin), contour=True)
    s.mark("tail root", root, 0)
    gill = darker(skin, 0.45)
    s.add(ribbon([(0.48, -h * 0.6), (0.38, 0), (0.48, h * 0.6)], [0.03, 0.07, 0.03]), gill)
    s.add(ribbon([(nose - 0.02, 0.06), (nose - 0.22, 0.13)], [0.07, 0.04]), gill)
    s.mark("mouth", nose - 0.02, 0.05)
    _eye(s, 0.66, -h * 0.3, dice.between(0.1, 0.15))
    fx, fy = dice.between(-0.2, -0.05), dice.between(0.12, 0.25)
    s.add(polygon((0.25, 0.02), (fx, fy), (0.22, 0.2)), fin, contour=True)
    s.mark("side fin tip", fx, fy)
    return s


def draw_bird(dice: Dice) -> Sketch:
    """A standing bird with a folded wing."""
    coat = dice.colour()
    wing = darker(coat, 0.35) if dice.chance(0.5) else dice.colour()
    beak = hsv(dice.between(0.02, 0.15), dice.between(0.7, 1.0), dice.between(0.7, 1.0))
    s = Sketch(coat, darker(coat, 0.65) if dice.chance(0.5) else None)
    h, hx, hy = dice.between(0.36, 0.5), dice.between(0.45, 0.66), dice.between(-0.78, -0.5)
    tail = (-1.05, dice.between(-0.5, 0.3))
    fan = polygon((-0.4, -0.2), (tail[0], tail[1] - 0.12), (tail[0] + 0.02, tail[1] + 0.12), (-0.4, 0.2))
    s.add(fan, wing, contour=True)
    s.mark("tail tip", tail[0] + 0.02, tail[1])
    floor = h + dice.between(0.3, 0.55)
    for name, x in (("front", dice.between(0.16, 0.3)), ("back", dice.between(-0.2, -0.05))):
        leg = darker(beak, 0.15)
        s.add(ribbon([(x - 0.05, h * 0.7), (x, floor)], [0.09, 0.07]), leg)
        s.add(polygon((x - 0.06, floor - 0.07), (x + 0.22, floor + 0.03), (x - 0.1, floor + 0.03)), leg)
        s.mark(f"{name} foot", x, floor - 0.02)
    body = smooth(
        (0.6, -0.05), (0.42, h * 0.75), (-0.05, h), (-0.5, h * 0.45), (-0.68, -0.08), (-0.2, -h * 0.8),
        (0.35, -h * 0.85),
    )  # fmt: skip
    s.add(body, coat, texture(dice, body, coat), contour=True)
    s.mark("breast", 0.57, 0.03)
    r = dice.between(0.24, 0.32)
    s.add(smooth((hx - r * 0.8, hy), (hx + r * 0.8, hy), (0.5, 0.0), (0.0, -h * 0.7)), coat)
    tip = (dice.between(-0.72, -0.5), dice.between(0.0, 0.25))
    feathers = smooth((0.28, -h * 0.4), (0.2, h * 0.25), (-0.15, h * 0.45), tip, (-0.25, -h * 0.5))
    s.add(feathers, wing, texture(dice, feathers, wing), contour=True)
    s.mark("wing tip", tip[0] + 0.03, tip[1])
    bill, droop = dice.between(0.22, 0.5), dice.between(-0.02, 0.12)
    s.add(polygon((hx + r * 0.7, hy - 0.1), (hx + r + bill, hy + droop), (hx + r * 0.7, hy + 0.13)), beak, contour=True)
    s.mark("beak tip", hx + r + bill, hy + droop)
    if dice.chance(0.4):
        s.add(polygon((hx + 0.08, hy - r * 0.8), (hx - 0.28, hy - r * 1.7), (hx - r * 0.8, hy - r * 0.4)), wing)
    s.add(ellipse(hx, hy, r, r), coat if dice.chance(0.6) else lighter(coat, 0.4), contour=s.outline is not None)
    s.mark("crown", hx, hy - r * 0.95)
    _eye(s, hx + r * 0.3, hy - r * 0.15, dice.between(0.075, 0.11))
    return s


def draw_quadruped(dice: Dice) -> Sketch:
    """A four-legged animal, between dog, horse and giraffe."""
    coat = dice.colour((0.3, 0.9), (0.4, 1.0))
    s = Sketch(coat, darker(coat, 0.65) if dice.chance(0.5) else None, dice.between(-0.06, 0.06))
    h, back = dice.between(0.22, 0.34), dice.between(-0.2, -0.05)
    belly, floor = back + 2 * h, back + 2 * h + dice.between(0.4, 0.75)
    hoof, thick = darker(coat, 0.65), dice.between(0.13, 0.2)
    sway = dice.between(-0.1, 0.1)

    def leg(name: str, x: float, swing: float, colour: Colour) -> None:
        bones = [(x, belly - h * 0.7), (x + swing * 0.4, (belly + floor) / 2), (x + swing, floor)]
        s.add(ribbon(bones, [thick * 1.5, thick, thick * 0.85]), colour, contour=True)
        s.add(ribbon([(x + swing * 0.9, floor - 0.1), (x + swing + 0.03, floor)], [thick * 0.95, thick * 1.15]), hoof)
        s.mark(name, x + swing, floor - 0.04)

    shade = darker(coat, 0.35)
    leg("far front foot", 0.5, dice.between(0.12, 0.26), shade)
    leg("far hind foot", -0.42, dice.between(0.12, 0.24), shade)
    end = (dice.between(-1.12, -0.88), back + dice.between(-0.3, 0.5))
    s.add(ribbon([(-0.6, back + 0.1), (-0.85, back + 0.05), end], [0.14, 0.1, 0.07]), coat, contour=True)
    s.add(ellipse(*end, 0.08, 0.08, corners=8), hoof)
    s.mark("tail tip", *end)
    nx, ny = dice.between(0.72, 0.9), back - dice.between(0.2, 0.65)
    s.add(ribbon([(0.42, back + h * 0.8), (0.58, back), (nx, ny)], [h * 1.7, h * 1.15, 0.24]), coat, contour=True)
    body = smooth(
        (0.68, back + h * 0.8), (0.5, belly), (0.0, belly - 0.05 + sway * 0.5), (-0.5, belly),
        (-0.7, back + h * 0.7), (-0.5, back), (0.0, back + 0.04 + sway * 0.3), (0.45, back),
    )  # fmt: skip
    s.add(body, coat, texture(dice, body, coat), contour=True)
    s.mark("tail root", -0.66, back + 0.12)
    leg("near front foot", 0.42, dice.between(-0.2, 0.02), coat)
    leg("near hind foot", -0.52, dice.between(-0.22, 0.0), coat)
    _muzzle(s, dice, nx, ny, coat)
    return s


def _muzzle(s: Sketch, dice: Dice, x: float, y: float, coat: Colour) -> None:
    length, droop = dice.between(0.3, 0.5), dice.between(0.08, 0.24)
    tip, high = (x - dice.between(0.1, 0.2), y - dice.between(0.3, 0.5)), dice.between(0.15, 0.2)
    s.add(polygon((x - 0.2, y - 0.02), tip, (x + 0.06, y - 0.1)), darker(coat, 0.25), contour=True)
    s.mark("ear tip", tip[0], tip[1] + 0.03)
    head = smooth(
        (x - 0.2, y + 0.02), (x, y - high), (x + length * 0.8, y + droop - 0.12), (x + length, y + droop),
        (x + length * 0.75, y + droop + 0.14), (x, y + high),
    )  # fmt: skip
    s.add(head, coat, contour=True)
    s.add(ellipse(x + length * 0.93, y + droop - 0.01, 0.09, 0.09, corners=8), BLACK)
    s.mark("snout", x + length * 0.93, y + droop)
    _eye(s, x + 0.07, y - high * 0.3, dice.between(0.075, 0.1))
