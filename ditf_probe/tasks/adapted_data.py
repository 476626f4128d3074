"""The images of a training that adapts the backbone: read in every batch, and passed through it in every step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from ditf_probe.backbones.base import Backbone, TappedBlock
from ditf_probe.data.crops import View
from ditf_probe.data.pairs import ImageSource, Pair
from ditf_probe.features.bank import row_of
from ditf_probe.tasks.adapted import adapted_stream, check_adaptable
from ditf_probe.tasks.descriptors import Describer, Ends
from ditf_probe.tasks.models import make_stream
from ditf_probe.tasks.prompts import conditions_for
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.streams import Stream
from ditf_probe.tasks.training_batches import BatchReader, TrainingBatch, shown
from ditf_probe.tasks.training_data import TrainingData


@dataclass(frozen=True)
class ImageReader(BatchReader):
    """Reads the images of a batch of pairs in place of streams.

    Attributes:
        dataset: Where they are.
    """

    dataset: ImageSource | None = None

    def _read(self, pairs: list[Pair], draw: tuple[int, ...]) -> TrainingBatch:
        assert self.dataset is not None
        batch, prepare = super()._read(pairs, draw), self.stream.extractor.prepare
        names = dict.fromkeys(view.side.image_id for view in batch.views)
        images = {name: prepare(self.dataset.image(name)) for name in names}
        pinned = self.device.type == "cuda"
        return replace(batch, images={name: x.pin_memory() if pinned else x for name, x in images.items()})

    def _tapped(self, views: Sequence[View], blocks: Sequence[int]) -> dict[int, TappedBlock]:
        del views, blocks
        return {}  # until `passed`


class AdaptedData(TrainingData):
    """As `TrainingData`, for heads that have adapters inside the backbone: each passes images through its own.

    Args:
        features: How features are made; they are kept nowhere.
        crop: As in `TrainingData`.
        ahead: As in `TrainingData`.

    Raises:
        InputError: As in `TrainingData` and `check_adaptable`.
    """

    def __init__(self, features: BackboneFeatures, crop: float, ahead: int) -> None:
        check_adaptable(features)
        super().__init__(features, crop, ahead)
        self._describers: dict[str, Describer] = {}
        self._backbone: Backbone | None = None
        self._conditions: Callable[[list[str]], list[str] | None] | None = None

    def open(
        self,
        backbone: Backbone,
        blocks: Mapping[str, list[int]],
        heads: Mapping[str, nn.Module],
        losses: Mapping[str, nn.Module],
        dtype: torch.dtype,
    ) -> None:
        """Puts the adapters of every head into a backbone; computes nothing."""
        self._backbone, self._zero_shot = backbone, self._zero_shot_block(backbone, losses)
        own = {block for chosen in blocks.values() for block in chosen}
        every = sorted(own if self._zero_shot is None else own | {self._zero_shot})
        stream = make_stream(backbone, self.features, every)
        train, _ = self._checked(stream)
        self._conditions = conditions_for(train, self.features)
        reading = (self.crop, self._served_pairs.seed, torch.device(backbone.device), train)
        self._reader = ImageReader(stream, every, every, (), *reading)
        self._describer = Describer(stream, {}, (), dtype)
        for name, head in heads.items():
            passes = adapted_stream(backbone, head, self.features, blocks[name])
            self._describers[name] = Describer(passes, {name: blocks[name]}, (), dtype)

    def close(self) -> None:
        """As in `TrainingData`."""
        super().close()
        self._describers, self._backbone = {}, None

    def describe(self, batch: TrainingBatch, heads: Mapping[str, nn.Module]) -> dict[str, Ends]:
        """As in `TrainingData`; gradients reach the adapters."""
        found: dict[str, Ends] = {}
        for name, head in heads.items():
            describer = self._describers[name]
            found |= describer(self._passed(batch, describer.stream), {name: head})
        return found

    def zero_shot(self, batch: TrainingBatch) -> Ends | None:
        """As in `TrainingData`: the features of the frozen backbone."""
        if self._zero_shot is None:
            return None
        return super().zero_shot(self._passed(batch, self.stream))

    def validated(self, head: nn.Module, blocks: Sequence[int]) -> Stream:
        """The images of validation as the adapters of a head see them now."""
        assert self._backbone is not None
        stream = adapted_stream(self._backbone, head, self.features, blocks)
        stream.open(self._checked(stream)[1])
        return stream

    def _passed(self, batch: TrainingBatch, stream: Stream) -> TrainingBatch:
        """The batch with what a backbone makes of its images now."""
        conditions = self._conditions
        shapes: dict[torch.Size, list[str]] = {}
        for name, image in batch.images.items():
            shapes.setdefault(image.shape, []).append(name)
        rows: dict[str, dict[int, TappedBlock]] = {}
        for names in shapes.values():
            images = torch.stack([batch.images[name] for name in names])
            with torch.autocast(images.device.type, enabled=False):  # the backbone has a dtype of its own
                tapped = stream.extractor.tapped(images, names, None if conditions is None else conditions(names))
            for row, name in enumerate(names):
                rows[name] = {index: block.map(partial(row_of, row=row)) for index, block in tapped.items()}
        groups = []
        for group in batch.groups:
            views = [batch.views[number] for number in group.images]
            joined = {
                index: TappedBlock.join([shown(rows[view.side.image_id][index], view) for view in views], torch.cat)
                for index in stream.extractor.blocks
            }
            groups.append(replace(group, tapped=joined))
        return replace(batch, groups=groups)
