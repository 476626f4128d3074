"""Many rows over the same pairs: zero-shot features, controls and trained probes."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from ditf_probe.backbones.base import Backbone
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.pairs import Pair, PairDataset
from ditf_probe.errors import InputError
from ditf_probe.files import ensure_writable
from ditf_probe.matching import Rounding
from ditf_probe.metrics.intervals import Statistic
from ditf_probe.metrics.pck import ALPHAS
from ditf_probe.protocols import Protocol
from ditf_probe.tasks.backbone_files import read_backbones
from ditf_probe.tasks.costs import row_results
from ditf_probe.tasks.evaluation import Evaluation
from ditf_probe.tasks.held_probes import HeldProbe, check_backbone, held_probes
from ditf_probe.tasks.matchers import Matcher, match_all
from ditf_probe.tasks.models import Models
from ditf_probe.tasks.planning import calibrate, plan, requested, streams_of
from ditf_probe.tasks.prompts import encode_prompts
from ditf_probe.tasks.records import DatasetResult, RunResult, frozen_words, pair_facts
from ditf_probe.tasks.rows import ROW_NAMES, Fusion, check_fusions, check_names, chosen_rows, probe_names
from ditf_probe.tasks.scores import Scores
from ditf_probe.tasks.settings import BackboneFeatures, dataset_settings, versions


class CorrespondenceTask(L.LightningModule):
    """Compares rows over the same pairs, each image computed once per model.

    The table holds the zero-shot rows of `features`, then `others`, `fusions` and probes, then the controls. Every row
    may have another backbone, image size and resize: predictions are pixels of the original images. One backbone is
    in memory at a time; see `tasks.models`. What they have computed of a data set is kept, `bank_gib` for each.

    Args:
        features: The backbone and its features; `blocks` is the one block of the zero-shot rows.
        rows: Which rows of that backbone, and which controls, in order.
        probe_folders: Trained probes of that backbone to compare, as `train.py` writes them.
        alphas: PCK thresholds as fractions.
        strict: Compare distances with `<` instead of `<=`.
        statistics: Per data set, which average its intervals refer to: "per_point" (default) or "per_image".
        rounding: Where source descriptors are sampled, as in `match_keypoints`.
        run_dir: Folder of everything that a run writes.
        others: Further zero-shot rows by name, each with a backbone of its own and one block.
        backbone_files: The same as YAML files, such as those in `configs/backbone/`; each row is called like its file.
        fusions: Rows that put the features of other rows together, by name.
        protocol: Name of a preset of `ditf_probe.protocols`, or one with changes. What it sets stands in place of
            the sizes of all features and of `alphas`, `strict`, `statistics` and `rounding`; see `tasks.evaluation`.

    Raises:
        InputError: An unknown row or protocol, names that meet, an unreadable backbone file, or an impossible fusion.
    """

    def __init__(
        self,
        features: BackboneFeatures,
        rows: Sequence[str] = ROW_NAMES,
        probe_folders: Sequence[str] = (),
        alphas: Sequence[float] = ALPHAS,
        strict: bool = False,
        statistics: dict[str, Statistic] | None = None,
        rounding: Rounding = "subpixel",
        run_dir: str = "runs/default",
        others: dict[str, BackboneFeatures] | None = None,
        backbone_files: Sequence[str] = (),
        fusions: dict[str, Fusion] | None = None,
        protocol: str | Protocol = "default",
    ) -> None:
        super().__init__()
        self.evaluation = Evaluation.of(protocol, alphas, strict, statistics or {}, rounding)
        self.features = self.evaluation.features("features", features)
        self.rows = chosen_rows(rows)
        self.probe_folders = probe_names(probe_folders)
        given = read_backbones(backbone_files, others or {})
        self.others = {name: self.evaluation.features(f"others.{name}", more) for name, more in given.items()}
        check_names("others", self.others, self.probe_folders)
        self.fusions = dict(fusions or {})
        names = [*(row.name for row in self.rows), *self.others, *self.probe_folders]
        check_names("fusions", self.fusions, names)
        check_fusions(self.fusions, names)
        self.run_dir = Path(run_dir)
        # No modules of their own, so that frozen weights and metrics are no part of this one's state and checkpoints.
        self._models: Models | None = None
        self.matchers: list[Matcher] = []
        self.scores: list[Scores] = []
        self._probes: list[HeldProbe] = []
        self._result: RunResult | None = None

    @property
    def models(self) -> Models:
        """The frozen backbones, on the device of the trainer; each loaded on first use."""
        if self._models is None:
            self._models = Models(self.trainer.strategy.root_device, self.requests())
        return self._models

    def requests(self) -> list[BackboneFeatures]:
        """Everything that is asked of backbones: they are loaded up to the last block that is needed, see `Models`."""
        return requested(self.features, self.probe_folders, self.others)

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone of `features`."""
        return self.models[self.features]

    @property
    def pairs(self) -> PairDataModule:
        """The data module of the trainer.

        Raises:
            InputError: The trainer was given bare loaders.
        """
        module = getattr(self.trainer, "datamodule", None)
        if not isinstance(module, PairDataModule):
            raise InputError("datamodule", type(module).__name__, "give the trainer a PairDataModule")
        return module

    def prepare_data(self) -> None:
        """Encodes the prompts of the images once per node, so that text encoders are gone before the backbone comes."""
        for features in (self.features, *self.others.values()):
            if features.prompt is not None or features.captions is not None:
                encode_prompts(features, self._datasets(), self.trainer.strategy.root_device)

    def setup(self, stage: str) -> None:
        """Refuses what cannot work before anything is computed."""
        ensure_writable(self.run_dir, "run_dir")
        if stage != "test":
            return
        unknown = set(self.evaluation.statistics) - set(self.pairs.test)
        if unknown:
            raise InputError("statistics", sorted(unknown), f"name test sets, {', '.join(self.pairs.test)}")
        protocol = self.evaluation.protocol
        self.pairs.limit_test(protocol.pairs_per_category or 0, protocol.pairs_seed or 0)

    def held_probes(self) -> list[HeldProbe]:
        """The probes to compare.

        Raises:
            InputError: A folder is no probe, or one of another backbone.
        """
        held = held_probes(self.probe_folders, self.features)
        for probe in held:
            check_backbone(probe.name, probe.facts, self.backbone)
        return held

    def on_test_start(self) -> None:
        """Loads models and probes, calibrates the rows that need it, and starts a score sheet per data set."""
        self._result = None
        self._probes = self.held_probes()
        rule = self.evaluation.rule
        self.matchers = plan(self.models, self.features, self.rows, self._probes, self.others, self.fusions, rule)
        calibrate(self.matchers, self.pairs.calibration)
        names = [matcher.row.name for matcher in self.matchers]
        self.scores = [self._sheet(dataset, names) for dataset in self.pairs.test.values()]

    def test_step(self, batch: list[Pair], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Matches a batch of pairs with every row."""
        if batch_idx == 0:
            self._open(dataloader_idx)
        for matcher, matches in zip(self.matchers, match_all(self.matchers, batch), strict=True):
            self.scores[dataloader_idx].update(matcher.row.name, batch, matches)

    def on_test_epoch_end(self) -> None:
        """Gathers what all ranks found, once."""
        datasets = []
        for (name, dataset), scores in zip(self.pairs.test.items(), self.scores, strict=True):
            datasets.append(self._collect(name, dataset, scores))
        self._log_scores()
        self._result = RunResult(datasets, self.settings())
        self._forget()

    def result(self) -> RunResult:
        """What the last test found, the same on every rank.

        Raises:
            InputError: No test has run.
        """
        if self._result is None:
            raise InputError("task", type(self).__name__, "run trainer.test first")
        return self._result

    def settings(self) -> dict[str, Any]:
        """Every setting that changes a number of the last test, as plain JSON values."""
        streams = streams_of(self.matchers)
        return {
            "rows": {matcher.row.name: matcher.settings(streams) for matcher in self.matchers},
            "models": [stream.facts() for stream in streams],
            "probes": {probe.name: asdict(probe.facts) for probe in self._probes},
            "rounding": self.evaluation.rule.rounding,
            "protocol": self.evaluation.settings(),
            "scoring": {"alphas": list(self.evaluation.alphas), "strict": self.evaluation.strict},
            "data": {name: dataset_settings(dataset) for name, dataset in self.pairs.test.items()},
            "calibration": dataset_settings(self.pairs.calibration),
            "device": str(self.device),
            "versions": versions(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint whose weights are not those of this task.

        Raises:
            InputError: Names or shapes differ.
        """
        own = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        there = {name: tuple(tensor.shape) for name, tensor in checkpoint.get("state_dict", {}).items()}
        differing = sorted(name for name in own.keys() | there.keys() if own.get(name) != there.get(name))
        if differing:
            name = differing[0]
            found = f"{len(differing)} tensors differ, {name} is {there.get(name)} there and {own.get(name)} here"
            raise InputError("ckpt_path", found, "use the checkpoint of this configuration, or none")

    def _datasets(self) -> list[PairDataset]:
        """The data sets whose images this run computes."""
        pairs = self.pairs
        found: list[PairDataset | None] = [pairs.train, pairs.val]
        if self.trainer.testing:
            found = list(pairs.test.values())
        settings = (self.features, *self.others.values())
        calibrated = any(x.needs_calibration for x in settings)
        if calibrated or (self.trainer.testing and any(row.needs_calibration for row in self.rows)):
            found.append(pairs.calibration)
        return [dataset for dataset in found if dataset is not None]

    def _sheet(self, dataset: PairDataset, rows: Sequence[str]) -> Scores:
        how = self.evaluation
        return Scores(dataset, rows, how.alphas, how.strict, self.device, threshold=how.threshold)

    def _open(self, number: int) -> None:
        """Computes the images of a test set that this rank will see, and forgets those of the last one."""
        dataset = list(self.pairs.test.values())[number]
        loaders: Any = self.trainer.test_dataloaders
        ids = own_images(loaders[number] if isinstance(loaders, list) else loaders)
        self._forget()
        for stream in streams_of(self.matchers):
            stream.open(dataset, ids)

    def _forget(self) -> None:
        """Lets go of streams and maps of the last test set."""
        for matcher in self.matchers:
            matcher.forget()
        for stream in streams_of(self.matchers):
            stream.close()

    def _collect(self, name: str, dataset: PairDataset, scores: Scores) -> DatasetResult:
        rows = row_results(self.matchers, scores.predictions(), dataset[0].source.size)
        indices = sorted({int(index) for row in rows for index in row.predictions.pair_index})
        statistic, threshold = self.evaluation.statistic(name), self.evaluation.threshold or dataset.threshold
        return DatasetResult(name, dataset.unit, statistic, threshold, pair_facts(dataset, indices), rows)

    def _log_scores(self) -> None:
        """Scalars per row, and the hyperparameters beside them, for every logger."""
        values = {}
        for name, scores in zip(self.pairs.test, self.scores, strict=True):
            statistic = self.evaluation.statistic(name)
            for row, metric in scores.pck.items():
                for alpha, value in metric.compute()[statistic].items():
                    values[f"{name}/pck_{alpha}/{row}"] = float(value)
        # Tags of their own, because the logger writes these metrics as scalars once more.
        chosen = {f"hparams/{tag}": value for tag, value in values.items() if "/pck_0.10/" in tag}
        hyperparameters = asdict(self.features) | {
            "others": {name: asdict(features) for name, features in self.others.items()},
            "fusions": {name: asdict(fusion) for name, fusion in self.fusions.items()},
            "backbones": frozen_words({matcher.row.name: matcher.backbone for matcher in self.matchers}),
        }
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.global_step)
            logger.log_hyperparams(hyperparameters, *([chosen] if isinstance(logger, TensorBoardLogger) else []))


def own_images(loader: DataLoader[Any]) -> list[str]:
    """Ids of the images that this rank will see, each once."""
    pairs: Iterator[Pair] = (loader.dataset[index] for index in loader.sampler)
    return list(dict.fromkeys(side.image_id for pair in pairs for side in (pair.source, pair.target)))
