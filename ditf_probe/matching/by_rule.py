"""Matches of keypoints by any rule: one pair, a batch of equal sizes, or many pairs of any sizes at once.

All rules rest on the exact cosines of `matching.cosines`, over pixels or over the cells of the grid; the best pixel is
found by `matching.search`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ditf_probe.geometry import Sampling, Size, Transform, check_size, grid_coordinates, grid_points
from ditf_probe.matching.cosines import check_features, check_fit, cosines, not_finite
from ditf_probe.matching.keypoints import Rounding, cell_of, checked_points, descriptors_at
from ditf_probe.matching.rules import DEFAULT_RULE, MatchingRule
from ditf_probe.matching.search import BUDGET, SearchedMap, best_in, best_pixels
from ditf_probe.precision import to_float64, within_reach


@torch.no_grad()
def match_by_rule(
    source_features: Tensor,
    target_features: Tensor,
    source_keypoints: Tensor,
    source_size: Sequence[int] | Transform,
    target_size: Sequence[int] | Transform,
    rule: MatchingRule = DEFAULT_RULE,
    *,
    visible: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the match of each source keypoint by a rule.

    Every tensor may have one more leading axis, B pairs with equal grids and image sizes.

    Args:
        source_features: `(C, h, w)`, any floating dtype.
        target_features: `(C, h', w')`, on the same device.
        source_keypoints: `(K, 2)` (x, y) in pixels of the original source image, inside it where visible.
        source_size: (height, width) of the original image, which the map covers from edge to edge; or what was done to
            the image, where the map covers the prepared canvas with its padding.
        target_size: The same of the target. On a canvas, cells of the padding may be found too.
        rule: The rule.
        visible: `(K,)` bool; the other keypoints are not looked at.

    Returns:
        predictions: `(K, 2)` float32 (x, y) in pixels of the original target image; NaN where not visible.
        similarity: `(K,)` float32 cosine in [-1, 1] with the best pixel or cell; NaN where not visible.
        accepted: `(K,)` bool, whether the match passed the check; False where not visible.

    Raises:
        InputError: If shapes do not fit, a keypoint is outside the image, or a number is NaN or infinite.
    """
    source = PreparedMap.of(source_features, source_size, rule, "source_")
    target = PreparedMap.of(target_features, target_size, rule, "target_")
    start = _Start.of(source, target, source_keypoints, visible)
    predictions, similarity, accepted = _finish(start, target.best(start.descriptors))
    if visible is not None:
        hidden = ~visible.to(accepted.device)
        predictions[hidden], similarity[hidden], accepted[hidden] = torch.nan, torch.nan, False
    home = source_features.device
    return predictions.to(home), similarity.to(home), accepted.to(home)


@torch.no_grad()
def match_prepared(
    pairs: Sequence[tuple["PreparedMap", "PreparedMap", Tensor]], budget: int = BUDGET
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Matches many pairs at once, of any grids and sizes.

    Pairs whose target maps and images have equal sizes are searched together, and what a map needs for being searched
    is computed once for all of them: the quickest way to match many keypoints, rows or sources with one image.

    Args:
        pairs: Source, target and source keypoints `(K, 2)` each, prepared with one rule.
        budget: Bytes of working memory that groups of keypoints are chosen for.

    Returns:
        Per pair what `match_by_rule` returns, where the maps are.

    Raises:
        InputError: As `match_by_rule`.
    """
    starts = [_Start.of(source, target, keypoints) for source, target, keypoints in pairs]
    searched = [i for i, start in enumerate(starts) if start.target.rule.kind == "argmax_pixel"]
    for i in searched:
        check_fit(starts[i].descriptors, "target_features", starts[i].target.features)
    targets = [starts[i].target for i in searched]
    pixels = best_pixels([starts[i].descriptors for i in searched], [x.searched for x in targets], budget)
    found = {i: one.at_pixels(*best) for i, one, best in zip(searched, targets, pixels, strict=True)}
    return [
        _finish(start, found[i] if i in found else start.target.best(start.descriptors))
        for i, start in enumerate(starts)
    ]


class _Found(NamedTuple):
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

    def read(self, points: Tensor, rounding: Rounding, sampling: Sampling | None = None) -> Tensor:
        """Unit descriptors at points of the map."""
        inside = points.clamp_min(-0.5).minimum(points.new_tensor([self.size[1], self.size[0]]) - 0.5)
        how = self.rule.sampling if sampling is None else sampling
        if not self.finite:
            raise not_finite(f"{self.prefix}features", self.features)
        return descriptors_at(self.prefix, self.features, inside, self.size, rounding, sampling=how, finite=True)

    def best(self, descriptors: Tensor) -> "_Found":
        """The match of each descriptor by the rule."""
        if self.rule.kind == "argmax_pixel":
            return self.at_pixels(*best_in(descriptors, self.searched))
        maps = self.maps(descriptors)
        similarity, index = maps.flatten(-2).max(dim=-1)
        cells = torch.stack([index % self.grid[1], index // self.grid[1]], dim=-1).double()
        places = cells if self.rule.kind == "argmax_grid" else _soft_places(maps, cells, self.rule)
        return _Found(grid_points(places, self.grid, self.size, self.rule.landing), cells, similarity)

    def at_pixels(self, pixel: Tensor, similarity: Tensor) -> "_Found":
        """The matches at pixels, by their numbers in row-major order."""
        points = torch.stack([pixel % self.size[1], pixel // self.size[1]], dim=-1).double()
        return _Found(points, cell_of(grid_coordinates(points, self.size, self.grid), self.grid), similarity)

    def maps(self, descriptors: Tensor) -> Tensor:
        """Cosines with all cells, `(..., K, h, w)` float64: a grid is its own interpolation to its own size."""
        maps = descriptors.new_empty(*descriptors.shape[:-1], *self.grid)
        for keypoints, rows, piece in cosines(descriptors, f"{self.prefix}features", self.features, self.grid):
            maps[..., keypoints, rows, :] = piece
        return maps


class _Start(NamedTuple):
    """A pair whose source descriptors have been read."""

    source: PreparedMap
    target: PreparedMap
    keypoints: Tensor  # (..., K, 2) float64, pixels of the original source image
    points: Tensor  # the same in what the source map covers
    descriptors: Tensor  # (..., K, C) float64 of length one

    @classmethod
    def of(cls, source: PreparedMap, target: PreparedMap, keypoints: Tensor, visible: Tensor | None = None) -> "_Start":
        exact = checked_points("source_keypoints", keypoints, source.features, source.original, visible)
        points = source.enter(exact)
        return cls(source, target, exact, points, source.read(points, source.rule.rounding))


def _finish(start: _Start, found: _Found) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions in the original target image, cosines, and which matches pass the check of the rule."""
    accepted = _accepted(start.source, start.target, start.keypoints, start.points, found)
    return start.target.leave(found.points).float(), found.similarity.clamp(-1, 1).float(), accepted


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


def _accepted(source: PreparedMap, target: PreparedMap, keypoints: Tensor, points: Tensor, found: _Found) -> Tensor:
    """`(..., K)` bool: which matches pass the check of the rule."""
    rule = source.rule
    if rule.check == "cycle":
        back = source.leave(source.best(target.read(found.points, rule.rounding)).points)
        return (back - keypoints).square().sum(-1).sqrt() <= rule.cycle_pixels
    if rule.check == "mutual":
        at_pixel = rule.kind == "argmax_pixel"
        centres = grid_points(found.cells, target.grid, target.size)
        back = target.read(found.points if at_pixel else centres, "subpixel" if at_pixel else "patch", "cells")
        home = cell_of(grid_coordinates(points, source.size, source.grid, rule.sampling), source.grid)
        return (source.best(back).cells == home).all(dim=-1)
    if rule.check == "ratio":
        maps = target.maps(source.read(points, rule.rounding))
        x = torch.arange(maps.shape[-1], device=maps.device)
        y = torch.arange(maps.shape[-2], device=maps.device)[:, None]
        aside, above = x - found.cells[..., 0, None, None], y - found.cells[..., 1, None, None]
        near = (aside.abs() <= rule.apart) & (above.abs() <= rule.apart)
        rival = maps.masked_fill(near, -torch.inf).flatten(-2).amax(dim=-1)
        return _distance(found.similarity) < rule.ratio * _distance(rival)
    return torch.ones_like(found.similarity, dtype=torch.bool)


def _distance(cosine: Tensor) -> Tensor:
    """Between unit vectors."""
    return (2 - 2 * to_float64(cosine)).clamp_min(0).sqrt()
