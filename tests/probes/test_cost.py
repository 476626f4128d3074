"""What heads cost, counted by hand."""

import time
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ditf_probe.errors import InputError
from ditf_probe.probes import (
    BottleneckProbe,
    ChannelGate,
    LayerAggregation,
    LinearProbe,
    LowRankAdapter,
    Probe,
    TimestepAggregation,
)
from ditf_probe.probes.cost import POINTWISE, REDUCTIONS, ProbeCost, probe_cost, probe_latency

C, GRID, N = 10, (3, 4), 12  # channels and tokens
NORM = 2 * C + 1 + 2 * C + 1 + C  # mean, centre, square, mean, epsilon, inverse root, scale: of one token
SPREAD = 2 * C + 2 * C + 2 + C  # mean, centre, square, mean; epsilon, root; and the branch times it


def dense(inputs: int, outputs: int) -> int:
    """Multiplications and additions of a matrix with one token; the bias is part of neither."""
    return 2 * inputs * outputs


def joined(blocks: int) -> int:
    """Length, its least value, and division of every token of every block."""
    return blocks * (2 * C + 1)


@pytest.mark.parametrize(
    ("probe", "parameters", "per_token"),
    [
        (ChannelGate(C, [1]), C, C),
        (ChannelGate(C, [1, 2]), 2 * C, 2 * C + joined(2)),
        (LinearProbe(C, [1], width=5), 55, dense(C, 5)),
        (LinearProbe(C, [1, 2], width=5), 110, 2 * dense(C, 5) + 5),
        (LowRankAdapter(C, [1], rank=3), 60, 2 * dense(C, 3) + C),
        (
            BottleneckProbe(C, [1], width=4),
            (C * 4 + 4) + (4 * 4 * 9 + 4) + (4 * C + C),
            NORM + dense(C, 4) + 4 + 9 * dense(4, 4) + 4 + dense(4, C) + SPREAD + C,
        ),
        (TimestepAggregation(C, [1], 3, "softmax"), 3, 2 * C * 3 + C * 3 + C),
    ],
)
def test_costs_by_hand(probe: Probe, parameters: int, per_token: int) -> None:
    # Once for all tokens: two softmax over three weights and their difference, and scales from the weights of a gate.
    once = 2 * 3 + 3 if isinstance(probe, TimestepAggregation) else 0
    once += 2 * parameters if isinstance(probe, ChannelGate) else 0
    assert probe_cost(probe, C, GRID) == ProbeCost(parameters, per_token * N + once)


def test_per_timestep_projections_cost_once_per_timestep() -> None:
    one, three = (probe_cost(LayerAggregation(C, [1], width=5, num_timesteps=steps), C, GRID).flops for steps in (1, 3))
    # All but adding the first block to nothing (5 numbers per token), and the softmax over one weight per timestep.
    assert three - 3 - 5 * N == 3 * (one - 1 - 5 * N)


HEADS = [
    ChannelGate(C, [1, 2]),
    BottleneckProbe(C, [1, 2]),
    LowRankAdapter(C, [1, 2], 2),
    LayerAggregation(C, [1, 2], 8, "l2", "bottleneck", 3),
    LayerAggregation(C, [1, 2], 8),
    *(TimestepAggregation(C, [1, 2], 3, mode) for mode in ("convolution", "attention", "softmax")),
]


@pytest.mark.parametrize("probe", HEADS, ids=lambda probe: type(probe).__name__)
@torch.no_grad()
def test_every_arithmetic_operation_of_the_heads_is_counted(probe: Probe) -> None:
    """What is not counted is known to copy or arrange only."""
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.add(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    maps = {b: torch.randn(1, *([3] * probe.per_timestep), C, *GRID) for b in (1, 2)}
    with Watch():
        probe(maps)
    arranging = "view _unsafe_view transpose permute unsqueeze squeeze slice select expand detach cat clone copy_"
    arranging += " zeros zeros_like empty_like replication_pad2d"
    counted = {*POINTWISE, *REDUCTIONS, torch.ops.aten.convolution}
    unknown = {op for op in seen - counted if op.__name__.split("::")[-1] not in arranging.split()}
    assert not unknown


def test_grids_of_blocks_may_differ_and_nothing_random_or_real_is_needed() -> None:
    with torch.device("meta"):
        probe = LinearProbe(C, [1, 2], width=5)
    state = torch.get_rng_state()
    assert probe_cost(probe, C, {1: (3, 4), 2: (3, 4)}) == ProbeCost(110, N * (2 * dense(C, 5) + 5))
    assert torch.equal(torch.get_rng_state(), state)
    # Block 2 is brought to the grid of block 1, one operation for each number there.
    assert probe_cost(probe, C, {1: (6, 8), 2: (3, 4)}).flops == 4 * N * (2 * dense(C, 5) + 5 + C)


class Sleeper(nn.Module):
    """A head of one's own; slow in the first runs, and then slower by the run."""

    per_timestep = True

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.runs = [0], 0

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        assert features[0].shape == (1, 4, C, *GRID)
        self.runs += 1
        time.sleep(0.05 if self.runs <= 2 else 0.001)
        return features[0].mean(1)


def test_latency_is_the_median_after_the_warm_up() -> None:
    head = Sleeper()
    found = probe_latency(head, C, GRID, 4, runs=5, warmup=2)
    assert head.runs == 7
    assert found >= 1
    assert probe_cost(head, C, GRID, 4) == ProbeCost(0, 4 * C * N)
    with pytest.raises(InputError, match="num_timesteps"):
        probe_latency(head, C, GRID)
    with pytest.raises(InputError, match="runs"):
        probe_latency(head, C, GRID, 4, runs=0)
    with pytest.raises(InputError, match="warmup"):
        probe_latency(head, C, GRID, 4, warmup=-1)
