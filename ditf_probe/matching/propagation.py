"""Labels carried from frame to frame of a video by the similarity of features: the protocol of DINO.

Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021, after Jabri et al., NeurIPS 2020:
every cell of a new frame takes the labels of its nearest neighbours in the frames before it. Features are scaled to
length one, so that similarities are cosines. A cell of a context frame counts if it lies in the neighbourhood of the
new cell; over all context frames together the `topk` most similar ones are kept, with all that tie with the last of
them, and weigh exp(similarity / temperature), scaled to the sum of one: a softmax over what is kept.

The similarities of all cells with all cells are never held: each tile of the new frame is compared with the window of
each context frame that its neighbourhoods cover, by a matrix product, as many tiles at a time as a budget allows.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.errors import InputError
from ditf_probe.geometry import Size
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
        budget_mib: Size of the similarities and windows that are held at a time, in MiB, at least one cell's; with
            what is made of them the peak is about three times that.

    Returns:
        `(K, h, w)`, of the dtype of `labels`; where those of every cell sum to one, so do these.

    Raises:
        InputError: If shapes do not fit, an option is out of range, or features are not finite.
    """
    _check(target, context, labels, radius, topk, temperature, budget_mib)
    dtype = torch.promote_types(target.dtype, torch.float32)
    size = (target.shape[1], target.shape[2])
    reach = (min(radius or size[0], size[0] - 1), min(radius or size[1], size[1] - 1))
    cells = F.normalize(target.to(dtype), dim=0, eps=_TINY)
    scales = [1 / frame.to(dtype).square().sum(0).sqrt().clamp_min(_TINY) for frame in context]
    numbers = budget_mib * 2**20 / dtype.itemsize
    side = _tile_side(size, reach, len(target), len(context), numbers)
    near = _near(side, reach).to(target.device)  # (T, S)
    inside = torch.ones(1, *size, dtype=torch.bool, device=target.device)
    found = []
    for tiles in _pieces(size, reach, side, len(target), len(context), numbers):
        own = _windows(cells, side, (0, 0), tiles).transpose(1, 2)  # (P, T, C)
        unseen = ~(near & _windows(inside, side, reach, tiles))  # (P, T, S)
        similarities = own.new_empty(len(own), own.shape[1], len(context), near.shape[1])
        for number, (frame, scale) in enumerate(zip(context, scales, strict=True)):
            dots = own @ _windows(frame.to(dtype), side, reach, tiles)
            similarities[:, :, number] = dots.mul_(_windows(scale[None], side, reach, tiles))
        similarities.masked_fill_(unseen[:, :, None], -torch.inf)
        weights = _weights(similarities.flatten(2), topk, temperature).to(labels[0].dtype)
        values = torch.stack([_windows(label, side, reach, tiles) for label in labels], dim=2)
        found.append(weights.to(values.device) @ values.flatten(2).transpose(1, 2))  # (P, T, K)
    return _joined(torch.cat(found), side, size)


def _weights(similarities: Tensor, topk: int, temperature: float) -> Tensor:
    """`(P, T, S)` shares of the most similar cells, in place of similarities where -inf is out of sight."""
    best = similarities.topk(min(topk, similarities.shape[-1]), dim=-1).values
    least = best[..., -1:]
    # Shifted by the largest, which leaves the quotients as they are and no exponential can overflow.
    weights = ((similarities - best[..., :1]) / temperature).exp_()
    weights.masked_fill_(similarities < least, 0)
    # The padding beside a map has nothing in sight and takes no part in the result.
    return weights.div_(weights.sum(-1, keepdim=True))


def _tile_side(size: Size, reach: Size, channels: int, frames: int, numbers: float) -> int:
    """Side of the tiles in cells, smaller where not even one tile fits the budget."""
    side = min(LARGEST_TILE, max(size))
    while side > 1 and _numbers(side, reach, channels, frames) > numbers:
        side -= 1
    return side


def _numbers(side: int, reach: Size, channels: int, frames: int) -> int:
    """What one tile takes: its similarities in all frames, and the features of a window."""
    window = (side + 2 * reach[0]) * (side + 2 * reach[1])
    return window * (frames * side**2 + channels)


def _pieces(size: Size, reach: Size, side: int, channels: int, frames: int, numbers: float) -> Iterator[slice]:
    """The tiles of a map in row-major order, as many at a time as the budget allows."""
    count = -(-size[0] // side) * -(-size[1] // side)
    step = max(1, int(numbers // _numbers(side, reach, channels, frames)))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _windows(maps: Tensor, side: int, reach: Size, tiles: slice) -> Tensor:
    """`(P, C, S)`: the cells within reach of each of some tiles of `(C, h, w)`; zeros beyond the map."""
    height, width = maps.shape[1:]
    rows, columns = -(-height // side), -(-width // side)
    below, right = rows * side - height + reach[0], columns * side - width + reach[1]
    padded = F.pad(maps, (reach[1], right, reach[0], below))
    views = padded.unfold(1, side + 2 * reach[0], side).unfold(2, side + 2 * reach[1], side)
    numbers = torch.arange(tiles.start, tiles.stop, device=maps.device)
    chosen = views[:, numbers // columns, numbers % columns]  # (C, P, side + 2 reach, side + 2 reach)
    return chosen.transpose(0, 1).flatten(2)


def _joined(tiles: Tensor, side: int, size: Size) -> Tensor:
    """`(K, h, w)` from all tiles `(P, T, K)` in row-major order."""
    rows, columns = -(-size[0] // side), -(-size[1] // side)
    grid = tiles.view(rows, columns, side, side, -1).permute(4, 0, 2, 1, 3)
    return grid.reshape(-1, rows * side, columns * side)[:, : size[0], : size[1]].contiguous()


def _near(side: int, reach: Size) -> Tensor:
    """`(T, S)` bool: which cells of a window are in the neighbourhood of which of its tile, in row-major order."""
    near = []
    for length in reach:
        apart = torch.arange(side)[:, None] + length - torch.arange(side + 2 * length)
        near.append(apart.abs() <= length)
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
