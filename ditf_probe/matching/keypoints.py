"""Exact nearest neighbours at full image resolution, without features at full image resolution.

The rule is that of DIFT and DiTF: interpolate both feature maps to their original images (bilinear without aligned
corners), take the cosine after interpolation, and the best of all target pixels, the first in row-major order on ties.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ditf_probe.errors import InputError, check_choice
from ditf_probe.geometry import Sampling, Size, check_size, grid_coordinates
from ditf_probe.matching.cosines import Axis, check_features, cosines, not_finite, unit
from ditf_probe.matching.search import SearchedMap, best_in
from ditf_probe.precision import to_float64, within_reach

# Part of a cell by which a point may miss an edge through rounding errors.
EDGE = 1e-9

# On a device without float64 (MPS) the matching itself runs on the CPU.
Rounding = Literal["subpixel", "integer", "patch"]


@torch.no_grad()
def match_keypoints(
    source_features: Tensor,
    target_features: Tensor,
    source_keypoints: Tensor,
    source_size: Sequence[int],
    target_size: Sequence[int],
    *,
    rounding: Rounding = "subpixel",
    visible: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Finds the best target pixel of each source keypoint.

    Both maps must cover their original images from edge to edge; see `geometry.crop_features` for padded images.
    Every tensor may have one more leading axis, B pairs with equal grids and image sizes: quicker for small maps.

    Args:
        source_features: `(C, h, w)`, any floating dtype.
        target_features: `(C, h', w')`, on the same device.
        source_keypoints: `(K, 2)` (x, y) in pixels of the original source image, inside it where visible.
        source_size: (height, width) of the original source images.
        target_size: (height, width) of the original target images.
        rounding: Where the source descriptor is sampled: `subpixel` at the keypoint itself, `integer` at its
            coordinates rounded down, as DIFT and DiTF do, `patch` in the cell that the keypoint lies in, without
            interpolation, as GeoAware-SC does.
        visible: `(K,)` bool; the other keypoints are not looked at, and what is returned for them is NaN.

    Returns:
        predictions: `(K, 2)` float32 (x, y), whole pixels of the original target image.
        similarity: `(K,)` float32 cosine in [-1, 1]; 0 where the source or every target feature is zero.

    Raises:
        InputError: If shapes do not fit, a keypoint is outside the image, or a number is NaN or infinite.
    """
    height, width = check_size("target_size", target_size)
    home, target_features = source_features.device, within_reach(target_features)
    descriptors = descriptors_at("source_", source_features, source_keypoints, source_size, rounding, visible)
    pixel, best = best_in(descriptors, SearchedMap("target_features", target_features, (height, width)))
    predictions = torch.stack([pixel % width, pixel // width], dim=-1).float()
    similarity = best.clamp(-1, 1).float()
    if visible is not None:
        hidden = ~visible.to(best.device)
        predictions[hidden], similarity[hidden] = torch.nan, torch.nan
    return predictions.to(home), similarity.to(home)


@torch.no_grad()
def similarity_maps(descriptors: Tensor, features: Tensor, size: Sequence[int]) -> Tensor:
    """Cosine of each descriptor with the feature of every pixel.

    Args:
        descriptors: `(K, C)` or `(B, K, C)`, of any length.
        features: `(C, h, w)` or `(B, C, h, w)`, covering the image.
        size: (height, width) of the image.

    Returns:
        `(K, height, width)` or `(B, K, height, width)` float32 in [-1, 1].

    Raises:
        InputError: If the channels differ or a number is NaN or infinite.
    """
    height, width = check_size("size", size)
    home, features = features.device, within_reach(features)
    directions = unit(to_float64(descriptors))
    if not directions.isfinite().all():
        raise InputError("descriptors", "not finite", "give descriptors without NaN or infinity")
    maps = torch.empty(*directions.shape[:-1], height, width, device=features.device)
    for keypoints, rows, piece in cosines(directions, "features", features, (height, width)):
        maps[..., keypoints, rows, :] = piece.clamp(-1, 1).float()
    return maps.to(home)


def sample_descriptors(
    features: Tensor,
    keypoints: Tensor,
    size: Sequence[int],
    *,
    rounding: Rounding = "subpixel",
    visible: Tensor | None = None,
) -> Tensor:
    """Unit descriptors of keypoints: the feature map, interpolated bilinearly at each. Gradients pass.

    Args:
        features: `(C, h, w)` or `(B, C, h, w)`, covering the image.
        keypoints: `(K, 2)` or `(B, K, 2)` (x, y) in pixels of the image, inside it where visible.
        size: (height, width) of the image.
        rounding: As in `match_keypoints`.
        visible: `(K,)` or `(B, K)` bool; what is returned for the other keypoints has no meaning.

    Returns:
        `(K, C)` or `(B, K, C)` of length one (zero where the feature is zero), float32, or float64 for float64.

    Raises:
        InputError: If shapes do not fit, a keypoint is outside the image, or a number is NaN or infinite.
    """
    descriptors = descriptors_at("", features, keypoints, size, rounding, visible)
    return descriptors.to(torch.promote_types(features.dtype, torch.float32)).to(features.device)


class Corners(NamedTuple):
    """Where points lie between the four cells around them; batched like the points."""

    cells: Tensor  # (..., 4, K) int64, in row-major order: above left, above right, below left, below right
    right: Tensor  # (..., 1, K) float64, part of the way to the right
    below: Tensor  # (..., 1, K) float64, part of the way down

    @classmethod
    def of(
        cls, points: Tensor, size: Size, grid: Size, rounding: Rounding = "subpixel", sampling: Sampling = "cells"
    ) -> "Corners":
        """The corners of points `(..., K, 2)` float64 (x, y) in pixels of what a grid covers."""
        if rounding == "integer":
            points = points.floor().clamp_min(0)
        places = grid_coordinates(points, size, grid, sampling)
        if rounding == "patch":
            places = cell_of(places, grid)
        columns, rows = places.unbind(-1)
        x, y = Axis.at(columns, grid[1]), Axis.at(rows, grid[0])
        above, under = y.low * grid[1], y.high * grid[1]
        cells = torch.stack([above + x.low, above + x.high, under + x.low, under + x.high], dim=-2)
        return cls(cells, x.fraction.unsqueeze(-2), y.fraction.unsqueeze(-2))

    def read(self, features: Tensor) -> Tensor:
        """Unit descriptors `(..., K, C)` float64 of a map `(..., C, h, w)`."""
        found = features.flatten(-2).take_along_dim(self.cells.flatten(-2).unsqueeze(-2), dim=-1).double()
        found = found.view(*found.shape[:-1], *self.cells.shape[-2:])
        above_left, above_right, below_left, below_right = found.unbind(-2)
        upper, lower = (
            torch.lerp(left, right, self.right)
            for left, right in ((above_left, above_right), (below_left, below_right))
        )
        return unit(torch.lerp(upper, lower, self.below).mT)


def descriptors_at(
    prefix: str,
    features: Tensor,
    keypoints: Tensor,
    size: Sequence[int],
    rounding: Rounding,
    visible: Tensor | None = None,
) -> Tensor:
    """Unit descriptors `(..., K, C)` float64, where there is float64; arguments in errors begin with the prefix."""
    features = within_reach(features)
    height, width = check_size(f"{prefix}size", size)
    check_features(f"{prefix}features", features)
    # The sum is quicker than a look at every number, but may itself overflow.
    if not features.sum().isfinite() and not features.isfinite().all():
        raise not_finite(f"{prefix}features", features)
    check_choice("rounding", rounding, Rounding)
    points = checked_points(f"{prefix}keypoints", keypoints, features, (height, width), visible)
    return Corners.of(points, (height, width), (features.shape[-2], features.shape[-1]), rounding).read(features)


def cell_of(places: Tensor, grid: Sequence[int]) -> Tensor:
    """The cells `(..., 2)` (x, y) that grid coordinates lie in, as whole floating-point numbers."""
    # Rounding errors must not move a point on the edge between two cells into the first of them.
    cells = (places + 0.5 + EDGE).floor()
    return cells.clamp_min(0).minimum(cells.new_tensor([grid[1] - 1, grid[0] - 1]))


def checked_points(
    argument: str, keypoints: Tensor, features: Tensor, size: tuple[int, int], visible: Tensor | None
) -> Tensor:
    """Keypoints as float64 on the device of the features; invisible ones are moved to (0, 0)."""
    batch = features.shape[:-3]
    if keypoints.shape != (*batch, *keypoints.shape[-2:-1], 2) or not keypoints.is_floating_point():
        shape = ", ".join([*map(str, batch), "K", "2"])
        found = f"{tuple(keypoints.shape)} {keypoints.dtype}"
        raise InputError(argument, found, f"give floating-point ({shape}) keypoints as (x, y)")
    points = to_float64(keypoints).to(features.device)
    if visible is not None:
        if visible.shape != keypoints.shape[:-1] or visible.dtype != torch.bool:
            found = f"{tuple(visible.shape)} {visible.dtype}"
            raise InputError("visible", found, f"give a bool mask {tuple(keypoints.shape[:-1])}")
        points = torch.where(visible.to(points.device)[..., None], points, 0.0)
    limit = points.new_tensor([size[1], size[0]]) - 0.5
    outside = ~((points >= -0.5) & (points <= limit)).all(dim=-1)
    if outside.any():
        value = tuple(points[outside][0].tolist())
        raise InputError(argument, value, f"give points (x, y) inside the image, {size[1]} wide and {size[0]} high")
    return points
