"""The best pixel of a map for each descriptor, without looking at every pixel.

Between two grid rows, at one column of the image, the interpolated feature runs along the segment between two vectors.
The largest cosine of a descriptor with anything in the angle between them follows from its cosines with both ends and
from theirs with each other. So one number per grid row and image column bounds all pixels between two rows, closely:
only the few columns whose bound reaches the best pixel found are looked at, in float64, as `matching.cosines` would.
Bounds are float32, with a margin above its rounding errors, so that no pixel is missed and ties stay ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ditf_probe.geometry import Size
from ditf_probe.matching.bounds import MARGIN, Limits, bounding, can_fuse, fused, upper_bounds
from ditf_probe.matching.cosines import (
    Axis,
    Gram,
    check_fit,
    cosine_rows,
    dot_products,
    gram,
    inverse_lengths,
    inverse_root,
    not_finite,
)
from ditf_probe.matching.pixels import Pixels, Segments, squares

BUDGET = 2**26
"""Bytes of working memory that groups of keypoints are chosen for by default, on a CPU."""

BUDGET_ON_GPU = 2**29
"""The same on a GPU, which smaller groups would leave idle."""

_MANY = 0.25  # part of its columns from which on a map is compared pixel by pixel
_PIECE = 2**17  # bounds at a time
_BYTES = 40  # of working memory per bound


@dataclass(frozen=True, eq=False)
class SearchedMap:
    """A feature map that covers an image, with what any search in it needs; that is computed once, on first use.

    Attributes:
        argument: What the map is called in errors.
        features: `(C, h, w)` floating point, where there is float64.
        size: (height, width) of the image.
    """

    argument: str
    features: Tensor
    size: Size

    @property
    def grid(self) -> Size:
        """(height, width) in cells."""
        return self.features.shape[-2], self.features.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of what a search needs beside the features, whether it has been computed or not."""
        bounds = torch.float64.itemsize + (len(Limits._fields) - 1) * torch.float32.itemsize
        cells = torch.float64.itemsize * (len(Gram._fields) + 9)
        pixels = torch.float64.itemsize * self.size[0] * self.size[1]
        return self.grid[0] * (self.size[1] * bounds + self.grid[1] * cells) + pixels

    @cached_property
    def gram(self) -> Gram:
        """Dot products of neighbouring cells, float64.

        Raises:
            InputError: The map holds NaN or infinity.
        """
        found = gram(self.features)
        if not found.own.sum().isfinite():
            raise not_finite(self.argument, self.features)
        return found

    @cached_property
    def squares(self) -> Tensor:
        """`(h, w, 3, 3)`, see `pixels.squares`."""
        return squares(self.gram)

    @cached_property
    def x(self) -> Axis:
        """Columns of the image on the grid."""
        return Axis.of(self.size[1], self.grid[1], self.features.device)

    @cached_property
    def y(self) -> Axis:
        """Rows of the image on the grid."""
        return Axis.of(self.size[0], self.grid[0], self.features.device)

    @cached_property
    def rows(self) -> Tensor:
        """`(h, R)` rows of the image from each grid row up to the next, the last repeated; -1 where there is none."""
        counts = torch.bincount(self.y.low, minlength=self.grid[0])
        ends = counts.cumsum(0)
        found = (ends - counts)[:, None] + torch.arange(int(counts.max()), device=counts.device)
        return torch.where(counts[:, None] > 0, found.minimum(ends[:, None] - 1), -1)

    @cached_property
    def inverse(self) -> Tensor:
        """`(H, W)` float64, one over the lengths of the interpolated features; 0 where they are zero."""
        return inverse_lengths(self.gram, self.x, self.y)

    @cached_property
    def limits(self) -> Limits:
        """What bounds all cosines between grid rows."""
        products, x = self.gram, self.x
        own, pair = x.squared(products.own, products.right, -1), x.squared(products.below, products.cross, -1)
        return bounding(inverse_root(own, x(products.own, -1)), pair, self.rows[:, 0] < 0)


def best_in(descriptors: Tensor, target: SearchedMap) -> tuple[Tensor, Tensor]:
    """As `best_pixels`, for one map, or for B maps as one tensor: `(..., K)` each.

    Raises:
        InputError: Other channels or another number of maps than the descriptors have, or NaN or infinity.
    """
    check_fit(descriptors, target.argument, target.features)
    if descriptors.ndim == 2:
        return best_pixels([descriptors], [target])[0]
    maps = [SearchedMap(target.argument, features, target.size) for features in target.features]
    pixels, best = zip(*best_pixels(list(descriptors), maps), strict=True)
    return torch.stack(pixels), torch.stack(best)


def best_pixels(
    descriptors: Sequence[Tensor], maps: Sequence[SearchedMap], budget: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """The most similar pixel of each descriptor, the first in row-major order of equals.

    Args:
        descriptors: B times `(K, C)` float64 of length one; K may differ.
        maps: B maps; those of equal grid, image size and device are searched together.
        budget: Bytes of working memory that groups of descriptors are chosen for; None is the default of the device.

    Returns:
        B times the number of the pixel in row-major order, and its cosine, `(K,)` each.
    """
    groups: dict[tuple[Size, Size, torch.device], list[int]] = {}
    for number, one in enumerate(maps):
        groups.setdefault((one.grid, one.size, one.features.device), []).append(number)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for (_, _, device), members in groups.items():
        limit = (BUDGET_ON_GPU if device.type == "cuda" else BUDGET) if budget is None else budget
        most = max(1, limit // (_BYTES * maps[members[0]].grid[0] * maps[members[0]].size[1]))
        for start in range(0, len(members), most):
            part = members[start : start + most]
            chosen = [maps[i] for i in part]
            step = max(1, most // len(part))
            pieces = [
                _search([descriptors[i][first : first + step] for i in part], chosen)
                for first in range(0, max(1, *(len(descriptors[i]) for i in part)), step)
            ]
            for row, i in enumerate(part):
                pixels, best = zip(*(piece[row] for piece in pieces), strict=True)
                found[i] = torch.cat(pixels), torch.cat(best)
    return [found[i] for i in range(len(maps))]


def _search(descriptors: Sequence[Tensor], maps: Sequence[SearchedMap]) -> list[tuple[Tensor, Tensor]]:
    """`best_pixels` for maps of one grid and size."""
    counts, first = [len(one) for one in descriptors], maps[0]
    found = [dot_products(own, one.features) for own, one in zip(descriptors, maps, strict=True)]
    dots = pad_sequence(found, batch_first=True)
    limits = Limits(*(torch.stack(parts).unsqueeze(1) for parts in zip(*(one.limits for one in maps), strict=True)))
    bounds = _bounds(dots, first.x, limits)
    for row, count in enumerate(counts):
        bounds[row, count:] = -torch.inf  # no descriptors
    pixels = Pixels(dots, torch.stack([one.squares for one in maps]), first.x, first.y, first.rows)
    promising, many = _promising(bounds, pixels)
    best, pixel = pixels.best(promising)
    for row in many.any(1).nonzero().flatten().tolist():
        pixel[row, many[row]], best[row, many[row]] = _best_of_all(dots[row, many[row]], maps[row])
    return [(pixel[row, :count], best[row, :count]) for row, count in enumerate(counts)]


def _bounds(dots: Tensor, x: Axis, limits: Limits) -> Tensor:
    """`upper_bounds`: fused on a GPU, elsewhere in pieces that stay in the cache of a processor."""
    if can_fuse(dots.device):
        return fused()(dots, x, limits)
    batch, count = dots.shape[:2]
    step = max(1, _PIECE // (batch * limits.inverse[0].numel()))
    return torch.cat([upper_bounds(dots[:, i : i + step], x, limits) for i in range(0, max(1, count), step)], dim=1)


def _promising(bounds: Tensor, pixels: Pixels) -> tuple[Segments, Tensor]:
    """Segments whose bound comes up to the best pixel, and which descriptors have too many, `(B, K)` bool.

    Args:
        bounds: `(B, K, h, W)`.
        pixels: What can be looked at.
    """
    batch, count, height, width = bounds.shape
    of_row = bounds.amax(-1)
    number = torch.arange(batch * count, device=bounds.device)
    row = of_row.argmax(-1).flatten()
    column = bounds.flatten(0, 1)[number, row].argmax(-1)
    # The best pixel of the most promising segment is a lower bound of the best of all.
    first = Segments(number // count, number % count, row, column)
    lower = pixels.cosines(first).amax(-1).view(batch, count).float() - MARGIN
    near = (of_row >= lower[..., None]).nonzero()
    which, column = (bounds[near.unbind(1)] >= lower[near[:, 0], near[:, 1]][:, None]).nonzero().unbind(1)
    one, descriptor, row = near[which].unbind(1)
    found = Segments(one, descriptor, row, column)
    owner = found.map * count + found.descriptor
    many = owner.bincount(minlength=batch * count) > _MANY * height * width
    kept = ~many[owner]
    return Segments(*(x[kept] for x in found)), many.view(batch, count)


def _best_of_all(dots: Tensor, one: SearchedMap) -> tuple[Tensor, Tensor]:
    """The best pixel of descriptors with dot products `(K, h, w)`, all pixels looked at."""
    best = dots.new_full((len(dots),), -torch.inf)
    pixel = one.x.low.new_zeros(len(dots))
    for part, rows, maps in cosine_rows(dots, one.inverse, one.x, one.y):
        value, index = maps.flatten(-2).max(-1)
        # Later rows must win outright, or the first of equal pixels would not be kept.
        pixel[part] = torch.where(value > best[part], index + rows.start * one.size[1], pixel[part])
        best[part] = best[part].maximum(value)
    return pixel, best
