"""Lightning's view of data sets with masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ditf_probe.data.pairs import PairDataset
from ditf_probe.data.segmentation import MaskDataset, MaskedImage
from ditf_probe.errors import InputError

_Batch = TypeVar("_Batch")


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image with its classes, decoded.

    Attributes:
        image: What it is.
        pixels: `(3, H, W)` uint8 RGB; None where they were not asked for.
        mask: `(H, W)` uint8 classes.
    """

    image: MaskedImage
    pixels: Tensor | None
    mask: Tensor


def by_size(batch: Sequence[LoadedImage]) -> list[list[LoadedImage]]:
    """The images of a batch in groups of one size, which can share a pass."""
    groups: dict[tuple[int, int], list[LoadedImage]] = {}
    for loaded in batch:
        groups.setdefault(loaded.image.size, []).append(loaded)
    return list(groups.values())


def stacked_pixels(group: Sequence[LoadedImage]) -> Tensor:
    """`(B, 3, H, W)` uint8 RGB of images of one size."""
    return torch.stack([loaded.pixels for loaded in group if loaded.pixels is not None])


class MaskModule(L.LightningDataModule):
    """Serves batches `list[LoadedImage]`; every rank gets the same number, padded, and metrics count each image once.

    Args:
        train: Images to train heads on.
        val: Images to validate on while training.
        test: Images to evaluate, by the name that results carry.
        calibration: Pairs whose images calibrate massive channels and position means; None where no row needs it.
        batch_size: Images per batch and rank.
        num_workers: Processes that decode.
        seed: Order of the training images.

    Attributes:
        train_pixels: Whether batches of training and validation hold pixels; a task whose features are kept sets it to
            False.

    Raises:
        InputError: A number is out of range and, at `setup`, a data set of the stage is missing or empty, or their
            classes differ.
    """

    def __init__(
        self,
        train: MaskDataset | None = None,
        val: MaskDataset | None = None,
        test: dict[str, MaskDataset] | None = None,
        calibration: PairDataset | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError("batch_size", batch_size, "use at least 1")
        if num_workers < 0:
            raise InputError("num_workers", num_workers, "use 0 or more")
        self.train, self.val, self.test = train, val, dict(test or {})
        self.calibration = calibration
        self.train_pixels = True
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    @property
    def sets(self) -> dict[str, MaskDataset]:
        """Every data set by the argument that named it."""
        named = {"train": self.train, "val": self.val} | {f"test.{name}": found for name, found in self.test.items()}
        return {name: dataset for name, dataset in named.items() if dataset is not None}

    def setup(self, stage: str | None = None) -> None:
        """Checks that the data sets of the stage are there, hold images and have the same classes."""
        needed = {"fit": ("train", "val"), "validate": ("val",)}.get(stage or "", ())
        for name in needed:
            if name not in self.sets:
                raise InputError(name, None, "give a data set of images with masks")
        if stage == "test" and not self.test:
            raise InputError("test", None, "name at least one data set of images with masks")
        classes = {dataset.class_names for dataset in self.sets.values()}
        if len(classes) > 1:
            raise InputError("data", sorted(self.sets), "their classes differ, use data sets of the same classes")
        for name, dataset in self.sets.items():
            if not len(dataset):
                raise InputError(name, f"{type(dataset).__name__} with 0 images", "give at least one")

    def train_dataloader(self) -> DataLoader[LoadedImage]:
        """Batches of training images, shuffled."""
        assert self.train is not None
        return self._loader(self.train, self.train_pixels, shuffle=True)

    def val_dataloader(self) -> DataLoader[LoadedImage]:
        """Batches of validation images, in order."""
        assert self.val is not None
        return self._loader(self.val, self.train_pixels)

    def test_dataloader(self) -> list[DataLoader[LoadedImage]]:
        """One loader per test set, in the order of `test`."""
        return [self._loader(dataset) for dataset in self.test.values()]

    def transfer_batch_to_device(self, batch: _Batch, device: object, dataloader_idx: int) -> _Batch:
        """Leaves images where they are: they are prepared on the CPU."""
        del device, dataloader_idx
        return batch

    def _loader(self, dataset: MaskDataset, pixels: bool = True, shuffle: bool = False) -> DataLoader[LoadedImage]:
        ranks = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        # Lightning keeps a DistributedSampler that it finds and tells it the epoch.
        sampler: DistributedSampler[Any] = DistributedSampler(dataset, *ranks, shuffle=shuffle, seed=self.seed)
        as_list: Callable[[list[LoadedImage]], list[LoadedImage]] = list
        return DataLoader(
            _Decoded(dataset, pixels),
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=as_list,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class _Decoded(Dataset[LoadedImage]):
    """Decodes images and masks, in the workers of a loader."""

    def __init__(self, dataset: MaskDataset, pixels: bool) -> None:
        self.dataset, self.pixels = dataset, pixels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> LoadedImage:
        image = self.dataset[index]
        return LoadedImage(image, self.dataset.image(image.image_id) if self.pixels else None, self.dataset.mask(index))
