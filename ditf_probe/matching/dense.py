"""Dense matches between two feature maps: where each place of the source is in the target, and whether it is there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.geometry import cell_centres, check_size
from ditf_probe.matching.by_rule import match_prepared
from ditf_probe.matching.keypoints import sample_descriptors
from ditf_probe.matching.prepared import PreparedMap
from ditf_probe.precision import within_reach

BUDGET = 2**28
"""Bytes of working memory that groups of source points are chosen for by default."""


@dataclass(frozen=True, eq=False)
class DenseMatches:
    """What `match_dense` found, on a grid of source points.

    Attributes:
        points: `(2, h, w)` float32, the source points (x, y) in pixels of the original source image.
        flow: `(2, h, w)` float32, (x, y) of the best pixel of the original target image minus `points`: coordinates of
            two images, so that x grows along with x where the target is wider. An image against itself gives zero up
            to rounding to whole pixels; in the outermost half cell, whose pixels all tie, the first of them is found.
        confidence: `(h, w)` float32 cosine of the match in [-1, 1].
        cycle: `(h, w)` float32 distance in pixels of the original source image between a point and the best source
            pixel of its match; whole pixels are found, so it is not zero at points between them.
        matched: `(h, w)` bool, False for "no match".
    """

    points: Tensor
    flow: Tensor
    confidence: Tensor
    cycle: Tensor
    matched: Tensor


@torch.no_grad()
def match_dense(
    source_features: Tensor,
    target_features: Tensor,
    source_size: Sequence[int],
    target_size: Sequence[int],
    *,
    stride: int | None = None,
    max_cycle: float | None = None,
    mutual: bool = True,
    budget: int = BUDGET,
) -> DenseMatches:
    """Matches a grid of source points by the rule of `match_keypoints`, there and back.

    A point is matched if its cycle error is at most `max_cycle` and, with `mutual`, if no other point of the grid fits
    its match better: if among the descriptors of the grid none has a higher cosine with the target's at that pixel.
    Equally good ones do not spoil each other.

    Args:
        source_features: `(C, h, w)` any floating dtype, covering the original source image from edge to edge.
        target_features: `(C, h', w')`, on the same device.
        source_size: (height, width) of the original source image.
        target_size: (height, width) of the original target image.
        stride: Source points are every so many pixels, centred; None takes the centres of the cells of the map.
        max_cycle: Largest cycle error of a match, in source pixels; None is the longer side of a cell of the source.
        mutual: Whether to ask for the second condition; its cost grows with the square of the number of points. Points
            much closer than the cells of the map have nearly equal descriptors and are each other's rivals.
        budget: Bytes of working memory that groups of points are chosen for; the results come on top.

    Returns:
        Points and matches, on the device of the features.

    Raises:
        InputError: If shapes do not fit, a number is NaN or infinite, or an option is out of range.
    """
    _check_options(stride, max_cycle, budget)
    home = source_features.device
    source_features, target_features = within_reach(source_features), within_reach(target_features)
    source_size, target_size = check_size("source_size", source_size), check_size("target_size", target_size)
    points, grid = _points(source_features, source_size, stride)
    limit = max(source_size[0] / source_features.shape[-2], source_size[1] / source_features.shape[-1])
    limit = limit if max_cycle is None else max_cycle
    found, confidence = torch.empty_like(points), points.new_empty(len(points))
    back = torch.empty_like(points)
    source = PreparedMap.of(source_features, source_size, prefix="source_")
    target = PreparedMap.of(target_features, target_size, prefix="target_")
    for part in _groups(len(points), (source_features, target_features), budget):
        (found[part], confidence[part], _), *_ = match_prepared([(source, target, points[part])], budget)
        (back[part], _, _), *_ = match_prepared([(target, source, found[part])], budget)
    cycle = (back - points).square().sum(1).sqrt()
    matched = cycle <= limit
    if mutual:
        ends = (source_features, points, source_size), (target_features, found, target_size)
        matched &= _unrivalled(*ends, budget)
    return DenseMatches(
        points.T.reshape(2, *grid).to(home),
        (found - points).T.reshape(2, *grid).to(home),
        confidence.view(grid).to(home),
        cycle.view(grid).to(home),
        matched.view(grid).to(home),
    )


End = tuple[Tensor, Tensor, tuple[int, int]]  # a feature map, points in the pixels of its image, the size of that


def _unrivalled(source: End, target: End, budget: int) -> Tensor:
    """`(P,)` bool: whether no source point has a higher cosine with a match than the point that it belongs to."""
    count, channels = len(source[1]), len(source[0])
    own = torch.zeros(count, device=source[1].device)
    most = own - torch.inf
    # Two blocks of descriptors in float64 and as many numbers for their cosines.
    step = max(1, min(budget // (4 * channels * 8), int((budget / 16) ** 0.5)))
    for first in range(0, count, step):
        rows = slice(first, min(first + step, count))
        wanted = _unit(target, rows)
        for start in range(0, count, step):
            # As in `mutual_nearest_neighbours`: rounded, so that equal descriptors tie.
            cosines = (wanted @ _unit(source, slice(start, start + step)).mT).float()
            most[rows] = torch.maximum(most[rows], cosines.amax(1))
            if start == first:
                own[rows] = cosines.diagonal()
    return own >= most


def _unit(end: End, part: slice) -> Tensor:
    features, points, size = end
    return sample_descriptors(features, points[part], size).double()


def _points(features: Tensor, size: tuple[int, int], stride: int | None) -> tuple[Tensor, tuple[int, int]]:
    """Source points `(P, 2)` in row-major order, and the (height, width) of their grid."""
    if features.ndim != 3:
        raise InputError("source_features", tuple(features.shape), "give one map (C, h, w)")
    if stride is None:
        grid = (features.shape[1], features.shape[2])
        return cell_centres(grid, size).to(features.device), grid
    ys, xs = (torch.arange(min(stride - 1, side - 1) // 2, side, stride) for side in size)
    rows, columns = torch.meshgrid(ys, xs, indexing="ij")
    points = torch.stack([columns, rows], dim=-1).reshape(-1, 2).float()
    return points.to(features.device), (len(ys), len(xs))


def _groups(count: int, maps: Sequence[Tensor], budget: int) -> list[slice]:
    """Points that are matched at a time: a descriptor and a map of dot products each, both in float64."""
    each = 8 * max(features.shape[0] + features.shape[-2] * features.shape[-1] for features in maps)
    step = max(1, budget // each)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _check_options(stride: int | None, max_cycle: float | None, budget: int) -> None:
    if stride is not None and stride < 1:
        raise InputError("stride", stride, "give a positive number of pixels, or None for the cells of the map")
    if max_cycle is not None and not max_cycle >= 0:
        raise InputError("max_cycle", max_cycle, "give a distance in pixels, or None for one cell")
    if budget < 1:
        raise InputError("budget", budget, "give a positive number of bytes")
