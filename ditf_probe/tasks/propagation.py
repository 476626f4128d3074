"""Labels of the first frame of a video, carried to the others by every row: video object segmentation."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditf_probe.data.frames import resize_short_side
from ditf_probe.data.masks import write_objects
from ditf_probe.data.videos import VideoDataModule, VideoDataset, VideoSequence
from ditf_probe.errors import InputError
from ditf_probe.matching.labels import hard_labels, soft_labels
from ditf_probe.matching.memory import LabelMemory, Propagation
from ditf_probe.tasks.image_rows import ImageRows
from ditf_probe.tasks.image_task import ImageTask
from ditf_probe.tasks.measured import MeasuredDataset, MeasuredRow, MeasuredRun
from ditf_probe.tasks.records import NO_BACKBONE
from ditf_probe.tasks.rows import Row
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.video_scores import PRIMARY, VideoScores, row_of_objects

DINO = Propagation()


class PropagationTask(ImageTask):
    """Compares rows by label propagation on data sets of videos.

    A frame is computed once for all rows of a backbone, and the maps of the first frame and the last few are all that
    is kept. Masks are written as `<run_dir>/<data set>/<row>/<sequence>/<frame>.png`, the first among them, in the
    format of the official evaluation. The row "same_position" copies the first mask: a video that hardly moves gives
    it a high score. Several backbones take turns once per sequence.

    Args:
        features: The backbone and its features; `blocks` is the one block of the zero-shot rows.
        rows: Which rows of that backbone, and which controls, in order.
        probe_folders: Trained probes of that backbone to compare.
        run_dir: Folder of everything that a run writes.
        others: Further zero-shot rows by name, each with a backbone of its own and one block.
        backbone_files: The same as YAML files; each row is called like its file.
        propagation: The protocol. Its `short_side` replaces the `image_size` of all features.

    Raises:
        InputError: As `ImageTask`.
    """

    together = False

    def __init__(
        self,
        features: BackboneFeatures,
        rows: Sequence[str] = ("raw", "adaln", "same_position"),
        probe_folders: Sequence[str] = (),
        run_dir: str = "runs/default",
        others: dict[str, BackboneFeatures] | None = None,
        backbone_files: Sequence[str] = (),
        propagation: Propagation = DINO,
    ) -> None:
        super().__init__(features, rows, probe_folders, run_dir, others, backbone_files)
        self.propagation = propagation
        if propagation.short_side is not None:
            self.features = replace(self.features, image_size=None)
            self.others = {name: replace(other, image_size=None) for name, other in self.others.items()}
        self.scores: list[VideoScores] = []
        self._by_backbone: list[ImageRows] = []

    @property
    def videos(self) -> VideoDataModule:
        """The data module of the trainer.

        Raises:
            InputError: The trainer was given another one, or bare loaders.
        """
        module = getattr(self.trainer, "datamodule", None)
        if not isinstance(module, VideoDataModule):
            raise InputError("datamodule", type(module).__name__, "give the trainer a VideoDataModule")
        return module

    def categories(self) -> dict[str, str]:
        """Every frame, as an "image": a video has no category."""
        sequences = (dataset[index] for dataset in self.videos.test.values() for index in range(len(dataset)))
        return {image_id: "image" for sequence in sequences for image_id in sequence.image_ids}

    def on_test_start(self) -> None:
        """Gets the rows ready, and a score sheet per data set."""
        super().on_test_start()
        self._by_backbone = self.image_rows.by_backbone()
        self.scores = [VideoScores([row.name for row in self._order()], self.device) for _ in self.videos.test]

    def test_step(self, batch: VideoSequence, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Carries the labels of one video with every row, writes the masks and scores them."""
        name, dataset = list(self.videos.test.items())[dataloader_idx]
        masks = {row.name: dataset.mask(batch.index, 0).expand(len(batch), -1, -1) for row in self._order()}
        for rows in self._by_backbone:
            masks |= self._propagate(rows, dataset, batch)
        for row, found in masks.items():
            for time, mask in enumerate(found):
                write_objects(self.mask_file(name, row, dataset, batch, time), mask.numpy())
        if batch.scored:
            truth = torch.stack([dataset.mask(batch.index, time) for time in range(len(batch))])
            for row, found in masks.items():
                self.scores[dataloader_idx].update(row, batch, found, truth)

    def on_test_epoch_end(self) -> None:
        """Gathers what all ranks found, once."""
        measured = []
        for (name, dataset), scores in zip(self.videos.test.items(), self.scores, strict=True):
            objects = scores.objects()
            rows = [self._measured(row, objects[row.name]) for row in self._order()]
            scored = sum(dataset[index].scored for index in range(len(dataset)))
            measured.append(MeasuredDataset(name, "sequence", scored, PRIMARY, rows, dataset.counts()))
        self.log_result(MeasuredRun(measured, self.settings()))

    def settings(self) -> dict[str, Any]:
        """Every setting of the last test that changes a number, as plain JSON values."""
        data = {name: video_settings(dataset) for name, dataset in self.videos.test.items()}
        return super().settings() | {"propagation": asdict(self.propagation), "data": data}

    def mask_file(self, name: str, row: str, dataset: VideoDataset, sequence: VideoSequence, time: int) -> Path:
        """Where the mask of a frame is written.

        Args:
            name: Of the data set in results.
            row: Name of the row; a slash in it becomes a dash.
            dataset: The data set.
            sequence: One of its sequences.
            time: Number of the frame.
        """
        frame = dataset.frame_name(sequence.index, time)
        return self.run_dir / name / row.replace("/", "-") / sequence.name / f"{frame}.png"

    def _order(self) -> list[Row]:
        """The rows of the table; controls last."""
        rows = [matcher.row for matcher in self.image_rows.matchers.values() if matcher.row.kind != "control"]
        return rows + [row for row in self.rows if row.kind == "control"]

    def _propagate(self, rows: ImageRows, dataset: VideoDataset, sequence: VideoSequence) -> dict[str, Tensor]:
        """Row name to `(T, H, W)` uint8 masks on the CPU, the given one first."""
        first = dataset.mask(sequence.index, 0)
        masks = {name: [first] for name in rows.matchers}
        memories: dict[str, LabelMemory] = {}
        for time, image_id in enumerate(sequence.image_ids):
            frame = self._resized(dataset.frame(sequence.index, time))
            for name, features in rows(frame[None], [image_id]).items():
                if not time:
                    given = soft_labels(first, sequence.num_objects, features.shape[2:], self.propagation.labels)
                    memories[name] = LabelMemory(self.propagation, features[0], given)
                    continue
                through = None
                if self.propagation.argmax_at == "input":
                    extractor = rows.matchers[name].stream.extractor
                    through = extractor.transform((frame.shape[1], frame.shape[2])).scaled
                labels = memories[name].step(features[0])
                mask = hard_labels(labels, sequence.size, through=through, norm_mask=self.propagation.norm_mask)
                masks[name].append(mask.cpu())
        return {name: torch.stack(found) for name, found in masks.items()}

    def _resized(self, frame: Tensor) -> Tensor:
        settings = self.propagation
        if settings.short_side is None:
            return frame
        return resize_short_side(frame, settings.short_side, settings.multiple)

    def _measured(self, row: Row, objects: Any) -> MeasuredRow:
        matcher = self.image_rows.matchers.get(row.name)
        if matcher is None:
            remarks = ("copy of the first mask",)
            return row_of_objects(row.name, row.kind, objects, notes=remarks, backbone=NO_BACKBONE)
        notes, parameters, backbone = matcher.note(), matcher.parameters, matcher.backbone
        return row_of_objects(row.name, row.kind, objects, parameters=parameters, notes=notes, backbone=backbone)


def video_settings(dataset: VideoDataset) -> dict[str, Any]:
    """What is known of a data set of videos: its class, counts and public plain attributes."""
    plain = {key: value for key, value in sorted(vars(dataset).items()) if not key.startswith("_")}
    facts = {key: value for key, value in plain.items() if isinstance(value, str | int | float | bool | None)}
    return {"class": f"{type(dataset).__module__}.{type(dataset).__qualname__}", **dataset.counts(), **facts}
