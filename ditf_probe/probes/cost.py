"""What a head costs: parameters, floating-point operations per image, and time."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ditf_probe.errors import InputError
from ditf_probe.probes.base import takes_timesteps

Grid = tuple[int, int]
aten = torch.ops.aten


def _of_output(*shapes: Any, out_shape: Any = None, **options: Any) -> int:
    del shapes, options
    return math.prod(out_shape)


def _of_input(shape: Any, *more: Any, out_shape: Any = None, **options: Any) -> int:
    del more, out_shape, options
    return math.prod(shape)


POINTWISE = (
    *(aten.add, aten.sub, aten.mul, aten.div, aten.pow, aten.sqrt, aten.rsqrt),
    *(aten.clamp_min, aten.gelu, aten.upsample_bilinear2d),
)
REDUCTIONS = (aten.sum, aten.mean, aten.linalg_vector_norm, aten._softmax)
_FORMULAS: dict[Any, Callable[..., int]] = dict.fromkeys(POINTWISE, _of_output) | dict.fromkeys(REDUCTIONS, _of_input)


@dataclass(frozen=True)
class ProbeCost:
    """What a head costs.

    Attributes:
        parameters: Number of learnt numbers.
        flops: Floating-point operations on one image; see `probe_cost` for what counts.
    """

    parameters: int
    flops: int


def probe_cost(
    probe: nn.Module, channels: int, grid: Grid | Mapping[int, Grid], num_timesteps: int | None = None
) -> ProbeCost:
    """Parameters and floating-point operations of a head on one image.

    Multiplications and additions of convolutions and matrix products count one each, as PyTorch's `FlopCounterMode`
    does. Beside that, arithmetic counts one per element of its result, and a reduction (mean, norm, softmax) one per
    element of its input. What copies or arranges counts nothing. The head runs once; it may be on the device "meta".

    Args:
        probe: The head; its attribute `blocks` says what it takes.
        channels: Width C of the features.
        grid: (h, w) of its input, or block to (h, w).
        num_timesteps: T, for a head that takes each timestep; its attribute of that name by default.

    Raises:
        InputError: The number of timesteps is not known.
    """
    features = _features(probe, channels, grid, num_timesteps)
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter, torch.no_grad():
        probe(features)
    return ProbeCost(sum(parameter.numel() for parameter in probe.parameters()), int(counter.get_total_flops()))


def probe_latency(
    probe: nn.Module,
    channels: int,
    grid: Grid | Mapping[int, Grid],
    num_timesteps: int | None = None,
    *,
    runs: int = 10,
    warmup: int = 2,
) -> float:
    """Time that a head takes for one image, on the device where it is.

    Args:
        probe: As in `probe_cost`.
        channels: As in `probe_cost`.
        grid: As in `probe_cost`.
        num_timesteps: As in `probe_cost`.
        runs: Number of measured runs.
        warmup: Number of runs before them.

    Returns:
        The median, in milliseconds.

    Raises:
        InputError: The number of timesteps is not known, no run, or fewer than none before them.
    """
    if runs < 1:
        raise InputError("runs", runs, "measure at least one run")
    if warmup < 0:
        raise InputError("warmup", warmup, "use 0 or more")
    features = _features(probe, channels, grid, num_timesteps)
    device = next(iter(features.values())).device
    times = []
    with torch.no_grad():
        for _ in range(warmup + runs):
            _synchronise(device)
            start = time.perf_counter()
            probe(features)
            _synchronise(device)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[warmup:])


def _features(
    probe: nn.Module, channels: int, grid: Grid | Mapping[int, Grid], num_timesteps: int | None
) -> dict[int, Tensor]:
    """Random features of one image where the head is, whatever the state of the random generators."""
    steps: tuple[int, ...] = ()
    if takes_timesteps(probe):
        known = getattr(probe, "num_timesteps", None) if num_timesteps is None else num_timesteps
        if known is None:
            raise InputError("num_timesteps", None, "say how many timesteps this head takes")
        steps = (known,)
    like = next(probe.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    found = {}
    for block in _blocks(probe):
        height, width = grid[block] if isinstance(grid, Mapping) else grid
        found[block] = torch.randn(1, *steps, channels, height, width, generator=generator).to(like)
    return found


def _blocks(probe: nn.Module) -> list[int]:
    blocks: Any = probe.blocks
    return list(blocks)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
