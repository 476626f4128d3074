"""Every category as often as the others, in an order that ranks and resumed trainings share."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
from torch import Tensor

from ditf_probe.data.balanced import BalancedSampler
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.pairs import Pair, PairDataset
from ditf_probe.data.synthetic import SyntheticPairs

COUNTS = {"cat": 40, "dog": 7, "bus": 1}


class Uneven(PairDataset):
    """48 pairs of three categories."""

    name, unit = "uneven", "pair"

    def __init__(self) -> None:
        self.categories = [name for name, count in COUNTS.items() for _ in range(count)]

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, index: int) -> Pair:
        side = SyntheticPairs("train", 1, 16)[0].source
        return Pair(index, self.categories[index], "u", side, side)

    def image(self, image_id: str) -> Tensor:
        raise NotImplementedError  # sampling reads no image


def order(ranks: int = 1, rank: int = 0, seed: int = 0, epoch: int = 0) -> list[int]:
    sampler = BalancedSampler(Uneven(), ranks, rank, seed)
    sampler.set_epoch(epoch)
    found: Iterator[object] = iter(sampler)
    return [int(str(index)) for index in found]


@pytest.mark.parametrize("epoch", range(5))
def test_categories_take_turns(epoch: int) -> None:
    found = order(epoch=epoch)
    assert len(found) == 48
    names = Uneven().categories
    for start in range(0, 48, 3):
        assert {names[index] for index in found[start : start + 3]} == set(COUNTS)
    assert Counter(names[index] for index in found) == dict.fromkeys(COUNTS, 16)


def test_no_pair_comes_again_before_all_of_its_category_were_shown() -> None:
    for epoch in range(20):
        found, names = order(epoch=epoch), Uneven().categories
        for name, count in COUNTS.items():
            own = [index for index in found if names[index] == name]
            for start in range(0, len(own) - count + 1, count):
                assert len(set(own[start : start + count])) == count


def test_a_large_category_is_shown_whole_over_the_epochs() -> None:
    shown = {index for epoch in range(12) for index in order(epoch=epoch)}
    assert shown == set(range(48))


def test_orders_follow_from_seed_and_epoch() -> None:
    assert order(epoch=3) == order(epoch=3)
    orders = [order(seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for a, b in pairwise(orders))
    # The order of categories within a round differs between rounds.
    names = Uneven().categories
    rounds = {tuple(names[index] for index in order()[start : start + 3]) for start in range(0, 48, 3)}
    assert len(rounds) > 1


@pytest.mark.parametrize("ranks", [2, 5])
def test_ranks_share_the_order(ranks: int) -> None:
    parts = [order(ranks, rank, epoch=2) for rank in range(ranks)]
    assert {len(part) for part in parts} == {-(-48 // ranks)}
    joined = [index for turn in zip(*parts, strict=True) for index in turn]
    assert joined[:48] == order(epoch=2)


def test_the_data_module_balances_training_alone() -> None:
    pairs = PairDataModule(train=Uneven(), val=Uneven(), batch_size=6, balanced=True)
    for batch in pairs.train_dataloader():
        assert Counter(pair.category for pair in batch) == dict.fromkeys(COUNTS, 2)
    val = pairs.val_dataloader()
    assert not isinstance(val, list)
    assert [pair.index for batch in val for pair in batch] == list(range(48))
