"""Cosines of descriptors with interpolated features, computed on the grid.

Interpolation is linear, so the dot products of a source descriptor with the interpolated features are the interpolated
dot products with the grid vectors: K maps instead of C. The length that they are divided by is that of the interpolated
feature, not the interpolated length; its square is a quadratic form of the four neighbouring grid vectors, so their
dot products with each other (Gram products) give it exactly. Everything runs in float64: differences of neighbours may
cancel, border pixels must tie bit by bit, and neither autocast nor TF32 touches float64. Callers move features to where
there is float64.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.errors import InputError
from ditf_probe.geometry import axis_coordinates

# Elements in float64 per piece of work: small enough for a cache of a few MiB, large enough to hide call overheads.
CHANNEL_PIECE = 2**18
KEYPOINT_PIECE = 2**21
ROW_PIECE = 2**17

# A squared length below this part of its upper bound is rounding of an exact zero: neighbours that cancel out.
CANCELLED = 1e-14


class Axis(NamedTuple):
    """Bilinear interpolation along one axis: `(1 - fraction) * value[low] + fraction * value[high]`."""

    low: Tensor
    high: Tensor
    fraction: Tensor

    @classmethod
    def at(cls, coordinates: Tensor, cells: int) -> "Axis":
        """Replicates the outermost cells: half a cell around the border repeats them."""
        inside = coordinates.clamp(0, cells - 1)
        low = inside.floor().long()
        return cls(low, (low + 1).clamp_max(cells - 1), inside - low)

    @classmethod
    def of(cls, pixels: int, cells: int, device: torch.device) -> "Axis":
        """Every pixel of an image axis."""
        return cls.at(axis_coordinates(pixels, cells).to(device), cells)

    def part(self, span: slice) -> "Axis":
        """Some of the pixels."""
        return Axis(self.low[span], self.high[span], self.fraction[span])

    def __call__(self, values: Tensor, dim: int, buffers: Tensor | None = None) -> Tensor:
        """Interpolates axis `dim`, -1 (columns) or -2 (rows); with two buffers, the result stands in the first."""
        if buffers is None:
            low, high = values.index_select(dim, self.low), values.index_select(dim, self.high)
            return torch.lerp(low, high, self.weight(dim))
        shape = list(values.shape)
        shape[dim] = len(self.low)
        low, high = (buffer[: math.prod(shape)].view(shape) for buffer in buffers)
        torch.index_select(values, dim, self.low, out=low)
        torch.index_select(values, dim, self.high, out=high)
        return torch.lerp(low, high, self.weight(dim), out=low)

    def squared(self, own: Tensor, pair: Tensor, dim: int) -> Tensor:
        """Squared length of what is interpolated, from squared lengths and the products of neighbours."""
        low, high = own.index_select(dim, self.low), own.index_select(dim, self.high)
        # In this form equal neighbours give exactly their own length at every fraction, so that constant areas tie.
        apart = low + high - 2 * pair.index_select(dim, self.low)
        weight = self.weight(dim)
        return torch.lerp(low, high, weight) - weight * (1 - weight) * apart

    def weight(self, dim: int) -> Tensor:
        """`fraction`, in the shape that broadcasts along axis `dim`."""
        return self.fraction if dim == -1 else self.fraction[:, None]


class Products(NamedTuple):
    """All dot products that the cosines need; beyond the last row and column, these repeat."""

    dots: Tensor  # (..., K, h, w): descriptors with cells
    own: Tensor  # (..., h, w): cells with themselves
    right: Tensor  # with the cell to the right
    below: Tensor  # with the cell below
    cross: Tensor  # mean of both diagonals of a square of four


def _products(descriptors: Tensor, features: Tensor) -> Products:
    *batch, channels, height, width = features.shape
    dots = descriptors.new_zeros(*descriptors.shape[:-1], height * width)
    own, right, below, cross = (descriptors.new_zeros(*batch, height, width) for _ in range(4))
    count = max(1, CHANNEL_PIECE * channels // features.numel())
    for start in range(0, channels, count):
        piece = features.narrow(-3, start, min(count, channels - start)).double()
        dots += descriptors[..., start : start + count] @ piece.flatten(-2)
        padded = F.pad(piece, (0, 1, 0, 1), mode="replicate")
        here, beside = padded[..., :-1, :-1], padded[..., :-1, 1:]
        under, opposite = padded[..., 1:, :-1], padded[..., 1:, 1:]
        own += (here * here).sum(-3)
        right += (here * beside).sum(-3)
        below += (here * under).sum(-3)
        cross += ((here * opposite).sum(-3) + (beside * under).sum(-3)) / 2
    return Products(dots.view(*descriptors.shape[:-1], height, width), own, right, below, cross)


def cosines(
    descriptors: Tensor, argument: str, features: Tensor, size: tuple[int, int]
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields keypoints, rows and their cosines `(..., k, r, W)`: rows in ascending order for each group of keypoints.

    The cosines stand in memory that the next piece overwrites.
    """
    check_features(argument, features)
    if (*features.shape[:-3], features.shape[-3]) != (*descriptors.shape[:-2], descriptors.shape[-1]):
        remedy = f"give as many maps and channels as the descriptors have, {tuple(descriptors.shape)}"
        raise InputError(argument, tuple(features.shape), remedy)
    products = _products(descriptors, features)
    if not products.own.sum().isfinite():
        raise not_finite(argument, features)
    (height, width), (rows, columns) = size, features.shape[-2:]
    x, y = Axis.of(width, columns, features.device), Axis.of(height, rows, features.device)
    inverse = _inverse_lengths(products, x, y).unsqueeze(-3)
    count, batch = descriptors.shape[-2], features.shape[:-3].numel()
    group = max(1, KEYPOINT_PIECE // (batch * rows * width))
    for first in range(0, count, group):
        keypoints = slice(first, min(first + group, count))
        wide = x(products.dots[..., keypoints, :, :], -1)
        band = max(1, ROW_PIECE * rows // wide.numel())
        buffers = wide.new_empty(2, band * wide.numel() // rows)
        for top in range(0, height, band):
            span = slice(top, min(top + band, height))
            maps = y.part(span)(wide, -2, buffers)
            yield keypoints, span, maps.mul_(inverse[..., span, :])


def _inverse_lengths(products: Products, x: Axis, y: Axis) -> Tensor:
    """`(H, W)`: one over the length of the interpolated feature, 0 where that is zero."""
    squared = y.squared(x.squared(products.own, products.right, -1), x.squared(products.below, products.cross, -1), -2)
    # By convexity, the interpolated squared lengths bound the squared length of what is interpolated.
    bound = y(x(products.own, -1), -2)
    return torch.where(squared > CANCELLED * bound, squared.rsqrt(), 0.0)


def unit(vectors: Tensor) -> Tensor:
    """Vectors `(..., C)` scaled to length one; zero stays zero."""
    return F.normalize(vectors, dim=-1, eps=1e-30)


def check_features(argument: str, features: Tensor) -> None:
    """Raises InputError unless `features` is one map or a batch of maps."""
    if features.ndim not in (3, 4) or not features.is_floating_point() or not features.numel():
        found = f"{tuple(features.shape)} {features.dtype}"
        raise InputError(argument, found, "give a floating-point (C, h, w) or (B, C, h, w) map")


def not_finite(argument: str, features: Tensor) -> InputError:
    """The error for features that hold NaN or infinity."""
    return InputError(
        argument, f"{tuple(features.shape)} with NaN or infinity", "give finite features; check the dtype"
    )
