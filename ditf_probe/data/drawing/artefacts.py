"""Made things seen from the side, front towards positive x of the drawing: car, chair."""

from ditf_probe.data.drawing.dice import Dice, darker, hsv, lighter, mix
from ditf_probe.data.drawing.sketch import Colour, Sketch, box, ellipse, polygon, ribbon, smooth
from ditf_probe.data.drawing.textures import texture

CAR = (
    "front roof corner", "rear roof corner", "front window", "rear window", "headlight", "taillight",
    "door handle", "front wheel", "rear wheel",
)  # fmt: skip
CHAIR = (
    "far front foot", "far back foot", "far backrest top", "near backrest top", "near front foot", "near back foot",
    "far front seat corner", "near front seat corner", "near back seat corner",
)  # fmt: skip

_TYRE: Colour = (32, 30, 36)


def draw_car(dice: Dice) -> Sketch:
    """A car between coupe and van: cabin, two side windows, lights, door and two wheels."""
    paint = dice.colour((0.35, 0.95), (0.4, 1.0))
    s = Sketch(paint, darker(paint, 0.65) if dice.chance(0.5) else None)
    waist, sill, roof = -0.08, dice.between(0.3, 0.42), dice.between(-0.62, -0.42)
    front, rear = dice.between(0.15, 0.45), dice.between(-0.8, -0.4)  # corners of the roof
    screen, hatch = front + dice.between(0.15, 0.35), max(rear - dice.between(0.08, 0.3), -0.98)
    cabin = polygon((hatch, waist + 0.05), (rear, roof), (front, roof), (screen, waist + 0.05))
    top = paint if dice.chance(0.6) else dice.colour((0.1, 0.9), (0.15, 1.0))
    s.add(cabin, top, contour=True)
    s.mark("front roof corner", front, roof)
    s.mark("rear roof corner", rear, roof)
    glass = hsv(dice.between(0.5, 0.62), dice.between(0.1, 0.45), dice.between(0.6, 1.0))
    split, up, down = (front + rear) / 2 + dice.between(-0.02, 0.12), roof + 0.09, waist - 0.02
    bonnet = dice.between(0.0, 0.14)
    body = smooth(
        (-1.0, waist + 0.04), (hatch, waist), (0.0, waist - 0.02), (screen, waist), (0.92, waist + bonnet),
        (1.04, waist + bonnet + 0.14), (1.0, sill), (0.0, sill + 0.02), (-1.0, sill), (-1.06, waist + 0.2),
    )  # fmt: skip
    s.add(body, paint, texture(dice, body, paint), contour=True)
    s.add(polygon((split + 0.04, up), (front - 0.04, up), (screen - 0.14, down), (split + 0.04, down)), glass)
    s.mark("front window", (split + front + screen - 0.1) / 3 + 0.02, (up + down) / 2 + 0.02)
    s.add(polygon((rear + 0.06, up), (split - 0.04, up), (split - 0.04, down), (hatch + 0.16, down)), glass)
    s.mark("rear window", (rear + split * 2 + hatch + 0.14) / 4, (up + down) / 2 + 0.02)
    lamp = hsv(dice.between(0.12, 0.17), dice.between(0.1, 0.5), 1.0)
    y = waist + bonnet + 0.15
    s.add(ellipse(0.95, y, 0.1, 0.085, corners=12), lamp, contour=True)
    s.mark("headlight", 0.95, y)
    s.add(box(-1.05, waist + 0.12, -0.92, waist + 0.3), (220, 30, 30), contour=True)
    s.mark("taillight", -0.985, waist + 0.21)
    s.add(ribbon([(split, waist + 0.02), (split, sill - 0.02)], [0.025, 0.025]), darker(paint, 0.5))
    s.add(box(split - 0.2, waist + 0.09, split - 0.06, waist + 0.15), lighter(paint, 0.7))
    s.mark("door handle", split - 0.13, waist + 0.12)
    r = dice.between(0.2, 0.28)
    hub = mix((200, 200, 205), dice.colour(), 0.3)
    for name, x in (("front", dice.between(0.52, 0.64)), ("rear", dice.between(-0.66, -0.52))):
        s.add(ellipse(x, sill, r * 1.18, r * 1.18), darker(paint, 0.6))
        s.add(ellipse(x, sill + 0.02, r, r), _TYRE)
        s.add(ellipse(x, sill + 0.02, r * 0.55, r * 0.55, corners=12), hub)
        s.add(ellipse(x, sill + 0.02, r * 0.18, r * 0.18, corners=6), _TYRE)
        s.mark(f"{name} wheel", x, sill + 0.02)
    return s


def draw_chair(dice: Dice) -> Sketch:
    """A chair from its side and a little above: far legs and far edges lie up and to the front."""
    wood = dice.colour((0.3, 0.9), (0.4, 1.0))
    s = Sketch(wood, darker(wood, 0.65) if dice.chance(0.5) else None)
    dx, dy = dice.between(0.28, 0.45), -dice.between(0.2, 0.34)  # from the near side to the far side
    depth, seat, floor = dice.between(0.38, 0.55), dice.between(0.0, 0.16), 1.0
    thick, lean = dice.between(0.09, 0.14), dice.between(0.0, 0.25)
    x0, x1 = -depth - dx / 2, depth - dx / 2
    splay = dice.between(0.0, 0.12)
    legs = wood if dice.chance(0.5) else dice.colour((0.2, 0.9), (0.2, 0.9))

    def leg(name: str, x: float, y: float, swing: float, colour: Colour) -> None:
        s.add(ribbon([(x, seat + y), (x + swing, floor + y)], [thick * 1.15, thick * 0.9]), colour, contour=True)
        s.mark(name, x + swing, floor + y - 0.03)

    inset = thick * 0.6
    leg("far front foot", x1 + dx - inset, dy, splay, darker(legs, 0.4))
    leg("far back foot", x0 + dx + inset, dy, -splay, darker(legs, 0.4))
    high = seat - dice.between(0.8, 1.1)
    near, far = (x0 - lean, high), (x0 - lean + dx, high + dy)
    gap = seat - dice.between(0.0, 0.3)
    share = (seat - gap) / (seat - high)
    low = (x0 - lean * share, gap)
    rest = polygon(near, far, (low[0] + dx, low[1] + dy), low)
    for x, y in ((0.0, 0.0), (dx, dy)):
        s.add(ribbon([(x0 + x, seat + y), (x0 - lean + x, high + y)], [thick, thick * 0.8]), darker(wood, 0.25))
    cloth = wood if dice.chance(0.4) else dice.colour()
    s.add(rest, cloth, texture(dice, rest, cloth), contour=True)
    s.mark("far backrest top", *far)
    s.mark("near backrest top", *near)
    leg("near front foot", x1 - inset, 0.0, splay, legs)
    leg("near back foot", x0 + inset, 0.0, -splay, legs)
    top = polygon((x0, seat), (x0 + dx, seat + dy), (x1 + dx, seat + dy), (x1, seat))
    edge = polygon(
        (x0, seat), (x1, seat), (x1 + dx, seat + dy), (x1 + dx, seat + dy + 0.12), (x1, seat + 0.12), (x0, seat + 0.12)
    )  # fmt: skip
    s.add(edge, darker(cloth, 0.4))
    s.add(top, lighter(cloth, 0.12), texture(dice, top, cloth) if dice.chance(0.5) else (), contour=True)
    s.mark("far front seat corner", x1 + dx, seat + dy + 0.03)
    s.mark("near front seat corner", x1, seat + 0.03)
    s.mark("near back seat corner", x0, seat + 0.03)
    return s
