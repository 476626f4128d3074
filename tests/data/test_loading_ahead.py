"""Batches made ready in a thread: the same ones in the same order, few at a time, and a place to go on from."""

import threading
from typing import Any

import pytest
import torch

from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.loading_ahead import LoadedAhead
from ditf_probe.data.pairs import Pair
from ditf_probe.data.synthetic import SyntheticPairs

Draw = tuple[int, int, int]


def read(pairs: list[Pair], draw: Draw) -> tuple[list[int], Draw]:
    return [pair.index for pair in pairs], draw


def loader(ahead: int, load: Any = read) -> LoadedAhead[Any]:
    pairs = PairDataModule(train=SyntheticPairs("train", 11, 16), batch_size=2, seed=3)
    pairs.complete_training_batches(lambda plain: LoadedAhead(plain, load, ahead))
    found = pairs.train_dataloader()
    assert isinstance(found, LoadedAhead)
    return found


@pytest.mark.parametrize("ahead", [0, 1, 2, 50])
def test_the_order_is_that_of_the_loader(ahead: int) -> None:
    plain = PairDataModule(train=SyntheticPairs("train", 11, 16), batch_size=2, seed=3).train_dataloader()
    ours = loader(ahead)
    assert len(ours) == len(plain) == 6
    for epoch in (0, 4):
        for one in (plain, ours):
            one.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        found = list(ours)
        assert [indices for indices, _ in found] == [[pair.index for pair in batch] for batch in plain]  # type: ignore[attr-defined]
        assert [draw for _, draw in found] == [(epoch, 0, number) for number in range(6)]


def test_the_epoch_may_be_told_after_the_iterator_was_asked_for() -> None:
    ours = loader(2)
    iterator = iter(ours)
    ours.sampler.set_epoch(9)
    assert next(iterator)[1] == (9, 0, 0)


def test_as_many_batches_wait_as_were_asked_for_and_none_is_loaded_in_the_main_thread() -> None:
    loaded: list[int] = []
    threads: set[str] = set()

    def noted(pairs: list[Pair], draw: Draw) -> int:
        loaded.append(draw[2])
        threads.add(threading.current_thread().name)
        return draw[2]

    iterator = iter(loader(2, noted))
    assert next(iterator) == 0
    assert set(loaded) <= {0, 1, 2}
    assert next(iterator) == 1
    assert set(loaded) <= {0, 1, 2, 3}
    assert all(name.startswith("features") for name in threads)
    del iterator


def test_what_fails_in_the_thread_fails_where_the_batch_is_used() -> None:
    def broken(pairs: list[Pair], draw: Draw) -> int:
        if draw[2] == 2:
            raise KeyError("broken")
        return draw[2]

    iterator = iter(loader(2, broken))
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(KeyError, match="broken"):
        next(iterator)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("features")]


def test_a_left_loop_leaves_no_thread() -> None:
    for number, _ in enumerate(loader(3)):
        if number == 1:
            break
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("features")]


def test_it_goes_on_in_the_middle_of_an_epoch_and_begins_the_next_whole() -> None:
    first, second = loader(2), loader(2)
    first.sampler.set_epoch(5)
    iterator = iter(first)
    had = [next(iterator) for _ in range(4)]
    state = first.state_dict()
    whole = had + list(iterator)
    second.load_state_dict(state)
    assert second.state_dict() == state
    second.sampler.set_epoch(5)
    assert had + list(second) == whole
    assert list(second) == whole, "the next time the epoch is whole"
    second.load_state_dict(state)
    second.sampler.set_epoch(6)
    assert len(list(second)) == 6, "another epoch is whole"


def test_the_generator_of_the_process_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader(2))
    assert torch.equal(before, torch.get_rng_state())
