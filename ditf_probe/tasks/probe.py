"""Trains probes on frozen features; several at once, on the same batches."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ditf_probe.backbones.checks import check_blocks
from ditf_probe.data.pairs import Pair, Side
from ditf_probe.errors import InputError
from ditf_probe.features.kept_calibration import keep
from ditf_probe.losses import KeypointContrast
from ditf_probe.matching import Rounding
from ditf_probe.metrics.intervals import Statistic
from ditf_probe.metrics.pck import ALPHAS, alpha_key
from ditf_probe.probes import check_num_timesteps, describe_probe, load_weights, penalty_of, save_probe, takes_timesteps
from ditf_probe.protocols import Protocol
from ditf_probe.tasks.correspondence import CorrespondenceTask, own_images
from ditf_probe.tasks.matchers import FeatureMatcher
from ditf_probe.tasks.models import make_stream
from ditf_probe.tasks.rows import ROW_NAMES, ROWS, Fusion, Row
from ditf_probe.tasks.schedules import adamw, check_optimisation, cosine_with_warmup
from ditf_probe.tasks.scores import Scores
from ditf_probe.tasks.settings import BackboneFeatures, dataset_settings
from ditf_probe.tasks.streams import Stream

MONITORED = 0.10
"""Alpha of the validation score that decides which weights are kept."""


class ProbeTask(CorrespondenceTask):
    """Trains probes on the features of a frozen backbone, and compares rows like its base class.

    All probes see the same batches; their parameters are disjoint, so that each learns as if alone. The best weights
    of each by validation PCK are kept in `<run_dir>/probes/<name>/`. The backbone runs once per image, before
    the first step; it has no gradients and is in no checkpoint.

    Args:
        features: The backbone and its features; `blocks` is the one block of the zero-shot rows.
        probes: Name to what builds a probe from the width of the features and the blocks.
        probe_blocks: Name to the blocks that a probe uses; the zero-shot block where a name is missing.
        init_from: Name to the folder of a trained probe to start from.
        temperature: Start of the learnt temperature of the loss, one per probe.
        margin: Radius without negatives around a partner, in cells; see `KeypointContrast`.
        learning_rate: Highest learning rate of AdamW; a cosine takes it to zero.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps of linear warm-up.
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
        InputError: No probe, an unknown name, or a name that is a zero-shot row.
    """

    def __init__(
        self,
        features: BackboneFeatures,
        probes: dict[str, Callable[[int, Sequence[int]], nn.Module]],
        probe_blocks: dict[str, list[int]] | None = None,
        init_from: dict[str, str] | None = None,
        temperature: float = 0.07,
        margin: float = 1.0,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        warmup_steps: int = 20,
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
        check_optimisation(learning_rate, weight_decay, warmup_steps)
        _check_names(probes, {"probe_blocks": probe_blocks or {}, "init_from": init_from or {}})
        self.factories, self.blocks_of, self.init_from = dict(probes), dict(probe_blocks or {}), dict(init_from or {})
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.losses = nn.ModuleDict({name: KeypointContrast(temperature, True, margin) for name in probes})
        self.probes = nn.ModuleDict()
        self.best: dict[str, float] = {}
        self._fit: list[Stream] = []
        self._rng: dict[str, Any] = {}

    def requests(self) -> list[BackboneFeatures]:
        """As in `CorrespondenceTask`, with the blocks that probes are trained on."""
        trained = [blocks for name in self.factories if (blocks := self.blocks_of.get(name)) is not None]
        return [*super().requests(), *(replace(self.features, blocks=blocks) for blocks in trained)]

    def configure_model(self) -> None:
        """Builds the probes, once the width of the backbone is known."""
        if self.probes or self.trainer.state.fn != "fit":
            return
        for name, factory in self.factories.items():
            blocks = self._blocks(name)
            probe = factory(self.backbone.common_channels(blocks), blocks)
            check_num_timesteps("probes", name, getattr(probe, "num_timesteps", None), self.features.timestep)
            if name in self.init_from:
                load_weights(probe, self.init_from[name], asdict(replace(self.features, blocks=blocks)))
            self.probes[name] = probe

    def configure_optimizers(self) -> Any:
        """AdamW over probes and temperatures alone, on a cosine over the whole training."""
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise InputError(
                "max_epochs", self.trainer.max_epochs, "give the trainer an end, the learning rate needs it"
            )
        optimizer = adamw((self.probes, self.losses), self.learning_rate, self.weight_decay)
        schedule = LambdaLR(optimizer, cosine_with_warmup(self.warmup_steps, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Runs the backbone over the images of this rank, once each."""
        stream = make_stream(self.backbone, self.features, self._all_blocks())
        if stream.extractor.size_rule.whole_canvas:
            raise InputError("resize", self.features.resize, "train with pad or pad_end, whose padding can be cut off")
        if self._row("").needs_calibration:
            stream.calibrate(self.pairs.calibration)
        train = self.pairs.train
        if train is None or self.pairs.val is None:
            raise InputError("val", None, "give validation pairs, the best weights are chosen by them")
        stream.open(train, None if self.trainer.world_size > 1 else own_images(self.pairs.train_dataloader()))
        stream.open(self.pairs.val)
        self._fit = [stream]

    def on_fit_end(self) -> None:
        """Forgets the images."""
        self._fit = []

    def on_train_start(self) -> None:
        """Goes on with the random numbers of the checkpoint, where there is one."""
        if self._rng:
            torch.set_rng_state(self._rng["cpu"].cpu())
            if len(self._rng["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([state.cpu() for state in self._rng["cuda"]])

    def training_step(self, batch: list[Pair], batch_idx: int) -> Tensor:
        """The sum of the losses of all probes on a batch of pairs."""
        sources, targets = (self._descriptors([getattr(pair, x) for pair in batch]) for x in ("source", "target"))
        losses = []
        for name in self.probes:
            contrast = self._contrast(name)
            loss, penalty = contrast(sources[name], targets[name], batch), penalty_of(self.probes[name])
            losses.append(loss if penalty is None else loss + penalty)
            self.log(f"train/loss/{name}", losses[-1], batch_size=len(batch))
            self.log(f"train/temperature/{name}", contrast.temperature, batch_size=len(batch))
        total = torch.stack(losses).sum()
        self.log("train/loss", total, prog_bar=True, batch_size=len(batch))
        return total

    def on_validation_epoch_start(self) -> None:
        """Starts a score sheet."""
        if not self._fit or self.pairs.val is None:
            raise InputError(
                "subcommand", "validate", "validation is part of fit; use test with --probe for trained probes"
            )
        self.scores = [Scores(self.pairs.val, list(self.probes), (MONITORED,), False, self.device)]

    def validation_step(self, batch: list[Pair], batch_idx: int) -> None:
        """Matches a batch of pairs with every probe."""
        for name, probe in self.probes.items():
            matcher = FeatureMatcher(self._row(name), self.evaluation.rule, self._fit[0], self._blocks(name), probe)
            self.scores[0].update(name, batch, [matcher.match(pair) for pair in batch])

    def on_validation_epoch_end(self) -> None:
        """Logs PCK per point of every probe and their mean, `val/pck`, and keeps the best weights of each."""
        key = alpha_key(MONITORED)
        values = {name: float(metric.compute()["per_point"][key]) for name, metric in self.scores[0].pck.items()}
        if any(math.isnan(value) for value in values.values()):
            raise InputError(
                "val", self.scores[0].dataset.name, "no keypoint is visible in both images, give other pairs"
            )
        self.log_dict({f"val/pck/{name}": value for name, value in values.items()})
        self.log("val/pck", sum(values.values()) / len(values), prog_bar=True)
        if self.trainer.sanity_checking:
            return  # a few pairs only
        for name, value in values.items():
            if value > self.best.get(name, -1.0):
                self.best[name] = value
                self._write(name)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remembers which scores the kept weights have, and the state of the random generators."""
        checkpoint["best_pck"] = dict(self.best)
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        checkpoint["rng"] = {"cpu": torch.get_rng_state(), "cuda": cuda}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from there.

        Raises:
            InputError: The checkpoint is of other probes.
        """
        super().on_load_checkpoint(checkpoint)
        self.best = dict(checkpoint.get("best_pck", {}))
        self._rng = checkpoint.get("rng", {})

    def _blocks(self, name: str) -> list[int]:
        return check_blocks(self.blocks_of.get(name, self.features.blocks), self.backbone.num_blocks)

    def _all_blocks(self) -> list[int]:
        return sorted({block for name in self.factories for block in self._blocks(name)})

    def _contrast(self, name: str) -> KeypointContrast:
        contrast = self.losses[name]
        assert isinstance(contrast, KeypointContrast)
        return contrast

    def _row(self, name: str) -> Row:
        return Row.of(name, "probe", self.features)

    def _descriptors(self, sides: Sequence[Side]) -> dict[str, list[Tensor]]:
        """Per probe `(D, h, w)` of each image; those of one prepared size in one call, their features made once."""
        stream = self._fit[0]
        maps: dict[str, dict[int, Tensor]] = {name: {} for name in self.probes}
        for members in stream.by_canvas(sides):
            given = [sides[i] for i in members], self._all_blocks()
            features = {x: stream.maps(*given, per_timestep=x) for x in {*map(takes_timesteps, self.probes.values())}}
            for name, probe in self.probes.items():
                found = probe(features[takes_timesteps(probe)]).unbind()
                maps[name] |= {i: stream.crop(one, sides[i]) for i, one in zip(members, found, strict=True)}
        return {name: [found[i] for i in range(len(sides))] for name, found in maps.items()}

    def _write(self, name: str) -> None:
        if not self.trainer.is_global_zero:
            return
        calibration, beside = keep(self._fit[0].extractor, self._blocks(name))
        facts = describe_probe(
            self.probes[name],
            features=asdict(replace(self.features, blocks=self._blocks(name))),
            backbone=self.backbone.settings(),
            training={
                "val_pck_0.10_per_point": self.best[name],
                "step": self.trainer.global_step,
                "epoch": self.trainer.current_epoch,
                "train": dataset_settings(self.pairs.train),
                "val": dataset_settings(self.pairs.val),
                "batch_size": self.pairs.batch_size,
                "learning_rate": self.learning_rate,
                "weight_decay": self.weight_decay,
                "warmup_steps": self.warmup_steps,
                "temperature": float(self._contrast(name).temperature.detach()),
                "margin": self._contrast(name).margin,
                "init_from": self.init_from.get(name),
            },
            calibration=calibration,
        )
        save_probe(self.run_dir / "probes" / name, self.probes[name].state_dict(), facts, beside)


def _check_names(probes: Mapping[str, object], chosen: dict[str, Mapping[str, object]]) -> None:
    """Refuses names of probes that no row could have, and arguments about probes that are not there."""
    if not probes:
        raise InputError("probes", {}, "name at least one probe to train")
    for name in probes:
        if name in ROWS or not name.isidentifier():
            raise InputError("probes", name, "choose a name of letters and digits that no other row has")
    for argument, names in chosen.items():
        for name in names:
            if name not in probes:
                raise InputError(argument, name, f"use the name of a probe, {', '.join(probes)}")
