"""Several feature maps of an image as one, and the joint PCA of the two maps of a pair (DiTF with DINOv2).

Any two extractors, from images to matches:

    >>> from ditf_probe import FeatureExtractor, SyntheticPairs, load_backbone, match_keypoints
    >>> pairs = SyntheticPairs("test", num_pairs=1)
    >>> images = [pairs.image(side.image_id) for side in (pairs[0].source, pairs[0].target)]
    >>> backbone = load_backbone("ditf-tiny", device="cpu")
    >>> one = FeatureExtractor(backbone, blocks=[3], timestep=100, image_size=64)
    >>> other = FeatureExtractor(backbone, blocks=[1], timestep=0, modulation="none", image_size=128)
    >>> maps = [[x(x.prepare(image)[None])[x.blocks[0]][0] for image in images] for x in (one, other)]
    >>> reduced = joint_pca(*maps[0], channels=64)
    >>> source, target = (fuse(parts) for parts in zip(reduced, maps[1], strict=True))
    >>> sizes = pairs[0].source.size, pairs[0].target.size
    >>> predictions, similarity = match_keypoints(source, target, pairs[0].source.keypoints, *sizes)
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.errors import InputError
from ditf_probe.geometry import check_size
from ditf_probe.matching.cosines import check_features, not_finite
from ditf_probe.precision import to_float64

Grid = Literal["finest", "coarsest"]


def fuse(
    maps: Sequence[Tensor], weights: Sequence[float] | None = None, grid: Grid | Sequence[int] = "finest"
) -> Tensor:
    """Brings maps of one image to one grid, gives each the length of its weight everywhere, and concatenates them.

    Lengths are taken after the resampling, so that at every position of the common grid the cosine of two fused
    features is exactly the mean of the cosines of their parts, weighted by the squares of `weights`.

    Args:
        maps: Two or more maps `(C, h, w)` or `(B, C, h, w)`, each covering the image edge to edge (crop padding
            first), on one device.
        weights: Length of each part, positive; 1 for all by default.
        grid: "finest" (that of the map with the most cells, the first of equals), "coarsest", or (height, width) in
            cells. Others are interpolated bilinearly, without aligned corners and without antialiasing.

    Returns:
        `(C1 + C2 + ..., h, w)` or `(B, C1 + C2 + ..., h, w)`, float32, or float64 where a map is. A part that is zero
        at a position stays zero there.

    Raises:
        InputError: Fewer than two maps, shapes or weights that do not fit, or an unknown grid.
    """
    if len(maps) < 2:
        raise InputError("maps", f"{len(maps)} maps", "give at least two")
    for features in maps:
        check_features("maps", features)
        if features.shape[:-3] != maps[0].shape[:-3]:
            raise InputError("maps", [tuple(x.shape) for x in maps], "give as many images in each")
    lengths = check_weights("weights", weights, len(maps))
    size = common_grid([(features.shape[-2], features.shape[-1]) for features in maps], grid)
    dtype = torch.float64 if any(features.dtype == torch.float64 for features in maps) else torch.float32
    parts = [
        length * F.normalize(resample(features.to(dtype), size), dim=-3)
        for length, features in zip(lengths, maps, strict=True)
    ]
    return torch.cat(parts, dim=-3)


def joint_pca(source: Tensor, target: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Projects both maps of a pair on the principal axes of all their positions together (DiTF, fusion with DINOv2).

    The common mean of the two maps is subtracted, as in any PCA: what all positions of a pair share tells none of them
    apart. Cosines are therefore angles around that mean, also where every channel is kept.

    Axes are eigenvectors of the smaller of the two Gram matrices (channels or positions), in float64, strongest first.
    Each points to where its largest coefficient over the channels of the input is positive, the first of equals.

    Args:
        source: `(C, h, w)`, without padding.
        target: `(C, h', w')`, without padding, on the same device.
        channels: Channels to keep; all there are, min(C, h * w + h' * w'), where it asks for more.

    Returns:
        `(channels, h, w)` and `(channels, h', w')`, float32, or float64 for float64.

    Raises:
        InputError: Shapes that do not fit, fewer than one channel, or numbers that are NaN or infinite.
    """
    for argument, features in (("source", source), ("target", target)):
        check_features(argument, features)
        if features.ndim != 3 or len(features) != len(source):
            raise InputError(argument, tuple(features.shape), "give two maps (C, h, w) with as many channels")
        if not features.isfinite().all():
            raise not_finite(argument, features)
    if channels < 1:
        raise InputError("channels", channels, "keep at least one channel")
    rows = to_float64(torch.cat([source.flatten(1), target.flatten(1)], dim=1).T)
    scores = _principal_scores(rows - rows.mean(0), channels).T
    scores = scores.to(torch.promote_types(source.dtype, torch.float32)).to(source.device)
    tokens = source[0].numel()
    return scores[:, :tokens].reshape(-1, *source.shape[1:]), scores[:, tokens:].reshape(-1, *target.shape[1:])


def _principal_scores(rows: Tensor, count: int) -> Tensor:
    """Coordinates `(N, k)` of centred rows `(N, C)` on their k strongest axes, k = min(count, N, C)."""
    kept = min(count, *rows.shape)
    wide = rows.shape[1] > rows.shape[0]
    values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)  # in ascending order
    values, vectors = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
    if wide:
        axes, scores = rows.T @ vectors, vectors * values.clamp_min(0).sqrt()
    else:
        axes, scores = vectors, rows @ vectors
    largest = axes.take_along_dim(axes.abs().argmax(0, keepdim=True), dim=0)
    signed: Tensor = scores * torch.where(largest < 0, -1.0, 1.0)
    return signed


def resample(features: Tensor, grid: Sequence[int]) -> Tensor:
    """A map `(..., C, h, w)` on another grid over the same image (bilinear, corners not aligned)."""
    if tuple(features.shape[-2:]) == tuple(grid):
        return features
    batch = features if features.ndim == 4 else features[None]
    found = F.interpolate(batch, size=tuple(grid), mode="bilinear", align_corners=False)
    return found if features.ndim == 4 else found[0]


def common_grid(grids: Sequence[tuple[int, int]], grid: Grid | Sequence[int]) -> tuple[int, int]:
    """The grid of a fused map.

    Args:
        grids: (height, width) of each part.
        grid: As in `fuse`.

    Raises:
        InputError: Neither a known word nor a size.
    """
    check_grid("grid", grid)
    if not isinstance(grid, str):
        return check_size("grid", grid)
    choose = max if grid == "finest" else min
    return choose(grids, key=math.prod)


def check_grid(argument: str, grid: Grid | Sequence[int]) -> None:
    """Refuses what is no grid.

    Raises:
        InputError: Neither a known word nor a size.
    """
    if isinstance(grid, str):
        if grid not in ("finest", "coarsest"):
            raise InputError(argument, grid, "use finest, coarsest, or height and width in cells")
    else:
        check_size(argument, grid)


def check_weights(argument: str, weights: Sequence[float] | None, count: int) -> list[float]:
    """One positive weight per part; 1 for all where none are given.

    Raises:
        InputError: More or fewer, or one that is not positive and finite.
    """
    if weights is None:
        return [1.0] * count
    if len(weights) != count or not all(0 < weight < math.inf for weight in weights):
        raise InputError(argument, list(weights), f"give {count} positive numbers, one per part")
    return [float(weight) for weight in weights]
