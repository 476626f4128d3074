"""Trains probes on frozen features; several at once, on the same batches."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ditf_probe.backbones.checks import check_blocks
from ditf_probe.data.pairs import Pair
from ditf_probe.errors import InputError
from ditf_probe.features.kept_calibration import keep
from ditf_probe.losses import Extras, Objective
from ditf_probe.matching import Rounding
from ditf_probe.metrics.intervals import Statistic
from ditf_probe.metrics.pck import ALPHAS, alpha_key
from ditf_probe.probes import LoraSettings, describe_probe, penalty_of, save_probe
from ditf_probe.protocols import Protocol
from ditf_probe.tasks.adapted_data import AdaptedData
from ditf_probe.tasks.correspondence import CorrespondenceTask
from ditf_probe.tasks.descriptors import Ends
from ditf_probe.tasks.heads import HeadFactory, HeadPlan
from ditf_probe.tasks.matchers import FeatureMatcher, match_all
from ditf_probe.tasks.objectives import LossFactory, objective, told
from ditf_probe.tasks.randomness import random_state, restore_random_state
from ditf_probe.tasks.rows import ROW_NAMES, Fusion, Row
from ditf_probe.tasks.schedules import Optimisation, averaged
from ditf_probe.tasks.scores import Scores
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.training_batches import TrainingBatch
from ditf_probe.tasks.training_data import TrainingData

MONITORED = 0.10
"""Alpha of the validation score that decides which weights are kept."""


class ProbeTask(CorrespondenceTask):
    """Trains probes on the features of a frozen backbone, and compares rows like its base class.

    All probes see the same batches; their parameters are disjoint, so that each learns as if alone. The best weights
    of each by validation PCK are kept in `<run_dir>/probes/<name>/`. The backbone runs once per image, before
    the first step; it has no gradients and is in no checkpoint, but for `lora`. See `docs/training.md`.

    Args:
        features: The backbone and its features; `blocks` is the one block of the zero-shot rows.
        probes: Name to what builds a probe from the width of the features and the blocks.
        probe_blocks: Name to the blocks that a probe uses; the zero-shot block where a name is missing.
        init_from: Name to the folder of a trained probe to start from.
        seeds: Seeds of the initial weights: a copy of each probe per seed, kept in the folder `seed<seed>` of the
            probe. None trains one copy of each.
        losses: Name to what builds a loss, each probe having its own; None is `KeypointContrast`. See `docs/losses.md`.
        loss_weights: Name of a loss to its weight; 1 where a name is missing.
        temperature: Start of the learnt temperature where no losses are named.
        margin: Radius without negatives around a partner, in cells, where no losses are named.
        learning_rate: Highest learning rate of AdamW; a cosine takes it to zero.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps of linear warm-up.
        ema_decay: Decay per step of the moving average of the weights, which validation and the kept probes use in
            place of the last weights; lower in the beginning. 0 averages nothing.
        crop: Least share of the height and width of a feature map that random crops keep; 1 crops nothing.
        batches_ahead: Batches that are read while one is worked on.
        lora: Adapters that each probe trains inside the last tapped blocks; None leaves them frozen. `docs/heads.md`.
        rows: As in `CorrespondenceTask`.
        probe_folders: As in `CorrespondenceTask`.
        alphas: As in `CorrespondenceTask`.
        strict: As in `CorrespondenceTask`.
        statistics: As in `CorrespondenceTask`.
        rounding: As in `CorrespondenceTask`.
        run_dir: As in `CorrespondenceTask`.
        others: As in `CorrespondenceTask`.
        backbone_files: As in `CorrespondenceTask`.
        fusions: As in `CorrespondenceTask`.
        protocol: As in `CorrespondenceTask`; its sizes and matching rule hold in training too, its scoring does not.

    Raises:
        InputError: No probe, an unknown name, a name that is a zero-shot row, or a number out of range.
    """

    def __init__(
        self,
        features: BackboneFeatures,
        probes: dict[str, HeadFactory],
        probe_blocks: dict[str, list[int]] | None = None,
        init_from: dict[str, str] | None = None,
        seeds: list[int] | None = None,
        losses: dict[str, LossFactory] | None = None,
        loss_weights: dict[str, float] | None = None,
        temperature: float = 0.07,
        margin: float = 1.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        warmup_steps: int = 20,
        ema_decay: float = 0.0,
        crop: float = 1.0,
        batches_ahead: int = 2,
        lora: LoraSettings | None = None,
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
        compared = rows, probe_folders, alphas, strict, statistics, rounding, run_dir
        super().__init__(features, *compared, others, backbone_files, fusions, protocol)
        self.optimisation = Optimisation(learning_rate, weight_decay, warmup_steps, ema_decay)
        self.plan = HeadPlan(dict(probes), dict(probe_blocks or {}), dict(init_from or {}), seeds, lora)
        asked = losses, loss_weights, temperature, margin
        self.losses = nn.ModuleDict({name: objective(*asked) for name in self.plan.copies})
        self.probes = nn.ModuleDict()
        self.averages: AveragedModel | None = None
        self.best: dict[str, float] = {}
        self._data = (TrainingData if lora is None else AdaptedData)(self.features, crop, batches_ahead)
        self._rng: dict[str, Any] = {}

    def requests(self) -> list[BackboneFeatures]:
        """As in `CorrespondenceTask`, with the blocks that probes are trained on."""
        return [*super().requests(), *(replace(self.features, blocks=chosen) for chosen in self.plan.blocks.values())]

    def setup(self, stage: str) -> None:
        """As in `CorrespondenceTask`; for a training also has the data module serve features with the pairs."""
        super().setup(stage)
        if stage == "fit":
            self._data.serve(self.pairs)

    def configure_model(self) -> None:
        """Builds the probes, once the width of the backbone is known."""
        if self.probes or self.trainer.state.fn != "fit":
            return
        for copy in self.plan.copies:
            self.probes[copy] = self.plan.build(copy, self.backbone, replace(self.features, blocks=self._blocks(copy)))
        if self.optimisation.ema_decay:
            self.averages = averaged(self.probes, self.optimisation.ema_decay)

    def configure_optimizers(self) -> Any:
        """AdamW over probes and temperatures alone, on a cosine over the whole training."""
        return self.optimisation.configure((self.probes, self.losses), self.trainer.estimated_stepping_batches)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """A step, after which the moving averages move."""
        super().optimizer_step(*arguments, **options)
        if self.averages is not None:
            self.averages.update_parameters(self.probes)

    def on_fit_start(self) -> None:
        """Runs the backbone over the images of training and validation, once each."""
        blocks = {copy: self._blocks(copy) for copy in self.plan.copies}
        dtype = torch.bfloat16 if "bf16" in str(self.trainer.precision) else torch.float32
        probes, losses = dict(self.probes.items()), dict(self.losses.items())
        self._data.open(self.backbone, blocks, probes, losses, dtype)

    def on_fit_end(self) -> None:
        """Forgets the images, and says so where nothing was kept."""
        self._data.close()
        if not self.best:
            rank_zero_warn("no probe was kept: no validation has run, lower trainer.check_val_every_n_epoch")

    def on_train_start(self) -> None:
        """Goes on with the random numbers of the checkpoint, where there is one; a further training has its own."""
        restore_random_state(self._rng)
        self._rng = {}

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        """The sum of the losses of all probes on a batch of pairs."""
        size, losses, batch = len(batch.pairs), [], batch.to(self.device)
        zero_shot = self._data.zero_shot(batch)
        for name, (sources, targets) in self._data.describe(batch, dict(self.probes.items())).items():
            loss, facts = self._loss(name, sources, targets, batch.pairs, zero_shot)
            losses.append(loss)
            self.log(f"train/loss/{name}", loss, batch_size=size)
            self.log_dict({f"train/{fact}/{name}": value for fact, value in facts.items()}, batch_size=size)
        total = torch.stack(losses).sum()
        self.log("train/loss", total, prog_bar=True, batch_size=size)
        return total

    def on_validation_epoch_start(self) -> None:
        """Starts a score sheet."""
        if not self._data.is_open or self.pairs.val is None:
            remedy = "validation is part of fit; use test with --probe for trained probes"
            raise InputError("subcommand", "validate", remedy)
        self.scores = [Scores(self.pairs.val, list(self.probes), (MONITORED,), False, self.device)]
        self.matchers = [self._matcher(name, probe) for name, probe in self._kept().items()]

    def validation_step(self, batch: list[Pair], batch_idx: int) -> None:
        """Matches a batch of pairs with every probe, in float32 as a later test does, whatever it is trained in."""
        with torch.autocast(self.device.type, enabled=False):
            for matcher, matches in zip(self.matchers, match_all(self.matchers, batch), strict=True):
                self.scores[0].update(matcher.row.name, batch, matches)

    def on_validation_epoch_end(self) -> None:
        """Logs PCK per point of every probe and their mean, `val/pck`, and keeps the best weights of each."""
        key = alpha_key(MONITORED)
        self.matchers = []  # with the maps that they keep
        values = {name: float(metric.compute()["per_point"][key]) for name, metric in self.scores[0].pck.items()}
        if any(math.isnan(value) for value in values.values()):
            remedy = "no keypoint is visible in both images, give other pairs"
            raise InputError("val", self.scores[0].dataset.name, remedy)
        self.log_dict({f"val/pck/{name}": value for name, value in values.items()})
        self.log("val/pck", sum(values.values()) / len(values), prog_bar=True)
        if self.trainer.sanity_checking:
            return  # a few pairs only
        for name, value in values.items():
            if value > self.best.get(name, -1.0):
                self.best[name] = value
                if self.trainer.is_global_zero:
                    self._write(name)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remembers which scores the kept weights have, the batches of this epoch, and the random generators."""
        checkpoint["best_pck"] = dict(self.best)
        checkpoint["batches"] = self._data.state()
        checkpoint["rng"] = random_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from there.

        Raises:
            InputError: The checkpoint is of other probes.
        """
        super().on_load_checkpoint(checkpoint)
        self.best = dict(checkpoint.get("best_pck", {}))
        self._data.resume(checkpoint.get("batches", {}))
        self._rng = checkpoint.get("rng", {})

    def _blocks(self, copy: str) -> list[int]:
        chosen = self.plan.blocks.get(self.plan.copies[copy], self.features.blocks)
        return check_blocks(chosen, self.backbone.num_blocks)

    def _matcher(self, name: str, probe: nn.Module) -> FeatureMatcher:
        row, blocks = Row.of(name, "probe", self.features), self._blocks(name)
        return FeatureMatcher(row, self.evaluation.rule, self._data.validated(probe, blocks), blocks, probe)

    def _objective(self, name: str) -> Objective:
        found = self.losses[name]
        assert isinstance(found, Objective)
        return found

    def _loss(
        self, name: str, sources: list[Tensor], targets: list[Tensor], pairs: list[Pair], zero_shot: Ends | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a probe, in float32 whatever it computes in, and what else is to be logged."""
        own, extras = self._objective(name), Extras() if zero_shot is None else Extras(*zero_shot)
        with torch.autocast(self.device.type, enabled=False):
            ends = [one.float() for one in sources], [one.float() for one in targets]
            loss, values = own(*ends, pairs, extras)
            penalty = penalty_of(self.probes[name])
        return loss if penalty is None else loss + penalty, told(own, values)

    def _kept(self) -> nn.ModuleDict:
        """The probes that are validated and kept."""
        kept = self.probes if self.averages is None else self.averages.module
        assert isinstance(kept, nn.ModuleDict)
        return kept

    def _write(self, name: str) -> None:
        probe = self._kept()[name]
        calibration, beside = keep(self._data.stream.extractor, self._blocks(name))
        facts = describe_probe(
            probe,
            features=asdict(replace(self.features, blocks=self._blocks(name))),
            backbone=self.backbone.settings(),
            training={
                "val_pck_0.10_per_point": self.best[name],
                **self._data.facts(self.trainer),
                **asdict(self.optimisation),
                "losses": self._objective(name).settings(),
                **self.plan.facts(name),
            },
            calibration=calibration,
        )
        save_probe(self.run_dir / "probes" / name, probe.state_dict(), facts, beside)
