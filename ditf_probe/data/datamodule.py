"""Lightning's view of the pair data sets: who trains, who validates, who is tested, on how many ranks."""

from collections.abc import Callable
from typing import Any, TypeVar

import lightning as L
import torch
from torch.utils.data import DataLoader, DistributedSampler

from ditf_probe.data.balanced import BalancedSampler
from ditf_probe.data.loading_ahead import LoadedAhead
from ditf_probe.data.pairs import Pair, PairDataset
from ditf_probe.data.per_category import PairsPerCategory
from ditf_probe.errors import InputError

PairLoader = DataLoader[Pair]  # torch types a loader by the elements of its data set; batches are lists of them
_Batch = TypeVar("_Batch")


class PairDataModule(L.LightningDataModule):
    """Serves batches `list[Pair]`: annotations without pixels, which a feature bank reads once per image.

    Every rank gets the same number of pairs: rank r of n takes every n-th pair from the r-th on, and
    the list is padded by repeating its beginning. Metrics count each pair index once, so the padding does not
    change a score. Training pairs are shuffled anew in each epoch, by `seed` and epoch alone.

    Args:
        train: Pairs to train on.
        val: Pairs to validate on while training.
        test: Pairs to evaluate, by the name that results carry. Loaders come in this order.
        calibration: Pairs whose images calibrate massive channels and position means; None for `train`.
        batch_size: Pairs per batch and rank.
        num_workers: Worker processes per loader; 0 is best for annotations that are cheap to make.
        seed: Order of the training pairs.
        balanced: Train on the categories in turns, so that each comes up as often as the others; see
            `BalancedSampler`.

    Raises:
        InputError: If `batch_size` or `num_workers` is out of range and, at `setup`, if a data set
            that the stage needs is missing or holds no pairs.
    """

    def __init__(
        self,
        train: PairDataset | None = None,
        val: PairDataset | None = None,
        test: dict[str, PairDataset] | None = None,
        calibration: PairDataset | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise InputError("batch_size", batch_size, "use at least 1")
        if num_workers < 0:
            raise InputError("num_workers", num_workers, "use 0 or more")
        self.train, self.val, self.test = train, val, dict(test or {})
        self._whole = dict(self.test)
        self.calibration = train if calibration is None else calibration
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.balanced = balanced
        self._completed: Callable[[PairLoader], LoadedAhead[Any]] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Checks that the data sets of the stage are there and hold pairs."""
        if stage == "fit":
            _require("train", self.train)
        if stage == "validate":
            _require("val", self.val)
        if stage in ("test", "predict") and not self.test:
            raise InputError("test", None, "name at least one data set of pairs")
        given: dict[str, PairDataset | None] = {}
        if stage in ("fit", "validate", None):
            given |= {"train": self.train, "val": self.val}
        if stage in ("test", "predict", None):
            given |= {f"test.{name}": dataset for name, dataset in self.test.items()}
        for argument, dataset in (given | {"calibration": self.calibration}).items():
            if dataset is not None:
                _require(argument, dataset)

    def limit_test(self, per_category: int, seed: int = 0) -> None:
        """Tests on at most so many pairs of each category of every test set; 0 tests on all of them again."""
        self.test = {
            name: PairsPerCategory(dataset, per_category, seed) if per_category else dataset
            for name, dataset in self._whole.items()
        }

    def complete_training_batches(self, completed: "Callable[[PairLoader], LoadedAhead[Any]] | None") -> None:
        """Serves training batches with what a task adds to them; None serves the pairs alone again."""
        self._completed = completed

    def train_dataloader(self) -> PairLoader | LoadedAhead[Any]:
        """Batches of training pairs, shuffled, with what `complete_training_batches` has asked for."""
        loader = self._loader(_require("train", self.train), shuffle=True)
        return loader if self._completed is None else self._completed(loader)

    def val_dataloader(self) -> PairLoader | list[PairLoader]:
        """Batches of validation pairs, in order; no loader without `val`."""
        return [] if self.val is None else self._loader(self.val)

    def test_dataloader(self) -> list[PairLoader]:
        """One loader per test set, in the order of `test`."""
        return [self._loader(dataset) for dataset in self.test.values()]

    def predict_dataloader(self) -> list[PairLoader]:
        """The same as for testing."""
        return self.test_dataloader()

    def transfer_batch_to_device(self, batch: _Batch, device: object, dataloader_idx: int) -> _Batch:
        """Leaves pairs where they are: annotations are used on the CPU, and frozen dataclasses cannot be moved."""
        del device, dataloader_idx
        return batch

    def _loader(self, dataset: PairDataset, shuffle: bool = False) -> PairLoader:
        # Lightning keeps a DistributedSampler that it finds and tells it the epoch.
        sampler: DistributedSampler[Pair]
        if shuffle and self.balanced:
            sampler = BalancedSampler(dataset, *self._ranks(), seed=self.seed)
        else:
            sampler = DistributedSampler(dataset, *self._ranks(), shuffle=shuffle, seed=self.seed)
        as_list: Callable[[list[Pair]], list[Pair]] = list
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=as_list,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            generator=torch.Generator(),  # seeds of workers are not drawn from that of the process, which trains
        )

    def _ranks(self) -> tuple[int, int]:
        """Number of ranks and the rank of this process; one process without a trainer."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)


def _require(argument: str, dataset: PairDataset | None) -> PairDataset:
    if dataset is None:
        raise InputError(argument, None, "give a data set of pairs")
    if not len(dataset):
        raise InputError(argument, f"{type(dataset).__name__} with 0 pairs", "give a data set with at least one pair")
    return dataset
