"""Training of the small denoiser by flow matching; its averaged weights are the product."""

import time
from copy import deepcopy
from datetime import date
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ditf_probe.backbones.fingerprint import file_sha256
from ditf_probe.backbones.spec import Architecture, Prediction, tiny_spec
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.data.images import ImagePoolsModule
from ditf_probe.errors import InputError
from ditf_probe.tasks.flow import (
    as_signal,
    drop_labels,
    flow_loss,
    image_sheet,
    sample_images,
    sample_timesteps,
)
from ditf_probe.tasks.optimiser import MuonAdamW, is_hidden_matrix
from ditf_probe.tasks.schedules import check_optimisation

WEIGHTS = "ditf_tiny.safetensors"


class PretrainTask(LightningModule):
    """Flow matching with label dropout, token dropout and an exponential moving average of the weights.

    The class names come from the data module. With every checkpoint and at the end the averaged weights are written to
    `<run_dir>/ditf_tiny.safetensors`, ready to be used as a backbone.

    Args:
        architecture: "dit" or "flux".
        width: Channels of the residual stream.
        head_dim: Channels of an attention head.
        blocks: Number of blocks in all.
        double_blocks: How many of them are double-stream (flux).
        image_size: Side of the images in pixels.
        patch: Side of a token in pixels.
        prediction: What the transformer gives, "velocity" or "image"; the loss is that of the velocity either way.
        learning_rate: Highest learning rate, of Muon and AdamW alike.
        muon: Whether the hidden matrices are trained by Muon instead of AdamW.
        weight_decay: Decoupled weight decay of the matrices.
        warmup_steps: Steps of linear warm-up.
        total_steps: Step at which the learning rate reaches zero.
        decay_steps: Length of its linear decay; constant before.
        kept_tokens: First step of a stage to the number of tokens, drawn anew each step, that the model sees in it.
        label_dropout: Probability that a sample carries the null class, which is the one that features use.
        level_mean: Mean of logit(s), s the noise level.
        level_std: Standard deviation of logit(s).
        ema_decay: Decay of the moving average per step, lower in the beginning.
        compile_blocks: Whether to compile the blocks; pays off after a few minutes.
        sample_steps: Euler steps of the sample images, which are logged with every validation; 0 for none.
        init_from: Weights file that the training starts from, none by default; the images that it has seen are counted.
        run_dir: Folder of the run.

    Raises:
        InputError: A number is out of range.
    """

    ema: TinyDenoiser
    denoiser: TinyDenoiser

    def __init__(
        self,
        architecture: Architecture = "flux",
        width: int = 128,
        head_dim: int = 32,
        blocks: int = 6,
        double_blocks: int = 2,
        image_size: int = 64,
        patch: int = 4,
        prediction: Prediction = "velocity",
        learning_rate: float = 2e-3,
        muon: bool = True,
        weight_decay: float = 0.01,
        warmup_steps: int = 200,
        total_steps: int = 8000,
        decay_steps: int = 2000,
        kept_tokens: dict[int, int] | None = None,
        label_dropout: float = 0.5,
        level_mean: float = 0.0,
        level_std: float = 1.0,
        ema_decay: float = 0.999,
        compile_blocks: bool = False,
        sample_steps: int = 20,
        init_from: str | None = None,
        run_dir: str = "runs/pretrain",
    ) -> None:
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        # Not save_hyperparameters: the command line would let a checkpoint's settings win over its arguments.
        self.settings: dict[str, Any] = settings
        check_optimisation(learning_rate, weight_decay, warmup_steps)
        if decay_steps < 1:
            raise InputError("decay_steps", decay_steps, "give a number of steps, 1 or more")
        if not 0 <= label_dropout <= 1:
            raise InputError("label_dropout", label_dropout, "use a probability")
        if not 0 <= ema_decay < 1:
            raise InputError("ema_decay", ema_decay, "use a number from 0 to less than 1")
        if not isfinite(level_mean):
            raise InputError("level_mean", level_mean, "use a finite number")
        if not 0 <= level_std < inf:
            raise InputError("level_std", level_std, "use a number, 0 or more")
        all_tokens = (image_size // patch) ** 2
        self.stages = sorted((kept_tokens or {0: all_tokens}).items())
        if self.stages[0][0] != 0 or not all(0 < count <= all_tokens for _, count in self.stages):
            raise InputError("kept_tokens", kept_tokens, f"start at step 0 and keep 1 to {all_tokens} tokens")
        self.all_tokens = all_tokens
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))
        self.images_seen: Tensor
        self.validated_step = 0
        self._start_clock()

    def configure_model(self) -> None:
        """Builds the denoiser for the classes of the data module."""
        if hasattr(self, "denoiser"):
            return
        h = self.settings
        data: object = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImagePoolsModule):
            raise InputError("data", type(data).__name__, "use ditf_probe.data.images.ImagePoolsModule")
        size = {k: h[k] for k in ("width", "head_dim", "blocks", "double_blocks", "image_size", "patch", "prediction")}
        self.denoiser = TinyDenoiser(tiny_spec(h["architecture"], data.class_names, **size))
        self.denoiser.zero_initialise()
        if h["init_from"] is not None:
            self._start_from(TinyDenoiser.load(h["init_from"]))
        self.ema = deepcopy(self.denoiser).eval().requires_grad_(False)
        if h["compile_blocks"]:
            transformer = self.denoiser.transformer
            for block in (*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())):
                block.compile()

    def _start_from(self, trained: TinyDenoiser) -> None:
        new, old = self.denoiser.spec, trained.spec
        for part in ("architecture", "config", "class_names", "image_size", "patch", "prediction"):
            if getattr(new, part) != getattr(old, part):
                remedy = f"it has another {part} than this training; use the sizes and the data of those weights"
                raise InputError("init_from", self.settings["init_from"], remedy)
        self.denoiser.load_state_dict(trained.state_dict())
        self.images_seen.fill_(int(old.training.get("images_seen", 0)))

    def on_train_start(self) -> None:
        """Gives every rank noise of its own, and a resumed run other noise than its beginning.

        Not earlier: the global step of a checkpoint is only known once the training begins.
        """
        torch.manual_seed(torch.initial_seed() + 1000 * self.global_step + self.global_rank)
        self._start_clock()

    def configure_optimizers(self) -> Any:
        """Muon and AdamW in one, with warm-up and linear decay."""
        groups: dict[bool, list[Any]] = {True: [], False: []}
        for name, parameter in self.denoiser.named_parameters():
            groups[bool(self.settings["muon"]) and is_hidden_matrix(name, parameter)].append(parameter)
        optimiser = MuonAdamW(
            [{"params": parameters, "muon": kind} for kind, parameters in groups.items()],
            lr=self.settings["learning_rate"],
            weight_decay=self.settings["weight_decay"],
        )
        schedule = LambdaLR(optimiser, self.rate)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate(self, step: int) -> float:
        """Learning rate at a step, relative to the highest."""
        warm = (step + 1) / self.settings["warmup_steps"] if self.settings["warmup_steps"] else 1.0
        left = (self.settings["total_steps"] - step) / self.settings["decay_steps"]
        return float(max(0.0, min(1.0, warm, left)))

    def kept(self, step: int) -> int:
        """Number of tokens that the model sees at a step."""
        return [count for first, count in self.stages if first <= step][-1]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One batch of uint8 images `(B, 3, H, W)` with labels `(B,)`."""
        images, labels = batch
        clean = as_signal(images)
        timestep = sample_timesteps(len(clean), self.settings["level_mean"], self.settings["level_std"], self.device)
        labels = drop_labels(labels, self.denoiser.null_label, self.settings["label_dropout"])
        count = self.kept(self.global_step)
        keep = None
        if count < self.all_tokens:
            keep = torch.randperm(self.all_tokens, device=self.device)[:count].sort().values
        loss = flow_loss(self.denoiser, clean, torch.randn_like(clean), timestep, labels, keep)
        self.images_seen += len(clean) * self.trainer.world_size
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Updates the weights and then their average, before any callback saves them."""
        super().optimizer_step(*args, **kwargs)
        decay = min(self.settings["ema_decay"], (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.denoiser.parameters()), 1 - decay)

    def on_train_batch_end(self, outputs: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs the speed since the last time; seldom, because a logged number waits for the GPU."""
        self.since += len(batch[0]) * self.trainer.world_size
        if self.global_step % self.trainer.log_every_n_steps:  # type: ignore[attr-defined] # set by its connector
            return
        self.log("train/images_per_second", self.since / (time.perf_counter() - self.started), prog_bar=True)
        self.log("train/images_seen", self.images_seen.float())
        self._start_clock()

    def _start_clock(self) -> None:
        self.started, self.since = time.perf_counter(), 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss of the averaged weights on all tokens, null class, under noise that is the same every time."""
        images, labels = batch
        clean = as_signal(images)
        generator = torch.Generator().manual_seed(batch_idx)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        timestep = torch.linspace(0, 1000, len(clean) + 2, device=self.device)[1:-1]
        loss = flow_loss(self.ema, clean, noise, timestep, torch.full_like(labels, self.ema.null_label))
        self.log("val/loss", loss, batch_size=len(clean), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Remembers whose loss it was, logs sample images, and leaves all that out of the speed."""
        self.validated_step = self.global_step
        self._log_samples()
        self._start_clock()

    def _log_samples(self) -> None:
        """One image per class of the first 16."""
        steps = self.settings["sample_steps"]
        if not steps or not isinstance(self.logger, TensorBoardLogger) or not self.trainer.is_global_zero:
            return
        labels = torch.arange(16, device=self.device) % self.ema.spec.num_classes
        size = self.ema.spec.image_size
        noise = torch.randn((16, 3, size, size), generator=torch.Generator().manual_seed(0)).to(self.device)
        sheet = image_sheet(sample_images(self.ema, labels, noise, steps), columns=8)
        self.logger.experiment.add_image("samples", sheet, self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the averaged weights beside the checkpoint."""
        self._save()

    def on_train_end(self) -> None:
        """Writes those of the last step, which need not have a checkpoint."""
        self._save()

    def _save(self) -> None:
        if self.trainer.is_global_zero:
            self.ema.save(Path(self.settings["run_dir"]) / WEIGHTS, self.facts())

    def facts(self) -> dict[str, Any]:
        """What the weights file tells about the training so far; no validation loss before the first validation."""
        loss, start = self.trainer.callback_metrics.get("val/loss"), self.settings["init_from"]
        return {
            "date": date.today().isoformat(),
            "images_seen": int(self.images_seen),
            "steps": self.global_step,
            "validation_loss": None if loss is None or not loss.isfinite() else float(loss),
            "validation_step": None if loss is None else self.validated_step,
            "init_from_sha256": None if start is None else file_sha256(Path(start)),
            "hparams": {k: v for k, v in self.settings.items() if k not in ("run_dir", "init_from")},
        }
