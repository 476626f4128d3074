"""Tapped streams of many images in memory, so that an image is computed once and not once per pair."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.data.pairs import ImageSource
from ditf_probe.devices import DTYPES
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.fetching import fetch
from ditf_probe.features.loading import equal_size_batches, prepared_loader
from ditf_probe.features.settings import Modulate
from ditf_probe.progress import progress

GIBIBYTE = 2**30


class FeatureBank:
    """What an extractor taps, per image id, in CPU memory. Ids must mean the same pixels in every data set.

    Args:
        extractor: Runs the backbone on images that are not in the bank yet.
        dtype: Dtype of the kept streams: "float32", "bfloat16" or "float16". Shift, scale and gate stay float32.
        budget_gib: Most memory that the streams may take, in GiB.

    Raises:
        InputError: Unknown dtype, or a budget that is not positive.
    """

    def __init__(self, extractor: FeatureExtractor, *, dtype: str = "float32", budget_gib: float = 4.0) -> None:
        if dtype not in DTYPES:
            raise InputError("dtype", dtype, f"use one of {', '.join(DTYPES)}")
        if not budget_gib > 0:
            raise InputError("budget_gib", budget_gib, "use a positive number")
        self.extractor = extractor
        self.dtype = DTYPES[dtype]
        self.budget = int(budget_gib * GIBIBYTE)
        self._blocks: dict[str, dict[int, TappedBlock]] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._blocks

    @property
    def nbytes(self) -> int:
        """Bytes that the bank holds."""
        return sum(nbytes_of(block) for blocks in self._blocks.values() for block in blocks.values())

    def estimate(self, canvases: Sequence[tuple[int, int]]) -> int:
        """Bytes that images of these prepared sizes (height, width) will take."""
        backbone, total = self.extractor.backbone, 0
        modulation = 3 * len(canvases) * torch.float32.itemsize
        for block in self.extractor.blocks:
            tokens = sum(height * width // backbone.stride_at(block) ** 2 for height, width in canvases)
            total += tokens * self.dtype.itemsize * self._width(block) + modulation * backbone.channels_at(block)
        return total * len(self.extractor.timesteps)

    def fill(
        self,
        dataset: ImageSource,
        ids: Sequence[str] | None = None,
        *,
        num_workers: int = 0,
        batch_size: int = 16,
        conditions: Callable[[list[str]], Any] | None = None,
    ) -> None:
        """Computes the images that are not in the bank yet, those of equal prepared size together.

        Args:
            dataset: Where the pixels are.
            ids: Images to compute; all by default.
            num_workers: Processes that decode and prepare.
            batch_size: Images per call of the backbone.
            conditions: From the ids of a batch to its conditions; None is the null condition.

        Raises:
            InputError: The streams would not fit the budget (before anything is computed), or an unreadable image.
        """
        missing = self.plan(dataset, ids, conditions)
        batches = equal_size_batches(missing, batch_size)
        loader = prepared_loader([(dataset, names) for names in batches], self.extractor.size_rule, num_workers)
        with progress(f"features of {dataset.name}", len(missing)) as advance:
            for loaded in loader:
                names = batches[loaded.number]
                condition = None if conditions is None else conditions(names)
                self.keep(names, self.extractor.tapped(loaded.images(), names, condition))
                advance(len(names))

    def plan(
        self,
        dataset: ImageSource,
        ids: Sequence[str] | None = None,
        conditions: Callable[[list[str]], Any] | None = None,
    ) -> dict[str, tuple[int, int]]:
        """What `fill` would compute, refused where there is no room for it.

        Args:
            dataset: As in `fill`.
            ids: As in `fill`.
            conditions: As in `fill`.

        Returns:
            Ids of images that are not in the bank, each with its prepared size (height, width).

        Raises:
            InputError: An id that the data set does not have, or the streams would not fit the budget.
        """
        if ids is not None and all(image_id in self._blocks for image_id in ids):
            return {}
        sizes = dataset.image_sizes()
        missing = [i for i in dict.fromkeys(sizes if ids is None else ids) if i not in self._blocks]
        canvases = self._canvases(dataset.name, missing, sizes)
        self._check_budget(list(canvases.values()))
        return canvases

    def keep(self, names: Sequence[str], tapped: dict[int, TappedBlock]) -> None:
        """Takes the tapped blocks of a batch of images in.

        Raises:
            InputError: Streams are not finite, or too large for the dtype.
        """
        kept = fetch(tapped, self.dtype)()
        for row, name in enumerate(names):
            self._blocks[name] = {index: block.map(partial(row_of, row=row)) for index, block in kept.items()}

    def tapped(self, ids: Sequence[str]) -> dict[int, TappedBlock]:
        """The tapped blocks of some images as a batch on the backbone's device, for `extractor.features`.

        Args:
            ids: Images of one grid; an id may come several times.

        Returns:
            Block index to the stacked streams and modulations, in the order of `ids`.

        Raises:
            InputError: No ids, one that is not in the bank, or grids that differ.
        """
        if not ids:
            raise InputError("ids", list(ids), "name at least one image")
        entries = [self._entry(image_id) for image_id in ids]
        found, device = {}, self.extractor.backbone.device
        for index in self.extractor.blocks:
            # To the device first, so that CPU memory holds no copy of a batch.
            parts = [self._whole(index, entry[index].map(lambda x: x.to(device))) for entry in entries]
            grids = {part.grid for part in parts}
            if len(grids) > 1:
                raise InputError("ids", sorted(grids), "these images have different grids, ask for them one by one")
            found[index] = TappedBlock.join(parts, _joined)
        return found

    def entry(self, image_id: str, block: int) -> TappedBlock:
        """A tapped block of one image: `(1, ...)` in CPU memory, to read and not to change.

        Raises:
            InputError: It is not in the bank.
        """
        return self._whole(block, self._entry(image_id)[block])

    def calibrate(
        self,
        dataset: ImageSource,
        ids: Sequence[str] | None = None,
        *,
        modulations: Collection[Modulate] = (),
        **loading: Any,
    ) -> None:
        """Calibrates the extractor on images of a data set.

        Args:
            dataset: Calibration images; training images, never those of a test.
            ids: Which of them; all by default.
            modulations: As in `FeatureExtractor.calibrate`.
            **loading: As in `fill`: num_workers, batch_size.
        """
        names = list(dict.fromkeys(dataset.image_sizes() if ids is None else ids))
        self.fill(dataset, names, **loading)
        self.extractor.calibrate_tapped((self.tapped([name]) for name in names), modulations)

    def _check_budget(self, canvases: Sequence[tuple[int, int]]) -> None:
        needed = self.nbytes + self.estimate(canvases)
        if needed > self.budget:
            remedy = (
                f"{len(canvases)} images need {needed / GIBIBYTE:.2f} GiB in all: raise it, keep streams in bfloat16, "
                f"or use fewer blocks, fewer images or a smaller image_size"
            )
            raise InputError("budget_gib", round(self.budget / GIBIBYTE, 3), remedy)

    def _width(self, block: int) -> int:
        """Numbers that are kept of a token."""
        return self.extractor.backbone.channels_at(block)

    def _whole(self, index: int, block: TappedBlock) -> TappedBlock:
        """A block with its stream, from what is kept of it."""
        del index
        return block

    def _entry(self, image_id: str) -> dict[int, TappedBlock]:
        if image_id not in self._blocks:
            raise InputError("ids", image_id, "is not in the bank, call fill first")
        return self._blocks[image_id]

    def _canvases(
        self, name: str, ids: Sequence[str], sizes: Mapping[str, tuple[int, int]]
    ) -> dict[str, tuple[int, int]]:
        unknown = [i for i in ids if i not in sizes]
        if unknown:
            raise InputError("ids", unknown[0], f"name images of {name}")
        return {i: self.extractor.transform(sizes[i]).canvas for i in ids}


def row_of(values: Tensor, row: int) -> Tensor:
    """One row `(1, ...)` of a batch; a copy, because a slice would keep its whole batch alive."""
    return values[row : row + 1].clone()


def _joined(parts: list[Tensor]) -> Tensor:
    # One image is not copied: it may be a view of mapped memory.
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def nbytes_of(block: TappedBlock) -> int:
    """Bytes of the tensors of a block."""
    tensors = (block.hidden_states, block.shift, block.scale, block.gate)
    return sum(x.nbytes for x in tensors if x is not None)
