"""A feature map that is ready to be matched, and where its matches lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ditf_probe.geometry import Sampling, Size, Transform, check_size, grid_coordinates, grid_points
from ditf_probe.matching.cosines import check_features, cosines, not_finite
from ditf_probe.matching.keypoints import Corners, Rounding, cell_of
from ditf_probe.matching.rules import DEFAULT_RULE, MatchingRule
from ditf_probe.matching.search import SearchedMap, best_in
from ditf_probe.precision import within_reach


class Found(NamedTuple):
    """Matches of descriptors in a map."""

    points: Tensor  # (..., K, 2) float64, pixels that the map covers
    cells: Tensor  # (..., K, 2) best cells, or those of the best pixels
    similarity: Tensor  # (..., K)


@dataclass(frozen=True, eq=False)
class PreparedMap:
    """A feature map, the pixels that it covers, and the way between them and those of the original image.

    Attributes:
        features: `(C, h, w)` or `(B, C, h, w)`, where there is float64.
        size: (height, width) of what it covers.
        transform: Where that is a prepared canvas, what was done to the image.
        rule: How it is matched.
        prefix: What arguments in errors begin with.
    """

    features: Tensor
    size: Size
    transform: Transform | None
    rule: MatchingRule
    prefix: str = ""

    @classmethod
    def of(
        cls, features: Tensor, size: Sequence[int] | Transform, rule: MatchingRule = DEFAULT_RULE, prefix: str = ""
    ) -> "PreparedMap":
        """Prepares a map; see `match_by_rule` for the arguments.

        Raises:
            InputError: It is no map, or a size is none.
        """
        check_features(f"{prefix}features", features)
        features = within_reach(features)
        features = features.half() if rule.precision == "float16" else features
        if isinstance(size, Transform):
            return cls(features, size.canvas, size, rule, prefix)
        return cls(features, check_size(f"{prefix}size", size), None, rule, prefix)

    @cached_property
    def searched(self) -> SearchedMap:
        """What a search in it needs."""
        return SearchedMap(f"{self.prefix}features", self.features, self.size)

    @cached_property
    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        # The sum is quicker than a look at every number, but may itself overflow.
        return bool(self.features.sum().isfinite()) or bool(self.features.isfinite().all())

    @property
    def nbytes(self) -> int:
        """Bytes of the map and of what a search in it needs."""
        return self.features.nbytes + (self.searched.nbytes if self.rule.kind == "argmax_pixel" else 0)

    @property
    def grid(self) -> Size:
        """(height, width) in cells."""
        return self.features.shape[-2], self.features.shape[-1]

    @property
    def original(self) -> Size:
        """(height, width) of the original image."""
        return self.size if self.transform is None else self.transform.size

    def enter(self, points: Tensor) -> Tensor:
        """From pixels of the original image, as the rule counts them, to pixels that the map covers."""
        if self.rule.origin == "corner":
            points = (points - 0.5).clamp_min(-0.5)
        return points if self.transform is None else self.transform.apply(points)

    def leave(self, points: Tensor) -> Tensor:
        """The way back."""
        points = points if self.transform is None else self.transform.invert(points)
        return points + 0.5 if self.rule.origin == "corner" else points

    def corners(self, points: Tensor, rounding: Rounding, sampling: Sampling | None = None) -> Corners:
        """Where points of the map lie between its cells."""
        inside = points.clamp_min(-0.5).minimum(points.new_tensor([self.size[1], self.size[0]]) - 0.5)
        how = self.rule.sampling if sampling is None else sampling
        return Corners.of(inside, self.size, self.grid, rounding, how)

    def read(self, corners: Corners) -> Tensor:
        """Unit descriptors.

        Raises:
            InputError: The map holds NaN or infinity.
        """
        if not self.finite:
            raise not_finite(f"{self.prefix}features", self.features)
        return corners.read(self.features)

    def best(self, descriptors: Tensor) -> Found:
        """The match of each descriptor by the rule."""
        if self.rule.kind == "argmax_pixel":
            return self.at_pixels(*best_in(descriptors, self.searched))
        maps = self.maps(descriptors)
        similarity, index = maps.flatten(-2).max(dim=-1)
        cells = torch.stack([index % self.grid[1], index // self.grid[1]], dim=-1).double()
        places = cells if self.rule.kind == "argmax_grid" else _soft_places(maps, cells, self.rule)
        return Found(grid_points(places, self.grid, self.size, self.rule.landing), cells, similarity)

    def at_pixels(self, pixel: Tensor, similarity: Tensor) -> Found:
        """The matches at pixels, by their numbers in row-major order."""
        points = torch.stack([pixel % self.size[1], pixel // self.size[1]], dim=-1).double()
        return Found(points, cell_of(grid_coordinates(points, self.size, self.grid), self.grid), similarity)

    def maps(self, descriptors: Tensor) -> Tensor:
        """Cosines with all cells, `(..., K, h, w)` float64: a grid is its own interpolation to its own size."""
        maps = descriptors.new_empty(*descriptors.shape[:-1], *self.grid)
        for keypoints, rows, piece in cosines(descriptors, f"{self.prefix}features", self.features, self.grid):
            maps[..., keypoints, rows, :] = piece
        return maps


def _soft_places(maps: Tensor, cells: Tensor, rule: MatchingRule) -> Tensor:
    """Mean position `(..., K, 2)` in cells under a softmax of cosines around the best cells."""
    x = torch.arange(maps.shape[-1], device=maps.device).double()
    y = torch.arange(maps.shape[-2], device=maps.device).double()[:, None]
    aside, above = x - cells[..., 0, None, None], y - cells[..., 1, None, None]
    if rule.kind == "kernel_softargmax":
        maps = maps * torch.exp(-(aside.square() + above.square()) / (2 * rule.sigma**2))
    else:
        outside = (aside.abs() > rule.window // 2) | (above.abs() > rule.window // 2)
        maps = maps.masked_fill(outside, 0.0 if rule.mask == "zero" else -torch.inf)
    weights = (maps / rule.temperature).flatten(-2).softmax(dim=-1).view_as(maps)
    return torch.stack([(weights * x).sum((-2, -1)), (weights * y).sum((-2, -1))], dim=-1)
