"""Mutual nearest neighbours between two sets of descriptors, without the whole matrix of their cosines."""

import torch
from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.matching.cosines import unit
from ditf_probe.precision import to_float64

BUDGET = 2**28
"""Bytes that one block of cosines may take by default."""


@torch.no_grad()
def mutual_nearest_neighbours(
    source: Tensor, target: Tensor, *, ratio: float | None = None, budget: int = BUDGET
) -> tuple[Tensor, Tensor]:
    """Pairs of descriptors that are each other's nearest neighbour by the cosine.

    Cosines are computed in float64 and compared in float32, so that equal descriptors tie whatever the order of the
    sums; of equal neighbours the first is the nearest. They are computed in blocks, each once for both directions.

    Args:
        source: `(N, C)` floating point, of any length.
        target: `(M, C)`, on the same device.
        ratio: Keep a match only if its distance is less than so much of that of the second nearest target (Lowe,
            IJCV 2004, section 7.1), as distances of descriptors of length one. Without a second target it is kept.
        budget: Most bytes that a block of cosines may take; a block holds at least one.

    Returns:
        pairs: `(P, 2)` int64, index into `source` before index into `target`, ascending.
        similarity: `(P,)` float32 cosine of each pair in [-1, 1].

    Raises:
        InputError: Shapes that do not fit, NaN or infinity, or a number out of range.
    """
    if ratio is not None and not 0 < ratio <= 1:
        raise InputError("ratio", ratio, "give a part above 0 and at most 1, or None for no test")
    if budget < 1:
        raise InputError("budget", budget, "give a positive number of bytes")
    home = source.device
    source, target = _directions("source", source), _directions("target", target)
    if source.shape[1] != target.shape[1]:
        raise InputError("target", tuple(target.shape), f"give {source.shape[1]} channels, as `source` has")
    if not len(source) or not len(target):
        return torch.zeros(0, 2, dtype=torch.long, device=home), torch.zeros(0, device=home)
    to_target, to_source = _Nearest(source), _Nearest(target)
    width = min(len(target), max(1, budget // source.itemsize))
    height = min(len(source), max(1, budget // (source.itemsize * width)))
    for top in range(0, len(source), height):
        for left in range(0, len(target), width):
            block = (source[top : top + height] @ target[left : left + width].mT).float()
            to_target.add(top, left, block)
            to_source.add(left, top, block.mT)
    rows = torch.arange(len(source), device=source.device)
    kept = to_source.index[to_target.index] == rows
    if ratio is not None:
        kept &= to_target.within(ratio)
    pairs = torch.stack([rows, to_target.index], dim=1)[kept]
    return pairs.to(home), to_target.best[kept].clamp(-1, 1).to(home)


class _Nearest:
    """The nearest and second nearest neighbour of each descriptor among those seen so far."""

    def __init__(self, descriptors: Tensor) -> None:
        self.best = torch.full((len(descriptors),), -torch.inf, device=descriptors.device)
        self.second = self.best.clone()
        self.index = torch.zeros(len(descriptors), dtype=torch.long, device=descriptors.device)

    def add(self, first: int, offset: int, block: Tensor) -> None:
        """Takes cosines `(n, m)` of the descriptors from `first` on with the neighbours from `offset` on."""
        own = slice(first, first + len(block))
        value, index = block.max(dim=1)
        rest = block.scatter(1, index[:, None], -torch.inf).amax(dim=1)
        # Later neighbours must win outright, or the first of equal ones would not be kept.
        better = value > self.best[own]
        loser = torch.where(better, self.best[own], value)
        self.second[own] = torch.stack([self.second[own], rest, loser]).amax(dim=0)
        self.best[own] = torch.where(better, value, self.best[own])
        self.index[own] = torch.where(better, index + offset, self.index[own])

    def within(self, ratio: float) -> Tensor:
        """Whether the nearest is nearer than that part of the distance to the second nearest."""
        nearest, second = ((2 - 2 * x.double()).clamp_min(0).sqrt() for x in (self.best, self.second))
        return nearest < ratio * second


def _directions(argument: str, descriptors: Tensor) -> Tensor:
    if descriptors.ndim != 2 or not descriptors.is_floating_point():
        found = f"{tuple(descriptors.shape)} {descriptors.dtype}"
        raise InputError(argument, found, "give floating-point descriptors (N, C)")
    exact = to_float64(descriptors)
    if not exact.isfinite().all():
        raise InputError(argument, "not finite", "give descriptors without NaN or infinity")
    return unit(exact)
