"""How probes are optimised: AdamW, and its learning rate over the course of a training."""

import math
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import AdamW

from ditf_probe.errors import InputError


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
