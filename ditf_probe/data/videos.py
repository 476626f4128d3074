"""Video sequences with object masks, and how Lightning serves them: one sequence per step, none on two ranks."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ditf_probe.data.pairs import PairDataset
from ditf_probe.errors import InputError

_Batch = TypeVar("_Batch")


@dataclass(frozen=True, slots=True)
class VideoSequence:
    """One video, without its pixels.

    Attributes:
        index: Position in the data set; metrics count each index once.
        name: Name of the sequence.
        size: Height and width of every frame and mask, in pixels.
        image_ids: One per frame, in order of time; equal ids mean equal pixels.
        annotated: Per frame whether there is a mask; there always is one of the first.
        num_objects: Objects of the first mask; they are numbered from 1, and 0 is the background.
    """

    index: int
    name: str
    size: tuple[int, int]
    image_ids: tuple[str, ...]
    annotated: tuple[bool, ...]
    num_objects: int

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def scored(self) -> bool:
        """Whether every frame has a mask, so that what was propagated can be compared."""
        return all(self.annotated)


class VideoDataset(Dataset[VideoSequence], ABC):
    """A list of video sequences; pixels are read frame by frame.

    Attributes:
        name: Key of the data set in results.
        problems: What was left out because it is damaged, where the data set was told to keep going.
    """

    name: str
    problems: tuple[InputError, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> VideoSequence:
        """One sequence, without pixels. Raises IndexError past the end."""

    @abstractmethod
    def frame(self, index: int, time: int) -> Tensor:
        """The pixels of frame `time` of sequence `index`: `(3, H, W)` uint8 RGB."""

    @abstractmethod
    def mask(self, index: int, time: int) -> Tensor:
        """The objects of a frame that has a mask: `(H, W)` uint8, 0 the background, objects from 1."""

    @abstractmethod
    def frame_name(self, index: int, time: int) -> str:
        """What the files of a frame are called, without their ending; results are written under this name."""

    def files(self) -> tuple[Path, ...]:
        """Files of all frames and masks, each once; empty where there are none."""
        return ()

    def counts(self) -> dict[str, int]:
        """How many sequences, frames, masks and objects there are, for reports."""
        sequences = [self[index] for index in range(len(self))]
        return {
            "sequences": len(sequences),
            "frames": sum(map(len, sequences)),
            "masks": sum(sum(sequence.annotated) for sequence in sequences),
            "objects": sum(sequence.num_objects for sequence in sequences),
        }


class VideoDataModule(L.LightningDataModule):
    """Serves one `VideoSequence` per step, without pixels.

    Rank r of n takes every n-th sequence from the r-th on. Where they do not divide evenly, the list is padded by
    repeating its beginning, so that all ranks take equally many steps; metrics count each index once.

    Args:
        test: Data sets to evaluate, by the name that results carry. Loaders come in this order.
        calibration: Pairs whose images calibrate massive channels and position means, for the rows that need it.

    Raises:
        InputError: At `setup`, if there is no data set or one has no sequence.
    """

    def __init__(self, test: dict[str, VideoDataset], calibration: PairDataset | None = None) -> None:
        super().__init__()
        self.test, self.calibration = dict(test), calibration

    def setup(self, stage: str | None = None) -> None:
        """Checks that there is something to evaluate."""
        if not self.test:
            raise InputError("test", None, "name at least one data set of videos")
        for name, dataset in self.test.items():
            if not len(dataset):
                kind = type(dataset).__name__
                raise InputError(f"test.{name}", f"{kind} with 0 sequences", "give a data set with at least one")

    def test_dataloader(self) -> list[DataLoader[VideoSequence]]:
        """One loader per data set, in the order of `test`."""
        return [self._loader(dataset) for dataset in self.test.values()]

    def transfer_batch_to_device(self, batch: _Batch, device: object, dataloader_idx: int) -> _Batch:
        """Leaves sequences where they are: there are no pixels in them."""
        del device, dataloader_idx
        return batch

    def _loader(self, dataset: VideoDataset) -> DataLoader[VideoSequence]:
        ranks = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler: DistributedSampler[VideoSequence] = DistributedSampler(dataset, *ranks, shuffle=False)
        first: Callable[[list[Any]], Any] = _only
        return DataLoader(dataset, batch_size=1, sampler=sampler, collate_fn=first)


def _only(batch: list[VideoSequence]) -> VideoSequence:
    return batch[0]
