"""Matches of keypoints by any rule: one pair, a batch of equal sizes, or many pairs of any sizes at once.

All rules rest on the exact cosines of `matching.cosines`, over pixels or over the cells of the grid; the best pixel is
found by `matching.search`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditf_probe.geometry import Transform, grid_coordinates, grid_points
from ditf_probe.matching.cosines import check_fit
from ditf_probe.matching.keypoints import Corners, cell_of, checked_points
from ditf_probe.matching.prepared import Found, PreparedMap
from ditf_probe.matching.rules import DEFAULT_RULE, MatchingRule
from ditf_probe.matching.search import best_pixels
from ditf_probe.precision import to_float64


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
    places = _Places.of(source, source_keypoints, visible)
    start = _Start(source, target, places, source.read(places.corners))
    predictions, similarity, accepted = _finish(start, target.best(start.descriptors))
    if visible is not None:
        hidden = ~visible.to(accepted.device)
        predictions[hidden], similarity[hidden], accepted[hidden] = torch.nan, torch.nan, False
    home = source_features.device
    return predictions.to(home), similarity.to(home), accepted.to(home)


@torch.no_grad()
def match_prepared(
    pairs: Sequence[tuple[PreparedMap, PreparedMap, Tensor]], budget: int | None = None
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Matches many pairs at once, of any grids and sizes.

    Pairs whose target maps and images have equal sizes are searched together, and what a map needs for being searched
    is computed once for all of them: the quickest way to match many keypoints, rows or sources with one image.

    Args:
        pairs: Source, target and source keypoints `(K, 2)` each, prepared with one rule.
        budget: Bytes of working memory that groups of keypoints are chosen for; None is the default of the device.

    Returns:
        Per pair what `match_by_rule` returns, where the maps are.

    Raises:
        InputError: As `match_by_rule`.
    """
    starts = _starts(pairs)
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


class _Places(NamedTuple):
    """Source keypoints of a pair, which rows of a comparison share."""

    keypoints: Tensor  # (..., K, 2) float64, pixels of the original source image
    points: Tensor  # the same in what the source map covers
    corners: Corners

    @classmethod
    def of(cls, source: PreparedMap, keypoints: Tensor, visible: Tensor | None = None) -> "_Places":
        exact = checked_points("source_keypoints", keypoints, source.features, source.original, visible)
        points = source.enter(exact)
        return cls(exact, points, source.corners(points, source.rule.rounding))


class _Start(NamedTuple):
    """A pair whose source descriptors have been read."""

    source: PreparedMap
    target: PreparedMap
    places: _Places
    descriptors: Tensor  # (..., K, C) float64 of length one


def _starts(pairs: Sequence[tuple[PreparedMap, PreparedMap, Tensor]]) -> list[_Start]:
    """Reads source descriptors; what maps of one size share for the very same keypoints is computed once."""
    known: dict[Any, _Places] = {}
    starts = []
    for source, target, keypoints in pairs:
        key = id(keypoints), source.size, source.grid, source.transform, source.rule, source.features.device
        if key not in known:
            known[key] = _Places.of(source, keypoints)
        starts.append(_Start(source, target, known[key], source.read(known[key].corners)))
    return starts


def _finish(start: _Start, found: Found) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions in the original target image, cosines, and which matches pass the check of the rule."""
    accepted = _accepted(start, found)
    return start.target.leave(found.points).float(), found.similarity.clamp(-1, 1).float(), accepted


def _accepted(start: _Start, found: Found) -> Tensor:
    """`(..., K)` bool: which matches pass the check of the rule."""
    source, target, places = start.source, start.target, start.places
    rule = source.rule
    if rule.check == "cycle":
        there = target.read(target.corners(found.points, rule.rounding))
        back = source.leave(source.best(there).points)
        return (back - places.keypoints).square().sum(-1).sqrt() <= rule.cycle_pixels
    if rule.check == "mutual":
        at_pixel = rule.kind == "argmax_pixel"
        centres = grid_points(found.cells, target.grid, target.size)
        where = target.corners(found.points if at_pixel else centres, "subpixel" if at_pixel else "patch", "cells")
        back = target.read(where)
        home = cell_of(grid_coordinates(places.points, source.size, source.grid, rule.sampling), source.grid)
        return (source.best(back).cells == home).all(dim=-1)
    if rule.check == "ratio":
        maps = target.maps(start.descriptors)
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
