"""How probes are optimised: AdamW, and its learning rate over the course of a training."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ditf_probe.errors import InputError


@dataclass(frozen=True)
class Optimisation:
    """How probes are optimised.

    Attributes:
        learning_rate: Highest learning rate of AdamW; a cosine takes it to zero.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps of linear warm-up.
        ema_decay: Decay per step of the moving average of the weights; 0 averages nothing.

    Raises:
        InputError: One is out of range or NaN.
    """

    learning_rate: float
    weight_decay: float
    warmup_steps: int
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_optimisation(self.learning_rate, self.weight_decay, self.warmup_steps)
        if not 0 <= self.ema_decay < 1:
            raise InputError("ema_decay", self.ema_decay, "give a number from 0 to less than 1, such as 0.99")

    def configure(self, modules: Iterable[nn.Module], steps: float) -> dict[str, Any]:
        """Optimizer and schedule of what is learnt, as Lightning takes them.

        Args:
            modules: What is learnt.
            steps: Steps of the whole training.

        Raises:
            InputError: It has no end.
        """
        if not math.isfinite(steps):
            raise InputError("max_epochs", -1, "give the trainer an end, the learning rate needs it")
        optimizer = adamw(modules, self.learning_rate, self.weight_decay)
        schedule = LambdaLR(optimizer, cosine_with_warmup(self.warmup_steps, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def cosine_with_warmup(warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """A factor that rises linearly to 1 and falls to 0 along half a cosine.

    Args:
        warmup_steps: Steps of the rise.
        total_steps: Step at which it reaches 0.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return factor


def adamw(modules: Iterable[nn.Module], learning_rate: float, weight_decay: float) -> AdamW:
    """AdamW over what is learnt; matrices decay, but not biases, mixtures and temperatures."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=learning_rate)


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of a model whose weights become an exponential moving average over `update_parameters`.

    The decay is lower in the beginning, (1 + n) / (10 + n) after n updates, so that the start is soon forgotten; the
    rule of `tf.train.ExponentialMovingAverage`.

    Args:
        model: The model as it starts.
        decay: Highest decay per update, from 0 to less than 1.
    """

    def step(mean: Tensor, value: Tensor, updates: Tensor | int) -> Tensor:
        return mean.lerp(value, 1 - min(decay, (1 + int(updates)) / (10 + int(updates))))

    return AveragedModel(model, avg_fn=step).requires_grad_(False)


def check_optimisation(learning_rate: float, weight_decay: float, warmup_steps: int) -> None:
    """Refuses numbers that cannot train.

    Raises:
        InputError: One is out of range or NaN.
    """
    if not 0 < learning_rate < math.inf:
        raise InputError("learning_rate", learning_rate, "give a positive number, such as 0.001")
    if not 0 <= weight_decay < math.inf:
        raise InputError("weight_decay", weight_decay, "give a number, 0 or more")
    if warmup_steps < 0:
        raise InputError("warmup_steps", warmup_steps, "give a number of steps, 0 or more")
