"""Labels carried from frame to frame of a video by the similarity of features: the protocol of DINO.

Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021, after Jabri et al., NeurIPS 2020:
every cell of a new frame takes the labels of its nearest neighbours in the frames before it. Features are scaled to
length one, so that similarities are cosines. A cell of a context frame counts if it lies in the neighbourhood of the
new cell; over all context frames together the `topk` most similar ones are kept, with all that tie with the last of
them, and weigh exp(similarity / temperature), scaled to the sum of one: a softmax over what is kept.

The similarities of all cells with all cells are never held: a tile of the new frame is compared with the window of each
context frame that its neighbourhoods cover, by one matrix product, and tiles are as large as a budget allows.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.errors import InputError
from ditf_probe.matching.cosines import check_features, not_finite

LARGEST_TILE = 8  # cells along a side: a larger one compares more cells that no neighbourhood holds
_TINY = 1e-12  # shortest length that a feature is divided by, as in torch.nn.functional.normalize


def propagate_labels(
    target: Tensor,
    context: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    radius: int = 12,
    topk: int = 5,
    temperature: float = 0.1,
    budget_mib: float = 64.0,
) -> Tensor:
    """Soft labels of a frame from those of other frames.

    Args:
        target: `(C, h, w)` features of the frame, of any length.
        context: N maps `(C, h, w)` of the other frames.
        labels: Their labels, N maps `(K, h, w)`, such as the shares of K objects.
        radius: A cell sees those within so many rows and columns of its own place; 0 is no restriction.
        topk: How many cells of all frames together count; all, where there are fewer.
        temperature: What similarities are divided by before the exponential.
        budget_mib: Memory of the similarities that are held at a time, in MiB; at least one cell's.

    Returns:
        `(K, h, w)`, of the dtype of `labels`; where those of every cell sum to one, so do these.

    Raises:
        InputError: If shapes do not fit, an option is out of range, or features are not finite.
    """
    _check(target, context, labels, radius, topk, temperature, budget_mib)
    dtype = torch.promote_types(target.dtype, torch.float32)
    height, width = target.shape[1:]
    reach = radius or max(height, width)
    directions = F.normalize(target.to(dtype), dim=0, eps=_TINY)
    scales = [1 / frame.to(dtype).square().sum(0).sqrt().clamp_min(_TINY) for frame in context]
    found = torch.empty(labels[0].shape, dtype=labels[0].dtype, device=labels[0].device)
    for tile, window in _tiles((height, width), reach, len(context), budget_mib * 2**20 / dtype.itemsize):
        cells = directions[:, *tile].flatten(1).T  # (T, C)
        similarities = torch.cat(
            [
                (cells @ frame[:, *window].to(dtype).flatten(1)) * scale[window].flatten()
                for frame, scale in zip(context, scales, strict=True)
            ],
            dim=1,
        )  # (T, N * S)
        outside = ~_seen(tile, window, reach).to(similarities.device)[:, None]
        similarities.view(len(cells), len(context), -1).masked_fill_(outside, -torch.inf)
        weights = _weights(similarities, topk, temperature)
        values = torch.cat([label[:, *window].flatten(1) for label in labels], dim=1)  # (K, N * S)
        carried = values @ weights.to(values.device, values.dtype).T
        found[:, *tile] = carried.view(len(values), *found[:, *tile].shape[1:])
    return found


def _weights(similarities: Tensor, topk: int, temperature: float) -> Tensor:
    """`(T, S)` shares of the most similar cells, in place of similarities where -inf is out of sight."""
    best = similarities.topk(min(topk, similarities.shape[1]), dim=1).values
    # Shifted by the largest, which leaves the quotients as they are and no exponential can overflow.
    weights = ((similarities - best[:, :1]) / temperature).exp_()
    weights.masked_fill_(similarities < best[:, -1:], 0)
    return weights.div_(weights.sum(1, keepdim=True))


def _tiles(
    size: tuple[int, int], reach: int, frames: int, numbers: float
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Tiles of a map, and the windows that their neighbourhoods cover; of all frames, at most so many similarities."""
    side = LARGEST_TILE
    while side > 1 and _similarities(side, size, reach) * frames > numbers:
        side -= 1
    for top in range(0, size[0], side):
        for left in range(0, size[1], side):
            tile = slice(top, min(top + side, size[0])), slice(left, min(left + side, size[1]))
            yield tile, (_around(tile[0], reach, size[0]), _around(tile[1], reach, size[1]))


def _similarities(side: int, size: tuple[int, int], reach: int) -> int:
    """Pairs of cells of one tile and its window, at most."""
    tile = min(side, size[0]) * min(side, size[1])
    return tile * min(side + 2 * reach, size[0]) * min(side + 2 * reach, size[1])


def _around(span: slice, reach: int, length: int) -> slice:
    return slice(max(0, span.start - reach), min(length, span.stop + reach))


def _seen(tile: tuple[slice, slice], window: tuple[slice, slice], reach: int) -> Tensor:
    """`(T, S)` bool: which cells of a window are in the neighbourhood of which of a tile, both in row-major order."""
    near = []
    for own, other in zip(tile, window, strict=True):
        apart = torch.arange(own.start, own.stop)[:, None] - torch.arange(other.start, other.stop)
        near.append(apart.abs() <= reach)
    rows, columns = near
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)


def _check(
    target: Tensor,
    context: Sequence[Tensor],
    labels: Sequence[Tensor],
    radius: int,
    topk: int,
    temperature: float,
    budget_mib: float,
) -> None:
    check_features("target", target)
    if not context or len(context) != len(labels):
        raise InputError(
            "context", f"{len(context)} maps for {len(labels)} labels", "give one or more, each with labels"
        )
    for frame in context:
        if frame.shape != target.shape or target.ndim != 3:
            raise InputError("context", tuple(frame.shape), f"give (C, h, w) like the target, {tuple(target.shape)}")
    for label in labels:
        if label.ndim != 3 or label.shape != labels[0].shape or label.shape[1:] != target.shape[1:]:
            raise InputError("labels", tuple(label.shape), f"give (K, h, w) on the grid {tuple(target.shape[1:])}")
    for name, value in (("radius", radius), ("topk", topk - 1)):
        if value < 0:
            raise InputError(name, value + (name == "topk"), "use a whole number of cells")
    for name, amount in (("temperature", temperature), ("budget_mib", budget_mib)):
        if not 0 < amount < float("inf"):
            raise InputError(name, amount, "use a number above 0")
    for name, maps in (("target", [target]), ("context", context)):
        for features in maps:
            if not features.sum().isfinite():
                raise not_finite(name, features)
