"""Matching rules of the field: where a source descriptor is read, where its match lies, and what is no match at all.

All rules rest on the exact cosines of `matching.cosines`, over pixels or over the cells of the grid, and are batched
over pairs like `match_keypoints`, which is the default rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ditf_probe.errors import InputError, check_choice
from ditf_probe.geometry import Landing, Sampling, Size, Transform, check_size, grid_coordinates, grid_points
from ditf_probe.matching.cosines import check_features, cosines
from ditf_probe.matching.keypoints import Rounding, best_pixels, cell_of, checked_points, descriptors_at
from ditf_probe.precision import to_float64, within_reach

Kind = Literal["argmax_pixel", "argmax_grid", "window_softargmax", "kernel_softargmax"]
Check = Literal["none", "mutual", "cycle", "ratio"]
Mask = Literal["-inf", "zero"]
Origin = Literal["centre", "corner"]
Precision = Literal["full", "float16"]


@dataclass(frozen=True)
class MatchingRule:
    """How the match of a source keypoint is found.

    Attributes:
        kind: `argmax_pixel`: the best pixel after bilinear interpolation to the image (DIFT, DiTF). `argmax_grid`: the
            best cell. `window_softargmax`: the mean position under a softmax of the cosines in a window around the
            best cell (GeoAware-SC). `kernel_softargmax`: the same over all cells, their cosines multiplied by a
            Gaussian around the best one (SFNet, CATs, SD4Match).
        rounding: Where the source descriptor is read; see `match_keypoints`.
        window: Side of the window in cells, odd.
        temperature: Cosines are divided by it before a softmax.
        mask: What stands outside the window: "-inf" leaves it out. "zero" sets its cosines to 0, as GeoAware-SC does:
            all cells keep a weight, which pulls the estimate towards the middle of the grid.
        sigma: Standard deviation of the Gaussian, in cells.
        origin: Where annotations have their 0: at the centre of the first pixel, or at its outer corner. Codes that
            multiply keypoints by a scale imply the corner; it moves points by half a pixel of the original image.
        sampling: Where keypoints lie on the grid, as in `geometry.grid_coordinates`.
        landing: Where a cell lies in the image, as in `geometry.grid_points`; not for `argmax_pixel`.
        precision: "float16" rounds features before they are matched, as DiTF's code does; sums stay exact.
        check: What a match must pass to be accepted. `mutual`: the best match of the match, in the source, lies in the
            cell of the keypoint. `cycle`: matched back by the same rule, it lies within `cycle_pixels` of the keypoint.
            `ratio`: its distance is less than `ratio` times that of the best cell elsewhere (Lowe); the distance of
            two unit vectors, sqrt(2 - 2 cos).
        cycle_pixels: In pixels of the original source image.
        ratio: Between 0 and 1.
        apart: Elsewhere is more than so many cells away, in x or y: neighbours of a match resemble it.

    Raises:
        InputError: An unknown choice, or a number out of range.
    """

    kind: Kind = "argmax_pixel"
    rounding: Rounding = "subpixel"
    window: int = 15
    temperature: float = 0.04
    mask: Mask = "-inf"
    sigma: float = 7.0
    origin: Origin = "centre"
    sampling: Sampling = "cells"
    landing: Landing = "centre"
    precision: Precision = "full"
    check: Check = "none"
    cycle_pixels: float = 8.0
    ratio: float = 0.9
    apart: int = 1

    def __post_init__(self) -> None:
        choices = {"kind": Kind, "rounding": Rounding, "mask": Mask, "origin": Origin, "sampling": Sampling}
        choices |= {"landing": Landing, "precision": Precision, "check": Check}
        for name, literal in choices.items():
            check_choice(name, getattr(self, name), literal)
        if self.window < 1 or self.window % 2 == 0:
            raise InputError("window", self.window, "use an odd number of cells")
        for name in ("temperature", "sigma"):
            if not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "use a positive number")
        for name in ("cycle_pixels", "apart"):
            if not getattr(self, name) >= 0:
                raise InputError(name, getattr(self, name), "use 0 or more")
        if not 0 < self.ratio <= 1:
            raise InputError("ratio", self.ratio, "use a number above 0 and up to 1")


DEFAULT_RULE = MatchingRule()


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
    home = source_features.device
    source = _Side.of("source_", source_features, source_size, rule)
    target = _Side.of("target_", target_features, target_size, rule)
    keypoints = checked_points("source_keypoints", source_keypoints, source.features, source.original, visible)
    points = source.enter(keypoints)
    found = target.best(source.read(points, rule.rounding))
    accepted = _accepted(source, target, keypoints, points, found)
    predictions, similarity = target.leave(found.points).float(), found.similarity.clamp(-1, 1).float()
    if visible is not None:
        hidden = ~visible.to(accepted.device)
        predictions[hidden], similarity[hidden], accepted[hidden] = torch.nan, torch.nan, False
    return predictions.to(home), similarity.to(home), accepted.to(home)


class _Found(NamedTuple):
    points: Tensor  # (..., K, 2) float64, pixels that the map covers
    cells: Tensor  # (..., K, 2) best cells, or those of the best pixels
    similarity: Tensor  # (..., K)


@dataclass(frozen=True)
class _Side:
    """A feature map, the pixels that it covers, and the way between them and those of the original image."""

    prefix: str
    features: Tensor
    size: Size
    transform: Transform | None
    rule: MatchingRule

    @classmethod
    def of(cls, prefix: str, features: Tensor, size: Sequence[int] | Transform, rule: MatchingRule) -> "_Side":
        check_features(f"{prefix}features", features)
        features = within_reach(features)
        features = features.half() if rule.precision == "float16" else features
        if isinstance(size, Transform):
            return cls(prefix, features, size.canvas, size, rule)
        return cls(prefix, features, check_size(f"{prefix}size", size), None, rule)

    @property
    def grid(self) -> Size:
        return self.features.shape[-2], self.features.shape[-1]

    @property
    def original(self) -> Size:
        return self.size if self.transform is None else self.transform.size

    def enter(self, points: Tensor) -> Tensor:
        if self.rule.origin == "corner":
            points = (points - 0.5).clamp_min(-0.5)
        return points if self.transform is None else self.transform.apply(points)

    def leave(self, points: Tensor) -> Tensor:
        points = points if self.transform is None else self.transform.invert(points)
        return points + 0.5 if self.rule.origin == "corner" else points

    def read(self, points: Tensor, rounding: Rounding, sampling: Sampling | None = None) -> Tensor:
        """Unit descriptors at points of the map."""
        inside = points.clamp_min(-0.5).minimum(points.new_tensor([self.size[1], self.size[0]]) - 0.5)
        how = self.rule.sampling if sampling is None else sampling
        return descriptors_at(self.prefix, self.features, inside, self.size, rounding, sampling=how)

    def best(self, descriptors: Tensor) -> _Found:
        """The match of each descriptor by the rule."""
        argument = f"{self.prefix}features"
        if self.rule.kind == "argmax_pixel":
            pixel, similarity = best_pixels(descriptors, argument, self.features, self.size)
            points = torch.stack([pixel % self.size[1], pixel // self.size[1]], dim=-1).double()
            return _Found(points, cell_of(grid_coordinates(points, self.size, self.grid), self.grid), similarity)
        maps = self.maps(descriptors)
        similarity, index = maps.flatten(-2).max(dim=-1)
        cells = torch.stack([index % self.grid[1], index // self.grid[1]], dim=-1).double()
        places = cells if self.rule.kind == "argmax_grid" else _soft_places(maps, cells, self.rule)
        return _Found(grid_points(places, self.grid, self.size, self.rule.landing), cells, similarity)

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


def _accepted(source: _Side, target: _Side, keypoints: Tensor, points: Tensor, found: _Found) -> Tensor:
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
