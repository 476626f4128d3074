"""What tasks over single images share: the backbones, the rows, and who is calibrated on what."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L

from ditf_probe.backbones.base import Backbone
from ditf_probe.data.pairs import PairDataset
from ditf_probe.errors import InputError
from ditf_probe.files import ensure_writable
from ditf_probe.tasks.backbone_files import read_backbones
from ditf_probe.tasks.held_probes import HeldProbe, check_backbone, held_probes
from ditf_probe.tasks.image_rows import ImageRows
from ditf_probe.tasks.measured import MeasuredRun
from ditf_probe.tasks.models import Models
from ditf_probe.tasks.planning import calibrate, plan, requested
from ditf_probe.tasks.prompts import encode_image_prompts
from ditf_probe.tasks.records import frozen_words
from ditf_probe.tasks.rows import check_names, chosen_rows, probe_names
from ditf_probe.tasks.settings import BackboneFeatures, dataset_settings, versions


class ImageTask(L.LightningModule):
    """Compares rows whose features are computed image by image; a subclass says what is done with them.

    Where rows take turns at every image, the backbones of all rows stand in memory together; a subclass that lets one
    backbone go through all images before the next sets `together` to False.

    Args:
        features: The backbone and its features; `blocks` is the one block of the zero-shot rows.
        rows: Which rows of that backbone, and which controls, in order.
        probe_folders: Trained probes of that backbone to compare.
        run_dir: Folder of everything that a run writes.
        others: Further zero-shot rows by name, each with a backbone of its own and one block.
        backbone_files: The same as YAML files; each row is called like its file.

    Raises:
        InputError: An unknown row, names that meet, or a backbone file that cannot be read.
    """

    together = True

    def __init__(
        self,
        features: BackboneFeatures,
        rows: Sequence[str] = ("raw", "adaln"),
        probe_folders: Sequence[str] = (),
        run_dir: str = "runs/default",
        others: dict[str, BackboneFeatures] | None = None,
        backbone_files: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.features = features
        self.rows = chosen_rows(rows)
        self.probe_folders = probe_names(probe_folders)
        self.others = read_backbones(backbone_files, others or {})
        check_names("others", self.others, self.probe_folders)
        self.run_dir = Path(run_dir)
        # No modules of their own, so that frozen weights are no part of this one's state and checkpoints.
        self._models: Models | None = None
        self._image_rows: ImageRows | None = None
        self._probes: list[HeldProbe] = []
        self._result: MeasuredRun | None = None

    @abstractmethod
    def categories(self) -> dict[str, str]:
        """Every image that the run will compute: its id to its category, for prompts."""

    def calibration(self) -> PairDataset | None:
        """Images to calibrate massive channels and position means on: those of the data module, if it has any."""
        found = getattr(getattr(self.trainer, "datamodule", None), "calibration", None)
        return found if isinstance(found, PairDataset) else None

    @property
    def models(self) -> Models:
        """The frozen backbones, on the device of the trainer; each loaded on first use."""
        if self._models is None:
            requests = requested(self.features, self.probe_folders, self.others)
            self._models = Models(self.trainer.strategy.root_device, requests, together=self.together)
        return self._models

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone of `features`."""
        return self.models[self.features]

    @property
    def image_rows(self) -> ImageRows:
        """The rows; from the start of a stage on."""
        if self._image_rows is None:
            raise InputError("task", type(self).__name__, "its rows exist from the start of a stage on")
        return self._image_rows

    def prepare_data(self) -> None:
        """Encodes the prompts of the images once per node, so that text encoders are gone before the backbone comes."""
        for features in (self.features, *self.others.values()):
            if features.prompt is not None or features.captions is not None:
                named = self.categories()
                encode_image_prompts(features, list(named), named, self.trainer.strategy.root_device)

    def setup(self, stage: str) -> None:
        """Refuses what cannot work before anything is computed."""
        ensure_writable(self.run_dir, "run_dir")

    def make_rows(self, scale: float = 1.0) -> ImageRows:
        """Loads models and probes, and calibrates the rows that need it.

        Args:
            scale: Factor on the image sizes of all rows.

        Raises:
            InputError: Another factor than 1 where images keep their own size.
        """
        features = scaled_features(self.features, scale)
        self._probes = held_probes(self.probe_folders, features)
        for probe in self._probes:
            check_backbone(probe.name, probe.facts, self.backbone)
        others = {name: scaled_features(settings, scale) for name, settings in self.others.items()}
        matchers = plan(self.models, features, self.rows, self._probes, others)
        calibrate(matchers, self.calibration())
        return ImageRows(matchers)

    def start_rows(self) -> None:
        """Gets the rows ready and forgets the result of an earlier test."""
        self._result = None
        self._image_rows = self.make_rows()

    def on_test_start(self) -> None:
        """Gets the rows ready."""
        self.start_rows()

    def result(self) -> MeasuredRun:
        """What the last test found, the same on every rank.

        Raises:
            InputError: No test has run.
        """
        if self._result is None:
            raise InputError("task", type(self).__name__, "run trainer.test first")
        return self._result

    def settings(self) -> dict[str, Any]:
        """Every setting of the last test that changes a number, as plain JSON values; a subclass adds its own."""
        return {
            **self.image_rows.settings(),
            "probes": {probe.name: asdict(probe.facts) for probe in self._probes},
            "calibration": dataset_settings(self.calibration()),
            "device": str(self.device),
            "versions": versions(),
        }

    def log_result(self, result: MeasuredRun) -> None:
        """Keeps the result and shows its scores to every logger, as `<data set>/<metric>/<row>`."""
        self._result = result
        values = dict(_scalars(result))
        backbones = frozen_words({row.name: row.backbone for dataset in result.datasets for row in dataset.rows})
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.global_step)
            logger.log_hyperparams(asdict(self.features) | {"backbones": backbones})


def scaled_features(features: BackboneFeatures, scale: float) -> BackboneFeatures:
    """The same features at another image size, which `geometry.fit` brings to whole multiples.

    Raises:
        InputError: Images keep their own size, and the factor is not 1.
    """
    if scale == 1:
        return features
    size = features.image_size
    if size is None:
        raise InputError("scales", scale, f"images of {features.backbone} keep their size, set image_size or use [1.0]")
    sides = [size] * 2 if isinstance(size, int) else list(size)
    return replace(features, image_size=[max(1, round(side * scale)) for side in sides])


def _scalars(result: MeasuredRun) -> Iterable[tuple[str, float]]:
    for dataset in result.datasets:
        for row in dataset.rows:
            for metric, value in row.values.items():
                yield f"{dataset.name}/{metric}/{row.name}", value
