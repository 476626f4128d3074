"""What a sequence of a plane is: a reference image, further images, and the homographies between them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ditf_probe.data.pairs import PairDataset
from ditf_probe.errors import InputError

Change = Literal["viewpoint", "illumination"]


@dataclass(frozen=True, slots=True)
class PlanarImage:
    """One image of a sequence.

    Attributes:
        image_id: Identifies the picture; equal ids mean equal pixels.
        size: Height and width.
    """

    image_id: str
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PlanarPair:
    """The reference of a sequence with one further image.

    Attributes:
        index: Position among the pairs of the data set; metrics count each index once.
        target: The further image.
        homography: `(3, 3)` float64; takes homogeneous (x, y, 1) in pixels of the reference to those of the target,
            where (0, 0) is the centre of the top-left pixel.
    """

    index: int
    target: PlanarImage
    homography: Tensor


@dataclass(frozen=True, slots=True)
class PlanarSequence:
    """Images of one plane.

    Attributes:
        name: Name of the sequence, the sampling unit.
        change: What differs between its images.
        reference: The image that every pair begins with.
        pairs: The pairs.
    """

    name: str
    change: Change
    reference: PlanarImage
    pairs: tuple[PlanarPair, ...]


class PlanarDataset(Dataset[PlanarSequence], ABC):
    """A list of sequences. Annotations and pixels are apart, so that an image is decoded when it is needed.

    Attributes:
        name: Key of the data set in results.
        unit: What the sampling units are, in words.
        problems: Records that were left out because they are damaged, where the data set was told to keep going.
    """

    name: str
    unit: str = "sequence"
    problems: tuple[InputError, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> PlanarSequence:
        """The annotations of one sequence, without pixels. Raises IndexError past the end."""

    @abstractmethod
    def image(self, image_id: str) -> Tensor:
        """The pixels of an image: `(3, H, W)` uint8 RGB."""

    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The image files of the sequences, each once."""

    def image_ids(self) -> list[str]:
        """Every image of the sequences once, in order."""
        return [
            image.image_id
            for sequence in (self[index] for index in range(len(self)))
            for image in (sequence.reference, *(pair.target for pair in sequence.pairs))
        ]

    def settings(self) -> dict[str, Any]:
        """What is known of the data set that changes a number, as plain JSON values."""
        plain = {name: value for name, value in vars(self).items() if isinstance(value, str | int | float | bool)}
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", **self.counts(), **plain}

    def counts(self) -> dict[str, int]:
        """How many sequences of each change, pairs and images there are, for reports."""
        sequences = [self[index] for index in range(len(self))]
        changes = [sequence.change for sequence in sequences]
        return {
            "sequences": len(sequences),
            "viewpoint": changes.count("viewpoint"),
            "illumination": changes.count("illumination"),
            "pairs": sum(len(sequence.pairs) for sequence in sequences),
            "images": len(self.image_ids()),
        }


class PlanarDataModule(L.LightningDataModule):
    """Serves batches of one `PlanarSequence`, so that the reference of a sequence is computed once for all its pairs.

    Rank r of n takes every n-th sequence from the r-th on, and the list is padded by repeating its beginning. Metrics
    count each pair index once, so the padding does not change a score.

    Args:
        test: Sequences to evaluate, by the name that results carry.
        calibration: Pairs whose images calibrate massive channels and position means, for rows that need it.

    Raises:
        InputError: At `setup`, if there is no data set or one is empty.
    """

    def __init__(self, test: dict[str, PlanarDataset], calibration: PairDataset | None = None) -> None:
        super().__init__()
        self.test, self.calibration = dict(test), calibration

    def setup(self, stage: str | None = None) -> None:
        """Checks that there are sequences."""
        del stage
        if not self.test:
            raise InputError("test", None, "name at least one data set of sequences")
        for name, dataset in self.test.items():
            if not len(dataset):
                raise InputError(f"test.{name}", "no sequences", "give a data set with at least one sequence")

    def test_dataloader(self) -> list[DataLoader[PlanarSequence]]:
        """One loader per data set, in the order of `test`."""
        ranks = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        as_list: Callable[[list[PlanarSequence]], list[PlanarSequence]] = list
        return [
            DataLoader(
                dataset, batch_size=1, sampler=DistributedSampler(dataset, *ranks, shuffle=False), collate_fn=as_list
            )
            for dataset in self.test.values()
        ]

    def transfer_batch_to_device(
        self, batch: list[PlanarSequence], device: object, dataloader_idx: int
    ) -> list[PlanarSequence]:
        """Leaves sequences where they are: annotations are used on the CPU."""
        del device, dataloader_idx
        return batch
