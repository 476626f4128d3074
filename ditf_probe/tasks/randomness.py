"""The state of the random generators, so that a training that goes on draws what it would have drawn."""

from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """The state of torch's generators on the CPU and on every CUDA device, for a checkpoint."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    """Sets the generators to a state of `random_state`; those of CUDA only where there are as many devices.

    Args:
        state: Where to; an empty one leaves them as they are.
    """
    if not state:
        return
    torch.set_rng_state(state["cpu"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([found.cpu() for found in state["cuda"]])
