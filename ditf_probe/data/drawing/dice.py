"""Cheap random numbers and colours: one block of uniforms serves a whole drawing."""

import colorsys
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from ditf_probe.data.drawing.sketch import Colour, Points

WHITE: Colour = (245, 245, 240)
BLACK: Colour = (20, 18, 24)

T = TypeVar("T")
_BLOCK = 256


class Dice:
    """Scalar draws from a seeded generator, an order of magnitude cheaper than asking it each time.

    Args:
        entropy: Non-negative integers; equal entropy gives equal draws on every machine.
    """

    def __init__(self, entropy: Sequence[int]) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
        self._block: list[float] = []

    def random(self) -> float:
        """Uniform in [0, 1)."""
        if not self._block:
            self._block = self._generator.random(_BLOCK).tolist()
        return self._block.pop()

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.random()

    def integer(self, low: int, high: int) -> int:
        """Uniform integer in [low, high], both included."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[int(self.random() * len(options))]

    def normal(self, *shape: int) -> Points:
        """Standard normal array of the given shape."""
        return self._generator.standard_normal(shape)

    def colour(self, saturation: tuple[float, float] = (0.45, 0.95), value: tuple[float, float] = (0.5, 1.0)) -> Colour:
        """A colour of any hue within the given ranges of saturation and value."""
        return hsv(self.random(), self.between(*saturation), self.between(*value))


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Colour from hue (turns), saturation and value in [0, 1]."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return int(red * 255), int(green * 255), int(blue * 255)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with a share in [0, 1] of `b`."""
    red, green, blue = (int(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


def darker(colour: Colour, share: float = 0.35) -> Colour:
    """The colour mixed with black."""
    return mix(colour, (0, 0, 0), share)


def lighter(colour: Colour, share: float = 0.35) -> Colour:
    """The colour mixed with white."""
    return mix(colour, (255, 255, 255), share)
