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
CHANNEL_PIECE_ON_GPU = 2**22  # where a call costs more than what does not fit a cache

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


class Gram(NamedTuple):
    """Dot products of neighbouring cells, `(..., h, w)` float64; beyond the last row and column, these repeat."""

    own: Tensor  # cells with themselves
    right: Tensor  # with the cell to the right
    below: Tensor  # with the cell below
    cross: Tensor  # mean of both diagonals of a square of four


def gram(features: Tensor) -> Gram:
    """The Gram products of a map `(..., C, h, w)`."""
    *batch, _, height, width = features.shape
    own, right, below, cross = (
        features.new_zeros(*batch, height, width, dtype=torch.float64) for _ in range(len(Gram._fields))
    )
    for _, piece in _pieces(features):
        padded = F.pad(piece, (0, 1, 0, 1), mode="replicate")
        here, beside = padded[..., :-1, :-1], padded[..., :-1, 1:]
        under, opposite = padded[..., 1:, :-1], padded[..., 1:, 1:]
        own += (here * here).sum(-3)
        right += (here * beside).sum(-3)
        below += (here * under).sum(-3)
        cross += ((here * opposite).sum(-3) + (beside * under).sum(-3)) / 2
    return Gram(own, right, below, cross)


def dot_products(descriptors: Tensor, features: Tensor) -> Tensor:
    """Dot products `(..., K, h, w)` of descriptors `(..., K, C)` float64 with all cells of a map `(..., C, h, w)`."""
    dots = descriptors.new_zeros(*descriptors.shape[:-1], features.shape[-2] * features.shape[-1])
    for span, piece in _pieces(features):
        dots += descriptors[..., span] @ piece.flatten(-2)
    return dots.view(*descriptors.shape[:-1], *features.shape[-2:])


def _pieces(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some channels at a time, in float64."""
    channels = features.shape[-3]
    piece = CHANNEL_PIECE_ON_GPU if features.device.type == "cuda" else CHANNEL_PIECE
    count = max(1, piece * channels // features.numel())
    for start in range(0, channels, count):
        span = slice(start, min(start + count, channels))
        yield span, features[..., span, :, :].double()


def cosines(
    descriptors: Tensor, argument: str, features: Tensor, size: tuple[int, int]
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yields keypoints, rows and their cosines `(..., k, r, W)`: rows in ascending order for each group of keypoints.

    The cosines stand in memory that the next piece overwrites.
    """
    check_fit(descriptors, argument, features)
    dots, products = dot_products(descriptors, features), gram(features)
    if not products.own.sum().isfinite():
        raise not_finite(argument, features)
    (height, width), (rows, columns) = size, features.shape[-2:]
    x, y = Axis.of(width, columns, features.device), Axis.of(height, rows, features.device)
    yield from cosine_rows(dots, inverse_lengths(products, x, y), x, y)


def cosine_rows(dots: Tensor, inverse: Tensor, x: Axis, y: Axis) -> Iterator[tuple[slice, slice, Tensor]]:
    """As `cosines`, from dot products `(..., K, h, w)` and what lengths have to be multiplied with, `(..., H, W)`."""
    *batch, count, rows, _ = dots.shape
    height, width = inverse.shape[-2:]
    inverse = inverse.unsqueeze(-3)
    group = max(1, KEYPOINT_PIECE // (math.prod(batch) * rows * width))
    for first in range(0, count, group):
        keypoints = slice(first, min(first + group, count))
        wide = x(dots[..., keypoints, :, :], -1)
        band = max(1, ROW_PIECE * rows // wide.numel())
        buffers = wide.new_empty(2, band * wide.numel() // rows)
        for top in range(0, height, band):
            span = slice(top, min(top + band, height))
            maps = y.part(span)(wide, -2, buffers)
            yield keypoints, span, maps.mul_(inverse[..., span, :])


def inverse_lengths(products: Gram, x: Axis, y: Axis) -> Tensor:
    """`(H, W)`: one over the length of the interpolated feature, 0 where that is zero."""
    squared = y.squared(x.squared(products.own, products.right, -1), x.squared(products.below, products.cross, -1), -2)
    # By convexity, the interpolated squared lengths bound the squared length of what is interpolated.
    return inverse_root(squared, y(x(products.own, -1), -2))


def inverse_root(squared: Tensor, bound: Tensor) -> Tensor:
    """One over the root of squared lengths; 0 where they are rounding of a zero, beside what bounds them."""
    return torch.where(squared > CANCELLED * bound, squared.rsqrt(), 0.0)


def unit(vectors: Tensor) -> Tensor:
    """Vectors `(..., C)` scaled to length one; zero stays zero."""
    return F.normalize(vectors, dim=-1, eps=1e-30)


def check_features(argument: str, features: Tensor) -> None:
    """Raises InputError unless `features` is one map or a batch of maps."""
    if features.ndim not in (3, 4) or not features.is_floating_point() or not features.numel():
        found = f"{tuple(features.shape)} {features.dtype}"
        raise InputError(argument, found, "give a floating-point (C, h, w) or (B, C, h, w) map")


def check_fit(descriptors: Tensor, argument: str, features: Tensor) -> None:
    """Raises InputError unless `features` has a map for each set of descriptors `(..., K, C)`, of as many channels."""
    check_features(argument, features)
    if (*features.shape[:-3], features.shape[-3]) != (*descriptors.shape[:-2], descriptors.shape[-1]):
        remedy = f"give as many maps and channels as the descriptors have, {tuple(descriptors.shape)}"
        raise InputError(argument, tuple(features.shape), remedy)


def not_finite(argument: str, features: Tensor) -> InputError:
    """The error for features that hold NaN or infinity."""
    return InputError(
        argument, f"{tuple(features.shape)} with NaN or infinity", "give finite features; check the dtype"
    )
