"""Images on their way to a backbone: decoded and prepared in workers, those of equal prepared size together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ditf_probe.data.pairs import ImageSource
from ditf_probe.errors import InputError

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
