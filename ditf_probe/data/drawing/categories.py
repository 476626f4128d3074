"""The categories of drawn objects."""

from collections.abc import Callable
from dataclasses import dataclass

from ditf_probe.data.drawing import animals, artefacts, frontal
from ditf_probe.data.drawing.dice import Dice
from ditf_probe.data.drawing.sketch import Sketch


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of object.

    Attributes:
        name: Name of the category.
        draw: Draws a random instance facing positive x, or facing the viewer.
        keypoints: Names of the keypoints, in the order in which `draw` marks them.
        frontal: Whether the object faces the viewer. Its keypoints are then named by its own sides,
            and a mirrored drawing swaps the names; objects seen from the side keep theirs.
    """

    name: str
    draw: Callable[[Dice], Sketch]
    keypoints: tuple[str, ...]
    frontal: bool = False

    @property
    def mirrored(self) -> list[int]:
        """Per keypoint, the row of the mirrored drawing that shows it."""
        if not self.frontal:
            return list(range(len(self.keypoints)))
        return [self.keypoints.index(other_side(name)) for name in self.keypoints]


def other_side(name: str) -> str:
    """The keypoint name with left and right exchanged."""
    swap = {"left": "right", "right": "left"}
    return " ".join(swap.get(word, word) for word in name.split())


OBJECTS = (
    Category("face", frontal.draw_face, frontal.FACE, frontal=True),
    Category("fish", animals.draw_fish, animals.FISH),
    Category("car", artefacts.draw_car, artefacts.CAR),
    Category("chair", artefacts.draw_chair, artefacts.CHAIR),
    Category("bird", animals.draw_bird, animals.BIRD),
    Category("quadruped", animals.draw_quadruped, animals.QUADRUPED),
    Category("house", frontal.draw_house, frontal.HOUSE, frontal=True),
    Category("flower", frontal.draw_flower, frontal.FLOWER, frontal=True),
)
"""Every category; the position is the class label."""
