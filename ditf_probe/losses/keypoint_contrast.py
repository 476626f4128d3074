"""Contrast between keypoints that correspond and everything else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ditf_probe.data.pairs import Pair, Side
from ditf_probe.errors import InputError
from ditf_probe.losses.ends import End
from ditf_probe.losses.searching import by_grids
from ditf_probe.losses.terms import Extras, Term


class KeypointContrast(Term):
    """Symmetric InfoNCE over the visible keypoints of a batch, with negatives from the map that is searched.

    In each direction a keypoint must pick its partner among the keypoints of all pairs of the batch and all cells of
    the one image that matching would search. Not counted as negatives: the same keypoint of the same category in
    another pair, which is a match as well, and cells within `margin` cells of the partner, which nearly are it.

    InfoNCE is from van den Oord et al., arXiv 1807.03748, equation 4; its symmetric form with a learnt temperature from
    CLIP (Radford et al., ICML 2021, section 2.3).

    Args:
        temperature: Cosines are divided by this; where it starts if it is learnt.
        learn_temperature: Whether the temperature is a parameter, kept between 0.01 and 1.
        margin: Radius around the partner without negatives, in cells of the searched map.

    Raises:
        InputError: A number out of range.
    """

    def __init__(self, temperature: float = 0.07, learn_temperature: bool = True, margin: float = 1.0) -> None:
        super().__init__(temperature, learn_temperature)
        if not 0 <= margin < math.inf:
            raise InputError("margin", margin, "give a number of cells, 0 or more")
        self.margin = margin

    def compute(self, sources: list[Tensor], targets: list[Tensor], pairs: list[Pair], extras: Extras) -> Tensor:
        """The mean of both directions; see `Term.forward`."""
        del extras
        groups = same_keypoint(pairs)
        source = _Side.of(sources, [(pair.source, pair.visible) for pair in pairs])
        target = _Side.of(targets, [(pair.target, pair.visible) for pair in pairs])
        return (self._direction(source, target, groups) + self._direction(target, source, groups)) / 2

    def _direction(self, queries: "_Side", keys: "_Side", groups: Tensor) -> Tensor:
        """Cross entropy of the queries over the keys of the batch and the cells of the searched maps."""
        among_keys = torch.cat(queries.descriptors) @ torch.cat(keys.descriptors).T / self.temperature
        alike = (groups[:, None] == groups[None, :]).fill_diagonal_(False)
        among_keys = among_keys.masked_fill(alike.to(among_keys.device), -torch.inf)
        # Apart from the keys, because maps may differ in their number of cells.
        among_cells = self._among_cells(queries.descriptors, keys)
        return (torch.logaddexp(among_keys.logsumexp(dim=1), among_cells) - among_keys.diagonal()).mean()

    def _among_cells(self, queries: Sequence[Tensor], keys: "_Side") -> Tensor:
        """`(M,)` logarithm of the sum over the negatives on the one map that each query searches."""
        sums: list[Tensor] = list(queries)
        for members, end in keys.ends:
            logits = end.cosines(pad_sequence([queries[i] for i in members], batch_first=True)) / self.temperature
            found = logits.masked_fill(end.distances() <= self.margin, -torch.inf).logsumexp(dim=2)
            for i, row in zip(members, found.unbind(), strict=True):
                sums[i] = row[: len(queries[i])]
        return torch.cat(sums)


@dataclass(frozen=True)
class _Side:
    """One side of a batch.

    Attributes:
        ends: Which maps have one grid, and these.
        descriptors: `(K, D)` of length one at the keypoints of each map.
    """

    ends: list[tuple[list[int], End]]
    descriptors: list[Tensor]

    @classmethod
    def of(cls, maps: Sequence[Tensor], annotations: Sequence[tuple[Side, Tensor]]) -> "_Side":
        """Samples maps at the keypoints that a mask `(K,)` leaves of each image."""
        ends, descriptors = [], list(maps)
        for members in by_grids(maps).values():
            end = End.of([maps[i] for i in members], [annotations[i] for i in members])
            ends.append((members, end))
            for i, rows in zip(members, end.descriptors.unbind(), strict=True):
                descriptors[i] = rows[: int(annotations[i][1].sum())]
        return cls(ends, descriptors)


def same_keypoint(pairs: Sequence[Pair]) -> Tensor:
    """Numbers that are equal where two visible keypoints mean the same: category and row are equal.

    Args:
        pairs: Annotations.

    Returns:
        `(M,)` int64 over the visible keypoints of all pairs, in order.
    """
    keys = [(pair.category, row) for pair in pairs for row in pair.visible.nonzero()[:, 0].tolist()]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys], dtype=torch.int64)
