"""Learning rates over the course of a training."""

import math
from collections.abc import Callable


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
