"""Which channels are discarded: the strongest by hand, random ones by their properties."""

import random
from itertools import pairwise

import pytest
import torch

from ditf_probe.errors import InputError
from ditf_probe.features.channels import (
    ChannelPick,
    mean_magnitudes,
    picked_channels,
    random_channels,
    strongest_channels,
)

GOLDEN = [5, 27, 38, 42, 56, 59, 84, 86]


def test_magnitudes_by_hand() -> None:
    x = torch.tensor([[[1.0, -2.0], [-3.0, 2.0]], [[0.0, 2.0], [0.0, -2.0]]])
    assert mean_magnitudes(x).tolist() == [1.0, 2.0]
    assert mean_magnitudes(x.half()).dtype == torch.float64


def test_the_strongest_by_hand() -> None:
    magnitudes = torch.tensor([1.0, 5.0, 3.0, 5.0, 0.0])
    assert strongest_channels(magnitudes, 0) == []
    assert strongest_channels(magnitudes, 1) == [1], "the first of equals"
    assert strongest_channels(magnitudes, 3) == [1, 2, 3]
    assert strongest_channels(magnitudes, 5) == [0, 1, 2, 3, 4]
    for count in (-1, 6):
        with pytest.raises(InputError, match="massive_count"):
            strongest_channels(magnitudes, count)


@pytest.mark.parametrize("case", range(200))
def test_random_channels_are_never_massive(case: int) -> None:
    dice = random.Random(case)
    width = dice.randint(4, 60)
    massive = dice.sample(range(width), dice.randint(0, width // 4))
    count = dice.randint(0, width // 4)
    magnitudes = torch.rand(width, generator=torch.Generator().manual_seed(case))
    magnitudes[massive] += 100
    pick = ChannelPick(count, "random", seed=case)
    found = picked_channels(pick, massive, magnitudes, width, block=case % 5)
    assert len(found) == len(set(found)) == count
    assert found == sorted(found)
    assert all(0 <= channel < width for channel in found)
    assert not set(found) & set(massive)
    assert not set(found) & set(picked_channels(ChannelPick(count), massive, magnitudes, width, case % 5))
    assert found == picked_channels(pick, massive, magnitudes, width, case % 5), "a seed draws the same again"


def test_draws_differ_by_seed_and_block_and_grow() -> None:
    draws = {tuple(random_channels(64, 8, [3], seed, block)) for seed in range(4) for block in range(4)}
    assert len(draws) == 16
    grown = [set(random_channels(64, count, [3], 1, 2)) for count in range(17)]
    assert all(small < large for small, large in pairwise(grown))
    seen = {channel for seed in range(200) for channel in random_channels(6, 2, [0], seed)}
    assert seen == {1, 2, 3, 4, 5}, "each that is free is drawn by some seed"


def test_a_seed_draws_the_same_on_every_machine() -> None:
    assert random_channels(96, 8, [], seed=0, block=3) == GOLDEN


def test_picks_by_hand() -> None:
    magnitudes = torch.tensor([9.0, 1.0, 8.0, 2.0])
    assert picked_channels(ChannelPick(), [2, 0], magnitudes, 4, 0) == [0, 2]
    assert picked_channels(ChannelPick(), [], magnitudes, 4, 0) == []
    assert picked_channels(ChannelPick(3), [0], magnitudes, 4, 0) == [0, 2, 3]
    assert picked_channels(ChannelPick(0), [0], None, 4, 0) == []
    assert picked_channels(ChannelPick(kind="random"), [0, 2], magnitudes, 4, 0) == [1, 3], "as many as are massive"
    assert picked_channels(ChannelPick(kind="random"), [0, 1], None, 4, 0) == [2, 3]
    assert picked_channels(ChannelPick(2, "random"), [], magnitudes, 4, 0) == [1, 3], "not the strongest two either"


@pytest.mark.parametrize(
    ("pick", "magnitudes", "match"),
    [
        (ChannelPick(5), torch.ones(4), "use 0 to 4 channels"),
        (ChannelPick(3, "random"), torch.ones(4), "use 0 to 1"),
        (ChannelPick(3, "random"), None, "use 0 to 2"),
        (ChannelPick(1), None, "massive_channels to auto"),
    ],
)
def test_channels_that_are_not_there(pick: ChannelPick, magnitudes: torch.Tensor | None, match: str) -> None:
    with pytest.raises(InputError, match=match):
        picked_channels(pick, [0, 1], magnitudes, 4, 0)


@pytest.mark.parametrize(("value", "match"), [((-1,), "count"), ((1, "weak"), "choice"), ((1, "random", -2), "seed")])
def test_picks_that_cannot_be(value: tuple, match: str) -> None:
    with pytest.raises(InputError, match=match):
        ChannelPick(*value)
