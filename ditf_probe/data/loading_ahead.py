"""Batches that are made ready while the one before them is worked on."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, DistributedSampler

from ditf_probe.data.pairs import Pair, PairDataset

Ready = TypeVar("Ready")


class LoadedAhead(Generic[Ready]):
    """A loader of pairs whose batches are completed in a thread, a few ahead of the one that is used.

    A thread and no process, because what is loaded lies in mapped memory: it is copied once, to where it is needed.
    The loader can stand in a checkpoint: a training that goes on in the middle of an epoch goes on behind the batches
    that it has had.

    Args:
        loader: Batches `list[Pair]`, from a `DistributedSampler`.
        load: Completes a batch. Its second argument are numbers that no other batch of the training has (epoch, rank,
            batch), for what it draws; it must not use the random generator of the process, whose order it would change.
        ahead: Most batches that wait; 0 loads each when it is asked for.
    """

    def __init__(
        self, loader: "DataLoader[Pair]", load: Callable[[list[Pair], tuple[int, int, int]], Ready], ahead: int = 2
    ) -> None:
        self.loader, self.load, self.ahead = loader, load, ahead
        self._had = (-1, 0)  # epoch, and how many of its batches were handed out
        self._resumed = self._had

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        return len(self.loader)

    @property
    def sampler(self) -> "DistributedSampler[Pair]":
        """That of the loader, which is told the epoch."""
        sampler = self.loader.sampler
        assert isinstance(sampler, DistributedSampler)
        return sampler

    @property
    def dataset(self) -> PairDataset:
        """That of the loader."""
        dataset = self.loader.dataset
        assert isinstance(dataset, PairDataset)
        return dataset

    def __iter__(self) -> Iterator[Ready]:
        """The batches of an epoch. Nothing is loaded before the first is asked for, since the epoch is told late."""
        epoch, rank = self.sampler.epoch, self.sampler.rank
        start = self._resumed[1] if self._resumed[0] == epoch else 0
        self._resumed = (-1, 0)
        batches = islice(enumerate(self.loader), start, None)
        jobs: Iterator[tuple[Any, ...]] = ((batch, (epoch, rank, number)) for number, batch in batches)
        for number, ready in enumerate(self._ready(jobs), start + 1):
            self._had = (epoch, number)
            yield ready

    def state_dict(self) -> dict[str, int]:
        """Which epoch it is, and how many of its batches were handed out."""
        return {"epoch": self._had[0], "batches": self._had[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on behind these batches when the same epoch is asked for; other epochs are whole."""
        self._had = self._resumed = (state["epoch"], state["batches"])

    def _ready(self, jobs: Iterator[tuple[Any, ...]]) -> Iterator[Ready]:
        if not self.ahead:
            yield from (self.load(*job) for job in jobs)
            return
        waiting: deque[Future[Ready]] = deque()
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="features")
        try:
            for job in jobs:
                waiting.append(pool.submit(self.load, *job))
                if len(waiting) > self.ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
