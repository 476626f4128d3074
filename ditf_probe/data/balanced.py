"""An order of training pairs in which every category comes up as often as the others."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DistributedSampler

from ditf_probe.data.pairs import Pair, PairDataset


class BalancedSampler(DistributedSampler[Pair]):
    """Categories take turns, each with its own pairs in a shuffled order.

    An epoch has as many pairs as the list. Where categories differ in size, a large one shows some of its pairs in an
    epoch, other ones in the next, and a small one shows its pairs again, none twice before all were shown once. Every
    round over the categories has an order of its own. The order follows from the seed and the epoch alone, so any
    number of ranks share it, and a training that goes on has the order it would have had.

    Args:
        dataset: The pairs.
        num_replicas: Number of ranks.
        rank: Which one this is; it takes every `num_replicas`-th pair.
        seed: Of the order.
    """

    def __init__(self, dataset: PairDataset, num_replicas: int = 1, rank: int = 0, seed: int = 0) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed)
        members: dict[str, list[int]] = {}
        for index in range(len(dataset)):
            members.setdefault(dataset[index].category, []).append(index)
        self._members = list(members.values())

    def __iter__(self) -> Iterator[Pair]:
        """Positions of the pairs of this rank in the list; torch types them as pairs."""
        rng = np.random.default_rng([self.seed, self.epoch])
        rounds = -(-self.total_size // len(self._members))
        decks = [_deck(members, rounds, rng) for members in self._members]
        order = [decks[category][turn] for turn in range(rounds) for category in rng.permutation(len(decks))]
        own: Any = order[: self.total_size][self.rank :: self.num_replicas]
        return iter(own)


def _deck(members: list[int], count: int, rng: np.random.Generator) -> list[int]:
    """So many of the members, all of them before one comes again."""
    shuffles = [rng.permutation(members) for _ in range(-(-count // len(members)))]
    return [int(index) for index in np.concatenate(shuffles)[:count]]
