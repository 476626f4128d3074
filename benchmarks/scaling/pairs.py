"""What one pair of images costs to match, three ways: those that `python -m benchmarks matching` measures.

Counted are the operations on numbers of the features, similarity maps and upsampled features, and the bytes that must
cross the memory where those are too large for a cache. Both follow from the sizes alone.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ditf_probe.matching.search import BUDGET

Method = Literal["exact", "vectorised", "reference"]
METHODS: tuple[Method, ...] = get_args(Method)

_DOUBLE, _SINGLE = torch.float64.itemsize, torch.float32.itemsize
_UPSAMPLING = 7  # operations per number: four weights, three sums
_GRAM = 10  # operations per number: with itself and four neighbours
_LIMITS = 30  # operations per row of the grid and column of the image: lengths and angles between two rows
_BOUND = 18  # the same per keypoint: cosines on both rows, their bound, comparisons
_PRODUCTS = 13  # numbers per cell: Gram products, and squared lengths between cells
_WORKING = 40  # bytes per bound while it is computed
_ADALN = 10  # operations per number: mean, variance, normalising, scale and shift


@dataclass(frozen=True, slots=True)
class PairSize:
    """How large a pair is.

    Attributes:
        channels: Of both maps.
        grid: (rows, columns) of both maps.
        image: (height, width) of both original images in pixels.
        keypoints: To match.
    """

    channels: int
    grid: tuple[int, int]
    image: tuple[int, int]
    keypoints: int

    @property
    def cells(self) -> int:
        """Of one map."""
        return self.grid[0] * self.grid[1]

    @property
    def pixels(self) -> int:
        """Of one original image."""
        return self.image[0] * self.image[1]


@dataclass(frozen=True, slots=True)
class PairCost:
    """What matching one pair costs.

    Attributes:
        channel_operations: Operations that grow with the channels.
        pixel_operations: The others, which grow with pixels and keypoints alone.
        traffic: Bytes that cross the memory.
        peak: Bytes of the largest tensors that exist at once, inputs not included.
    """

    channel_operations: int
    pixel_operations: int
    traffic: int
    peak: int

    @property
    def operations(self) -> int:
        """All."""
        return self.channel_operations + self.pixel_operations


def pair_cost(method: Method, size: PairSize) -> PairCost:
    """What matching one pair of float32 maps costs.

    Args:
        method: `exact` is `ditf_probe.matching`, in float64; the others upsample features, in float32.
        size: Of the pair.
    """
    if method == "exact":
        return _exact(size)
    upsampled = size.channels * size.pixels
    if method == "vectorised":
        # Upsampled once: written, read for the lengths, read and written for the division, read for the product.
        operations = upsampled * (_UPSAMPLING + 3 + 2 * size.keypoints)
        return PairCost(operations, size.keypoints * size.pixels, 5 * upsampled * _SINGLE, upsampled * _SINGLE)
    # Both maps upsampled; then for each keypoint all pixels are read for the length and the division, written, and
    # read for the product.
    operations = upsampled * (2 * _UPSAMPLING + size.keypoints * (3 + 2))
    traffic = (2 + 4 * size.keypoints) * upsampled * _SINGLE
    return PairCost(operations, size.keypoints * size.pixels, traffic, 3 * upsampled * _SINGLE)


def _exact(size: PairSize) -> PairCost:
    """Dot and Gram products on the grid, then one bound per keypoint, row of the grid and column of the image.

    The few pixels whose bound reaches the best one are not counted: how many there are depends on the features.
    """
    numbers, bounds = size.channels * size.cells, size.grid[0] * size.image[1]
    channel_operations = numbers * (2 * size.keypoints + _GRAM)
    pixel_operations = bounds * (size.keypoints * _BOUND + _LIMITS)
    # The features twice, for dots and for Gram products; what lies on the grid or between its rows written and read.
    products = (size.keypoints + _PRODUCTS) * size.cells * _DOUBLE
    limits = bounds * (_DOUBLE + 4 * _SINGLE)
    traffic = 2 * numbers * _SINGLE + 2 * (products + limits + size.keypoints * bounds * _SINGLE)
    working = min(size.keypoints * bounds * _WORKING, BUDGET)
    return PairCost(channel_operations, pixel_operations, traffic, products + limits + working)


def modulation_cost(size: PairSize, stored: torch.dtype) -> PairCost:
    """AdaLN of both stored streams of a pair: read in the dtype of the store, written in float32."""
    numbers = 2 * size.channels * size.cells
    return PairCost(_ADALN * numbers, 0, numbers * (stored.itemsize + _SINGLE), numbers * _SINGLE)
