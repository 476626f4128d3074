"""Tapped streams of many images in memory, so that an image is computed once and not once per pair."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.data.pairs import ImageSource
from ditf_probe.devices import DTYPES
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.settings import SizeRule
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
        return sum(_nbytes(block) for blocks in self._blocks.values() for block in blocks.values())

    def estimate(self, canvases: Sequence[tuple[int, int]]) -> int:
        """Bytes that images of these prepared sizes (height, width) will take."""
        backbone, total = self.extractor.backbone, 0
        modulation = 3 * len(canvases) * torch.float32.itemsize
        for block in self.extractor.blocks:
            tokens = sum(height * width // backbone.stride_at(block) ** 2 for height, width in canvases)
            total += (tokens * self.dtype.itemsize + modulation) * backbone.channels_at(block)
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
        if ids is not None and all(image_id in self._blocks for image_id in ids):
            return
        sizes = dataset.image_sizes()
        missing = [i for i in dict.fromkeys(sizes if ids is None else ids) if i not in self._blocks]
        unknown = [i for i in missing if i not in sizes]
        if unknown:
            raise InputError("ids", unknown[0], f"name images of {dataset.name}")
        canvases = {i: self.extractor.transform(sizes[i]).canvas for i in missing}
        self._check_budget(list(canvases.values()))
        batches = equal_size_batches(canvases, batch_size)
        loader = DataLoader(
            _PreparedImages(dataset, self.extractor.size_rule),
            batch_sampler=batches,
            num_workers=min(num_workers, len(batches)),
            collate_fn=_collate,
        )
        with progress(f"features of {dataset.name}", len(missing)) as advance:
            for loaded in loader:
                names, images = _unwrap(loaded)
                condition = None if conditions is None else conditions(names)
                self._keep(names, self.extractor.tapped(images, names, condition))
                advance(len(names))

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
        for image_id in ids:
            if image_id not in self._blocks:
                raise InputError("ids", image_id, "is not in the bank, call fill first")
        found, device = {}, self.extractor.backbone.device
        for index in self.extractor.blocks:
            parts = [self._blocks[image_id][index] for image_id in ids]
            grids = {part.grid for part in parts}
            if len(grids) > 1:
                raise InputError("ids", sorted(grids), "these images have different grids, ask for them one by one")
            found[index] = TappedBlock.join(parts, torch.cat).map(lambda x: x.to(device))
        return found

    def calibrate(self, dataset: ImageSource, ids: Sequence[str] | None = None, **loading: Any) -> None:
        """Calibrates the extractor on images of a data set.

        Args:
            dataset: Calibration images; training images, never those of a test.
            ids: Which of them; all by default.
            **loading: As in `fill`: num_workers, batch_size.
        """
        names = list(dict.fromkeys(dataset.image_sizes() if ids is None else ids))
        self.fill(dataset, names, **loading)
        self.extractor.calibrate_tapped(self.tapped([name]) for name in names)

    def _check_budget(self, canvases: Sequence[tuple[int, int]]) -> None:
        needed = self.nbytes + self.estimate(canvases)
        if needed > self.budget:
            remedy = (
                f"{len(canvases)} images need {needed / GIBIBYTE:.2f} GiB in all: raise it, keep streams in bfloat16, "
                f"or use fewer blocks, fewer images or a smaller image_size"
            )
            raise InputError("budget_gib", round(self.budget / GIBIBYTE, 3), remedy)

    def _keep(self, names: Sequence[str], tapped: dict[int, TappedBlock]) -> None:
        kept = {index: self._stored(block) for index, block in tapped.items()}
        for row, name in enumerate(names):
            self._blocks[name] = {index: block.map(partial(_row, row=row)) for index, block in kept.items()}

    def _stored(self, block: TappedBlock) -> TappedBlock:
        stream = block.hidden_states.to("cpu", self.dtype)
        if not bool(stream.isfinite().all()):
            name = str(self.dtype).removeprefix("torch.")
            raise InputError("dtype", name, "streams are too large for it or not finite, use bfloat16 or float32")
        return replace(block.map(lambda x: x.to("cpu", torch.float32)), hidden_states=stream)


def _row(values: Tensor, row: int) -> Tensor:
    # A copy, because a slice would keep its whole batch alive.
    return values[row : row + 1].clone()


def _nbytes(block: TappedBlock) -> int:
    tensors = (block.hidden_states, block.shift, block.scale, block.gate)
    return sum(x.nbytes for x in tensors if x is not None)


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


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error on its way from a worker, which could not raise it with its three parts."""

    argument: str
    value: str
    remedy: str


class _PreparedImages(Dataset[tuple[str, Tensor] | _Failure]):
    """Decodes and prepares images by id, in the workers of a loader."""

    def __init__(self, dataset: ImageSource, rule: SizeRule) -> None:
        self.dataset = dataset
        self.rule = rule

    def __getitem__(self, image_id: Any) -> tuple[str, Tensor] | _Failure:
        try:
            return image_id, self.rule(self.dataset.image(image_id))
        except InputError as error:
            return _Failure(error.argument, str(error.value), error.remedy)


def _collate(items: list[tuple[str, Tensor] | _Failure]) -> tuple[list[str], Tensor] | _Failure:
    failure = next((item for item in items if isinstance(item, _Failure)), None)
    if failure is not None:
        return failure
    good = [item for item in items if not isinstance(item, _Failure)]
    return [name for name, _ in good], torch.stack([image for _, image in good])


def _unwrap(loaded: tuple[list[str], Tensor] | _Failure) -> tuple[list[str], Tensor]:
    if isinstance(loaded, _Failure):
        raise InputError(loaded.argument, loaded.value, loaded.remedy)
    return loaded
