"""The images of a training: computed once each, read ahead, made into descriptors."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.checks import check_blocks
from ditf_probe.data.datamodule import PairDataModule, PairLoader
from ditf_probe.data.loading_ahead import LoadedAhead
from ditf_probe.data.pairs import Pair, PairDataset
from ditf_probe.errors import InputError
from ditf_probe.tasks.descriptors import Describer, Ends, cells_suffice
from ditf_probe.tasks.models import make_stream
from ditf_probe.tasks.settings import BackboneFeatures, dataset_settings
from ditf_probe.tasks.streams import Stream
from ditf_probe.tasks.training_batches import BatchReader, TrainingBatch


class TrainingData:
    """Serves batches with the streams that the heads of a training need.

    Args:
        features: How features are made.
        crop: Least share of the height and width of a map that random crops keep; 1 crops nothing.
        ahead: Batches that are read while one is worked on.

    Raises:
        InputError: A number out of range, or crops with a debias by position.
    """

    def __init__(self, features: BackboneFeatures, crop: float, ahead: int) -> None:
        if not 0 < crop <= 1:
            raise InputError("crop", crop, "give a share above 0, at most 1")
        if crop < 1 and features.position_debias != "none":
            debias = features.position_debias
            remedy = f"a crop has positions of its own, leave it out or position_debias ({debias})"
            raise InputError("crop", crop, remedy)
        if ahead < 0:
            raise InputError("batches_ahead", ahead, "give a number of batches, 0 or more")
        self.features, self.crop, self.ahead = features, crop, ahead
        self._pairs: PairDataModule | None = None
        self._loader: LoadedAhead[TrainingBatch] | None = None
        self._state: dict[str, int] | None = None
        self._reader: BatchReader | None = None
        self._describer: Describer | None = None
        self._zero_shot: int | None = None

    def serve(self, pairs: PairDataModule) -> None:
        """Has the training loader of a data module serve `TrainingBatch`.

        Lightning asks for the loader before there are images, and for batches after `open`.
        """
        self._pairs = pairs
        pairs.complete_training_batches(self._served)

    @property
    def stream(self) -> Stream:
        """Where the images are, once it is open."""
        assert self._reader is not None
        return self._reader.stream

    @property
    def is_open(self) -> bool:
        """Whether there are images."""
        return self._reader is not None

    def open(
        self,
        backbone: Backbone,
        blocks: Mapping[str, list[int]],
        heads: Mapping[str, nn.Module],
        losses: Mapping[str, nn.Module],
        dtype: torch.dtype,
    ) -> None:
        """Computes the images of training and validation that are nowhere yet.

        Args:
            backbone: Of the features.
            blocks: Name of each head to its blocks.
            heads: Name to head.
            losses: Name to the loss of the head; its attribute `needs` says what is read, see `cells_suffice`. With
                "zero_shot" among it also the features that the zero-shot row matches.
            dtype: In which features are handed to heads.

        Raises:
            InputError: There are no validation pairs, an image cannot be computed, or maps would cover a letterbox.
        """
        strides = {name: [backbone.stride_at(block) for block in blocks[name]] for name in heads}
        by_cells = {name for name in heads if cells_suffice(heads[name], losses[name], self.features, strides[name])}
        mapped = {block for name in heads.keys() - by_cells for block in blocks[name]}
        celled = {block for name in by_cells for block in blocks[name]}
        self._zero_shot = self._zero_shot_block(backbone, losses)
        mapped |= set() if self._zero_shot is None else {self._zero_shot}
        every = sorted(mapped | celled)
        stream = self._opened(make_stream(backbone, self.features, every))
        reading = (self.crop, self._served_pairs.seed, torch.device(backbone.device))
        self._reader = BatchReader(stream, every, sorted(mapped), sorted(celled), *reading)
        self._describer = Describer(stream, blocks, by_cells, dtype)

    def close(self) -> None:
        """Forgets the images; the data module serves pairs alone again."""
        self._reader = self._describer = None
        self._served_pairs.complete_training_batches(None)

    def describe(self, batch: TrainingBatch, heads: Mapping[str, nn.Module]) -> dict[str, Ends]:
        """The descriptor maps of every head; see `Describer`."""
        assert self._describer is not None
        return self._describer(batch, heads)

    def validated(self, head: nn.Module, blocks: Sequence[int]) -> Stream:
        """The stream of a head, with the images of validation."""
        del head, blocks
        return self.stream

    def zero_shot(self, batch: TrainingBatch) -> Ends | None:
        """The features that losses look at beside the descriptors; None where none does."""
        assert self._describer is not None
        return None if self._zero_shot is None else self._describer.zero_shot(batch, self._zero_shot)

    def state(self) -> dict[str, int]:
        """How far the training has come in its epoch, for a checkpoint."""
        return {} if self._loader is None else self._loader.state_dict()

    def resume(self, state: dict[str, int]) -> None:
        """Goes on from a `state`, when the training loader is next asked for.

        Lightning would have the loader do so, but not where an optimizer asks how long the training is.
        """
        self._state = state

    def facts(self, trainer: L.Trainer) -> dict[str, Any]:
        """How far a training has come, on what, and how that is sampled, as plain JSON values."""
        pairs = self._served_pairs
        return {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "precision": str(trainer.precision),
            "train": dataset_settings(pairs.train),
            "val": dataset_settings(pairs.val),
            "batch_size": pairs.batch_size,
            "balanced": pairs.balanced,
            "data_seed": pairs.seed,
            "crop": self.crop,
        }

    def _zero_shot_block(self, backbone: Backbone, losses: Mapping[str, nn.Module]) -> int | None:
        """The block whose features any loss looks at beside the descriptors."""
        asked = any("zero_shot" in getattr(loss, "needs", ()) for loss in losses.values())
        return check_blocks(self.features.blocks, backbone.num_blocks)[0] if asked else None

    def _opened(self, stream: Stream) -> Stream:
        """The same stream with every image of training and validation."""
        datasets = self._checked(stream)
        if self.features.needs_calibration:
            stream.calibrate(self._served_pairs.calibration)
        for dataset in datasets:
            stream.open(dataset)
        return stream

    def _checked(self, stream: Stream) -> tuple[PairDataset, PairDataset]:
        """The pairs of training and validation.

        Raises:
            InputError: There are none, or maps would cover a letterbox.
        """
        pairs, rule = self._served_pairs, stream.extractor.size_rule
        if rule.whole_canvas:
            raise InputError("resize", rule.resize, "train with pad or pad_end, whose padding can be cut off")
        if pairs.train is None or pairs.val is None:
            raise InputError("val", None, "give validation pairs, the best weights are chosen by them")
        return pairs.train, pairs.val

    @property
    def _served_pairs(self) -> PairDataModule:
        assert self._pairs is not None
        return self._pairs

    def _served(self, loader: PairLoader) -> LoadedAhead[TrainingBatch]:
        self._loader = LoadedAhead(loader, self._read, self.ahead)
        if self._state:
            self._loader.load_state_dict(self._state)
            self._state = None
        return self._loader

    def _read(self, pairs: list[Pair], draw: tuple[int, int, int]) -> TrainingBatch:
        assert self._reader is not None
        return self._reader(pairs, draw)
