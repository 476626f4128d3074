"""Images on their way to a backbone: decoded and prepared in workers, those of equal prepared size together."""

import heapq
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ditf_probe.data.pairs import ImageSource
from ditf_probe.errors import InputError

_MOST_WORKERS = 8
_EVEN = 1.05

Batch = tuple[ImageSource, list[str]]
"""Where the pixels are, and ids of images of one prepared size."""


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """A batch of prepared images, or what went wrong with it.

    Attributes:
        number: Which of the batches that were asked for.
        pixels: `(B, 3, h, w)` float32 in [0, 1].
        failure: The parts of an `InputError`, which a worker cannot raise with them.
    """

    number: int
    pixels: Tensor
    failure: tuple[str, str, str] | None = None

    def images(self) -> Tensor:
        """The pixels.

        Raises:
            InputError: An image could not be read.
        """
        if self.failure is not None:
            raise InputError(*self.failure)
        return self.pixels


class PreparedBatches(Dataset[PreparedBatch]):
    """Decodes and prepares whole batches, in the workers of a loader.

    Args:
        batches: What to load.
        prepare: From `(3, H, W)` uint8 to `(3, h, w)` float32, such as a `SizeRule`.
    """

    def __init__(self, batches: Sequence[Batch], prepare: Callable[[Tensor], Tensor]) -> None:
        self.batches, self.prepare = list(batches), prepare

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> PreparedBatch:
        source, ids = self.batches[number]
        try:
            return PreparedBatch(number, torch.stack([self.prepare(source.image(image_id)) for image_id in ids]))
        except InputError as error:
            return PreparedBatch(number, torch.empty(0), (error.argument, str(error.value), error.remedy))


def prepared_loader(
    batches: Sequence[Batch], prepare: Callable[[Tensor], Tensor], num_workers: int = 0
) -> DataLoader[PreparedBatch]:
    """A loader of `PreparedBatch`, in order; workers decode ahead.

    Args:
        batches: What this process loads. Other ranks have others: the loader is not to be divided again.
        prepare: As in `PreparedBatches`.
        num_workers: Processes that decode; 0 decodes in this one.
    """
    dataset = PreparedBatches(batches, prepare)
    # Lightning keeps a DistributedSampler that it finds. This one has a single rank, which takes everything.
    sampler: DistributedSampler[PreparedBatch] = DistributedSampler(dataset, 1, 0, shuffle=False)
    return DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=min(num_workers, len(batches)))


def default_workers(device: torch.device) -> int:
    """Processes that decode ahead of a model: none beside one on the CPU, else the cores that are left to each GPU.

    Args:
        device: Where the model computes.
    """
    if device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_WORKERS, cores // max(1, torch.cuda.device_count()) - 1))


def shares(batches: Sequence[list[str]], canvases: Mapping[str, tuple[int, int]], ranks: int) -> list[list[list[str]]]:
    """Divides batches among ranks, so that all have about as many pixels to compute.

    The largest go first, each to the rank that has least. As long as the busiest rank has over 5% and over one image
    more than the mean, its largest batch is halved: a few batches are not enough for many ranks.

    Args:
        batches: Image ids in batches of one prepared size.
        canvases: Image id to (height, width).
        ranks: How many.

    Returns:
        The batches of each rank, the same on whichever rank this is called, those of one size together.
    """
    sizes = {names[0]: canvases[names[0]][0] * canvases[names[0]][1] for names in batches}
    rest, mean = [list(names) for names in batches], sum(len(n) * sizes[n[0]] for n in batches) / ranks
    while True:
        divided: list[list[list[str]]] = [[] for _ in range(ranks)]
        loads = [(0, rank) for rank in range(ranks)]
        for names in sorted(rest, key=lambda names: -len(names) * sizes[names[0]]):  # stable: in the order given
            load, rank = heapq.heappop(loads)
            divided[rank].append(names)
            heapq.heappush(loads, (load + len(names) * sizes[names[0]], rank))
        most, busiest = max(loads)
        largest = max(divided[busiest], key=lambda names: len(names) * sizes[names[0]], default=[])
        if len(largest) < 2 or most <= max(_EVEN * mean, mean + sizes[largest[0]]):
            order = {id(names): number for number, names in enumerate(rest)}
            return [sorted(own, key=lambda names: order[id(names)]) for own in divided]
        place = next(i for i, names in enumerate(rest) if names is largest)
        middle = (len(largest) + 1) // 2
        sizes[largest[middle]] = sizes[largest[0]]
        rest[place : place + 1] = [largest[:middle], largest[middle:]]


def in_step(divided: Sequence[Sequence[list[str]]], rank: int) -> tuple[list[list[str]], list[int]]:
    """The share of a rank that must make as many passes of a model as all others.

    Args:
        divided: From `shares`.
        rank: Which.

    Returns:
        Batches, as many as any rank has, each with as many images as that of any rank, for which images are repeated;
        and how many of the images of each batch, from the first on, this rank really has to compute.
    """
    ordered = [sorted(own, key=len, reverse=True) for own in divided]
    batches, counts = [], []
    for step in range(max(map(len, ordered), default=0)):
        here = [own[step] for own in ordered if step < len(own)]
        own = ordered[rank][step] if step < len(ordered[rank]) else []
        length = max(map(len, here))
        batches.append(own + [(own or here[0])[0]] * (length - len(own)))
        counts.append(len(own))
    return batches, counts


def equal_size_batches(canvases: dict[str, tuple[int, int]], batch_size: int) -> list[list[str]]:
    """Image ids in batches of equal prepared size.

    Args:
        canvases: Image id to (height, width).
        batch_size: Most images per batch.
    """
    groups: dict[tuple[int, int], list[str]] = {}
    for image_id, canvas in canvases.items():
        groups.setdefault(canvas, []).append(image_id)
    return [ids[i : i + batch_size] for ids in groups.values() for i in range(0, len(ids), batch_size)]
