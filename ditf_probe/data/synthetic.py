"""Pairs of drawn objects with exact semantic keypoints: the data set that is always there."""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.data.drawing import OBJECTS, Category, Dice, Scene, compose, rasterise
from ditf_probe.data.drawing.sketch import Points
from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.errors import InputError

CATEGORIES: tuple[str, ...] = tuple(category.name for category in OBJECTS)
"""Names of the categories; the position is the class label."""

SPLITS = ("train", "val", "test")
SMALLEST = 16
"""Smallest side of a picture in pixels."""

_SIDES = ("source", "target")
_SINGLE = 2  # stream of single pictures, beside the two sides of pairs
_Box = tuple[float, float, float, float]


def class_index(category: str) -> int:
    """The class label of a category name.

    Raises:
        InputError: If there is no such category.
    """
    if category not in CATEGORIES:
        raise InputError("category", category, f"use one of {', '.join(CATEGORIES)}")
    return CATEGORIES.index(category)


class SyntheticPairs(PairDataset):
    """Pairs of drawn instances of one category, each with its own shape, colours, pose and surroundings.

    Everything follows from (seed, split, index, side); `image_size` changes the raster, not the picture.
    Categories take turns over the index. More than half of the keypoints of every picture are visible,
    so every pair has one that is visible in both.

    Left and right are the object's own sides for objects that face the viewer (face, house, flower): the
    left eye is at the right of an upright picture, mirrored or not. Objects seen from the side (fish, car,
    chair, bird, quadruped) have front and back, near and far, which a mirrored picture keeps.

    Args:
        split: "train", "val" or "test"; no picture is in two of them.
        num_pairs: Number of pairs. A longer list begins with the shorter one.
        image_size: Side of the square pictures in pixels, at least 16.
        seed: Another seed gives other pictures.

    Raises:
        InputError: If an argument is out of range.
    """

    name = "synthetic"
    unit = "instance pair"
    threshold = "bbox"

    def __init__(self, split: str = "train", num_pairs: int = 1000, image_size: int = 64, seed: int = 0) -> None:
        if num_pairs < 1:
            raise InputError("num_pairs", num_pairs, "ask for at least one pair")
        _check(split, image_size, seed)
        self.split = split
        self.num_pairs = num_pairs
        self.image_size = image_size
        self.seed = seed

    def __len__(self) -> int:
        return self.num_pairs

    def __getitem__(self, index: int) -> Pair:
        """The annotations of one pair; draws no pixels. Negative indices count from the end."""
        if not -self.num_pairs <= index < self.num_pairs:
            raise IndexError(f"pair {index} of {self.num_pairs}")
        index %= self.num_pairs
        category = _category(index)
        source, target = (self._side(index, side) for side in range(2))
        unit = f"synthetic/seed{self.seed}/{self.split}/{index:06d}"
        return Pair(index, category.name, unit, source, target, class_index(category.name))

    def image(self, image_id: str) -> Tensor:
        """Draws the picture of an id.

        Returns:
            `(3, image_size, image_size)` uint8 RGB.

        Raises:
            InputError: If the id is not one of this data set.
        """
        index, side = self._parse(image_id)
        return torch.from_numpy(_planes(_scene(self.seed, self.split, index, side), self.image_size))

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        """Names of the keypoints of a category, in row order."""
        return OBJECTS[class_index(category)].keypoints

    def image_ids(self) -> list[str]:
        """Every image of the pair list once, in order of first use."""
        return [self._image_id(index, side) for index in range(self.num_pairs) for side in range(2)]

    def _image_id(self, index: int, side: int) -> str:
        return f"synthetic/seed{self.seed}/{self.split}/{self.image_size}/{index:06d}/{_SIDES[side]}"

    def _parse(self, image_id: str) -> tuple[int, int]:
        number, _, side = image_id.rpartition("/")
        digits = number.rpartition("/")[2]
        if side in _SIDES and digits.isascii() and digits.isdigit():
            index, row = int(digits), _SIDES.index(side)
            if index < self.num_pairs and image_id == self._image_id(index, row):
                return index, row
        example = self._image_id(0, 0)
        raise InputError("image_id", image_id, f"use an id of this data set, such as {example!r}")

    def _side(self, index: int, side: int) -> Side:
        places, visible, box = _known(self.seed, self.split, index, side)
        keypoints, bbox = _in_pixels(places, box, self.image_size)
        return Side(
            image_id=self._image_id(index, side),
            size=(self.image_size, self.image_size),
            keypoints=torch.from_numpy(keypoints),
            visible=torch.from_numpy(visible.copy()),
            bbox=torch.from_numpy(bbox),
        )


def draw_image(split: str, index: int, image_size: int, seed: int = 0) -> tuple[NDArray[np.uint8], int]:
    """Draws a single picture, for pretraining. None of them is in a pair of any split.

    Args:
        split: "train", "val" or "test"; the streams are disjoint.
        index: Number of the picture, from 0; categories take turns.
        image_size: Side in pixels, at least 16.
        seed: Another seed gives other pictures.

    Returns:
        `(3, image_size, image_size)` uint8 RGB and the class label.

    Raises:
        InputError: If an argument is out of range.
    """
    return _planes(single_scene(split, index, image_size, seed), image_size), index % len(OBJECTS)


def single_scene(split: str, index: int, image_size: int, seed: int = 0) -> Scene:
    """What `draw_image` draws, as geometry; arguments are those of `draw_image`.

    Raises:
        InputError: If an argument is out of range.
    """
    _check(split, image_size, seed)
    if index < 0:
        raise InputError("index", index, "count pictures from 0")
    return _scene(seed, split, index, _SINGLE)


def _check(split: str, image_size: int, seed: int) -> None:
    if split not in SPLITS:
        raise InputError("split", split, f"use one of {', '.join(SPLITS)}")
    if image_size < SMALLEST:
        raise InputError("image_size", image_size, f"use at least {SMALLEST} pixels")
    if seed < 0:
        raise InputError("seed", seed, "use zero or more")


def _category(index: int) -> Category:
    return OBJECTS[index % len(OBJECTS)]


def _scene(seed: int, split: str, index: int, stream: int) -> Scene:
    return compose(_category(index), Dice((seed, SPLITS.index(split), index, stream)))


def _planes(scene: Scene, image_size: int) -> NDArray[np.uint8]:
    """The picture as `(3, image_size, image_size)`."""
    return np.ascontiguousarray(rasterise(scene, image_size).transpose(2, 0, 1))


@lru_cache(maxsize=8192)  # asked for in every epoch of a training, and as long in the making as a small head's step
def _known(seed: int, split: str, index: int, stream: int) -> tuple[Points, NDArray[np.bool_], _Box]:
    """Keypoints `(K, 2)`, which of them are visible `(K,)`, and the box; shares of the picture, not to be changed."""
    scene = _scene(seed, split, index, stream)
    return scene.keypoints, scene.visible, scene.bbox


def _in_pixels(places: Points, box: _Box, image_size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Keypoints `(K, 2)` and box `(4,)` in pixels; keypoints outside the picture are moved to its border."""
    keypoints = (places * image_size - 0.5).clip(0, image_size - 1)
    bbox = np.array(box) * image_size - 0.5
    return keypoints.astype(np.float32), bbox.astype(np.float32)
