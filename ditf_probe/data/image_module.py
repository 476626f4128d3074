"""Lightning's view of images without a task: whose features are to be extracted."""

from collections.abc import Callable
from typing import Any, TypeVar

import lightning as L
from torch.utils.data import DataLoader

from ditf_probe.data.pairs import PairDataset
from ditf_probe.data.photo_folder import PhotoFolder
from ditf_probe.data.segmentation import MaskDataset
from ditf_probe.errors import InputError

_Batch = TypeVar("_Batch")


class ImageModule(L.LightningDataModule):
    """Names the images of an extraction. Which of them are loaded, and how they are prepared, the task says.

    Args:
        sources: Data sets whose images are meant, by any name.

    Attributes:
        loaders: Set by the task: makes the loaders of this rank.

    Raises:
        InputError: There is no data set.
    """

    def __init__(self, sources: dict[str, PairDataset | MaskDataset | PhotoFolder]) -> None:
        super().__init__()
        if not sources:
            raise InputError("sources", {}, "name at least one data set")
        # A rank may have nothing left to do, or the whole run.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.sources = dict(sources)
        self.loaders: Callable[[], list[DataLoader[Any]]] | None = None

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """The loaders that the task makes.

        Raises:
            InputError: The task makes none.
        """
        if self.loaders is None:
            raise InputError("data", type(self).__name__, "is for eval.py predict with ExtractionTask")
        return self.loaders()

    def transfer_batch_to_device(self, batch: _Batch, device: object, dataloader_idx: int) -> _Batch:
        """Leaves images where they are: the backbone takes them to its device."""
        del device, dataloader_idx
        return batch
