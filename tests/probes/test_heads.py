"""Heads against slow references: one token at a time, by the formulas of their docstrings."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ditf_probe.errors import InputError
from ditf_probe.probes import (
    BottleneckProbe,
    ChannelGate,
    LayerAggregation,
    LinearProbe,
    LowRankAdapter,
    Probe,
    TimestepAggregation,
    describe_probe,
    load_probe,
    penalty_of,
    remarks_of,
    save_probe,
    takes_timesteps,
)

BLOCKS, CHANNELS, STEPS = [4, 1], 6, 3
Head = Callable[[list[int]], Probe]
HEADS: dict[str, Head] = {
    "gate": lambda blocks: ChannelGate(CHANNELS, blocks, l1=0.1),
    "linear": lambda blocks: LinearProbe(CHANNELS, blocks, width=5),
    "bottleneck": lambda blocks: BottleneckProbe(CHANNELS, blocks, width=5),
    "low_rank": lambda blocks: LowRankAdapter(CHANNELS, blocks, rank=2),
    "layers": lambda blocks: LayerAggregation(CHANNELS, blocks, width=8, layer_projection="bottleneck"),
    "layers_and_timesteps": lambda blocks: LayerAggregation(CHANNELS, blocks, width=8, num_timesteps=STEPS),
    "convolution": lambda blocks: TimestepAggregation(CHANNELS, blocks, STEPS, "convolution", width=4),
    "attention": lambda blocks: TimestepAggregation(CHANNELS, blocks, STEPS, "attention", width=4),
    "softmax": lambda blocks: TimestepAggregation(CHANNELS, blocks, STEPS, "softmax"),
}
EXACT = ("gate", "bottleneck", "low_rank", "convolution", "attention", "softmax")


def maps_for(probe: nn.Module, grid: tuple[int, int] = (3, 4), batch: int = 2) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(0)
    steps = (STEPS,) if takes_timesteps(probe) else ()
    return {block: torch.randn(batch, *steps, CHANNELS, *grid, generator=generator) for block in (*BLOCKS, 7)}


def shaken(head: Head, blocks: list[int], seed: int = 0) -> Probe:
    """A head whose every parameter has left its initialisation."""
    torch.manual_seed(seed)
    probe = head(blocks)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return probe


def normed(token: Tensor) -> Tensor:
    return (token - token.mean()) / (token.var(unbiased=False) + 1e-6).sqrt()


def spread(token: Tensor) -> Tensor:
    return (token.var(unbiased=False) + 1e-6).sqrt()


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution of one token."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    found = weight.flatten(1) @ x
    return found + bias if isinstance(bias, Tensor) else found


def bottleneck(branch: nn.Module, x: Tensor, row: int, column: int) -> Tensor:
    """The branch at one token of `(C, h, w)`, neighbours beyond the border being the outermost tokens."""
    _, height, width = x.shape
    total = branch.mix.bias.clone()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            y, z = min(max(row + dy, 0), height - 1), min(max(column + dx, 0), width - 1)
            total = total + branch.mix.weight[:, :, dy + 1, dx + 1] @ gelu(dense(branch.reduce, normed(x[:, y, z])))
    return spread(x[:, row, column]) * dense(branch.expand, gelu(total))


def convolved(residual: nn.Module, steps: Tensor) -> Tensor:
    """From the features of one token at each timestep `(T, C)`."""
    reduced = [gelu(dense(residual.reduce, normed(step))) for step in steps]
    total = torch.zeros(len(residual.readout))
    for t in range(len(steps)):
        found = residual.convolve.bias.clone()
        for k in (-1, 0, 1):
            if 0 <= t + k < len(steps):
                found = found + residual.convolve.weight[:, :, k + 1, 0, 0] @ reduced[t + k]
        total = total + residual.readout[:, t] * gelu(found)
    return spread(steps.mean(0)) * dense(residual.expand, total)


def attended(residual: nn.Module, steps: Tensor) -> Tensor:
    tokens = [dense(residual.reduce, normed(step)) + residual.positions[:, t] for t, step in enumerate(steps)]
    asked = dense(residual.query, torch.stack(tokens).mean(0))
    scores = torch.stack([asked @ dense(residual.key, token) / math.sqrt(len(asked)) for token in tokens]).exp()
    answer = sum(
        score / scores.sum() * dense(residual.value, token) for score, token in zip(scores, tokens, strict=True)
    )
    return spread(steps.mean(0)) * dense(residual.expand, gelu(answer))


def weighted(residual: nn.Module, steps: Tensor) -> Tensor:
    weights = residual.logits.exp() / residual.logits.exp().sum()
    return sum(weight * step for weight, step in zip(weights, steps, strict=True)) - steps.mean(0)


def slow(name: str, probe: Probe, block: int, layer: Tensor, row: int, column: int) -> Tensor:
    """What a head makes of one block at one token of one image, `(C, h, w)` or `(T, C, h, w)`."""
    x, key = layer[..., row, column], str(block)
    if name == "gate":
        return x * (1 + 10 * probe.weights[key])
    if name == "bottleneck":
        return x + bottleneck(probe.branches[key], layer, row, column)
    if name == "low_rank":
        return x + probe.up[key].weight[:, :, 0, 0] @ (probe.down[key].weight[:, :, 0, 0] @ x)
    course = {"convolution": convolved, "attention": attended, "softmax": weighted}[name]
    return x.mean(0) + course(probe.residuals[key], x)


@pytest.mark.parametrize("blocks", [[4], BLOCKS], ids=["one block", "two blocks"])
@pytest.mark.parametrize("name", EXACT)
@torch.no_grad()
def test_residual_heads_equal_their_formulas(name: str, blocks: list[int]) -> None:
    probe = shaken(HEADS[name], blocks)
    maps = maps_for(probe)
    found = probe(maps)
    for b in range(2):
        for row in range(3):
            for column in range(4):
                parts = [slow(name, probe, block, maps[block][b], row, column) for block in blocks]
                if len(parts) > 1:
                    parts = [part / part.norm() for part in parts]
                torch.testing.assert_close(found[b, :, row, column], torch.cat(parts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["layers", "layers_and_timesteps"])
@torch.no_grad()
def test_mixtures_with_bottlenecks_and_timesteps(name: str) -> None:
    probe = shaken(HEADS[name], BLOCKS)
    assert isinstance(probe, LayerAggregation)
    maps = maps_for(probe)
    found, mixture = probe(maps), (10 * probe.mixture).exp() / (10 * probe.mixture).exp().sum()
    steps = STEPS if probe.per_timestep else 1
    for row in range(3):
        for column in range(4):
            expected = torch.zeros(8)
            for t in range(steps):
                for number, block in enumerate(BLOCKS):
                    layer = maps[block][1, t] if probe.per_timestep else maps[block][1]
                    token = dense(probe.projections[str(block)], normed(layer[:, row, column]))
                    if name == "layers":
                        rows = [[normed(layer[:, y, x]) for x in range(4)] for y in range(3)]
                        whole = torch.stack([torch.stack(tokens, 1) for tokens in rows], 1)
                        token = token + bottleneck(probe.branches[str(block)], whole, row, column)
                    expected += mixture[t * len(BLOCKS) + number] * token
            torch.testing.assert_close(found[1, :, row, column], expected, rtol=1e-3, atol=1e-4)
    by_step = mixture.reshape(steps, 2)
    assert probe.layer_weights() == pytest.approx(dict(zip(BLOCKS, by_step.sum(0).tolist(), strict=True)))
    assert probe.timestep_weights() == pytest.approx(by_step.sum(1).tolist())


@pytest.mark.parametrize("name", HEADS)
def test_fresh_heads_start_at_zero_shot_where_they_say_so(name: str) -> None:
    for blocks in ([4], BLOCKS):
        probe = HEADS[name](blocks)
        maps = maps_for(probe)
        assert probe.starts_at_zero_shot == (name in EXACT and len(blocks) == 1)
        zero_shot = [maps[block].mean(1) if probe.per_timestep else maps[block] for block in blocks]
        if probe.starts_at_zero_shot:
            assert torch.equal(probe(maps), zero_shot[0])
        elif name in EXACT:
            cosines = [torch.cosine_similarity(x[0], x[1], dim=0) for x in (probe(maps), *zero_shot)]
            torch.testing.assert_close(cosines[0], (cosines[1] + cosines[2]) / 2)


@pytest.mark.parametrize("name", EXACT)
@torch.no_grad()
def test_residual_heads_follow_the_scale_of_their_features(name: str) -> None:
    """So that a learning rate means the same for streams of any scale."""
    probe = shaken(HEADS[name], [4])
    maps = maps_for(probe)
    torch.testing.assert_close(probe({4: 100 * maps[4]}), 100 * probe(maps), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_pointwise_heads_and_they_alone_act_on_each_token_alone(name: str) -> None:
    probe = shaken(HEADS[name], BLOCKS)
    maps = maps_for(probe)
    changed = {block: layer.clone() for block, layer in maps.items()}
    for layer in changed.values():
        layer[..., 1, 1] += torch.linspace(0, 2, CHANNELS)
    moved = (probe(maps) - probe(changed)).abs().amax((0, 1)) > 1e-6
    assert bool(moved[1, 1])
    assert (int(moved.sum()) == 1) == probe.pointwise == (name not in ("bottleneck", "layers"))


@pytest.mark.parametrize("name", HEADS)
def test_gradients_reach_every_parameter_and_fresh_ones_are_defined(name: str) -> None:
    for probe in (HEADS[name](BLOCKS), shaken(HEADS[name], BLOCKS)):
        loss = (probe(maps_for(probe)) * torch.linspace(-1, 1, 4)).square().sum() + (penalty_of(probe) or 0)
        loss.backward()
        assert all(parameter.grad is not None for parameter in probe.parameters())
    for parameter_name, parameter in probe.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, parameter_name


@pytest.mark.parametrize("name", HEADS)
def test_half_precision_loses_digits_only(name: str) -> None:
    """As in a training in bfloat16: features are rounded, weights are not, and norms are taken in float32."""
    probe = shaken(HEADS[name], BLOCKS)
    maps = {block: 30 * layer for block, layer in maps_for(probe).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = probe({block: layer.bfloat16() for block, layer in maps.items()})
    expected = probe(maps)
    assert float(((found.float() - expected).norm() / expected.norm()).detach()) < 0.02
    found.float().square().sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in probe.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_folder_round_trip(name: str, tmp_path: Path) -> None:
    probe = shaken(HEADS[name], BLOCKS)
    facts = describe_probe(probe, features={"blocks": BLOCKS}, backbone={}, training={})
    save_probe(tmp_path, probe.state_dict(), facts)
    again, found = load_probe(tmp_path)
    assert (type(again), found) == (type(probe), facts)
    maps = maps_for(probe)
    assert torch.equal(again(maps), probe(maps))


class AllHeads(nn.Module):
    """Every head over the same maps: one export in place of nine, which takes long."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(shaken(head, BLOCKS) for head in HEADS.values())

    def forward(self, steps: tuple[Tensor, Tensor]) -> list[Tensor]:
        found = []
        for head in self.heads:
            maps = steps if takes_timesteps(head) else [step.mean(1) for step in steps]
            found.append(head(dict(zip(BLOCKS, maps, strict=True))))
        return found


@torch.no_grad()
def test_heads_can_be_exported_for_any_batch_and_grid() -> None:
    heads = AllHeads().eval()
    maps, others = (
        tuple(torch.randn(batch, STEPS, CHANNELS, *grid) for _ in BLOCKS) for batch, grid in ((2, (3, 4)), (3, (5, 7)))
    )
    batch, height, width = (torch.export.Dim(word, min=2, max=256) for word in ("batch", "height", "width"))
    shape = {0: batch, 3: height, 4: width}
    exported = torch.export.export(heads, (maps,), dynamic_shapes={"steps": (shape, shape)}).module()
    for found, expected in zip(exported(others), heads(others), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_blocks_of_other_grids_come_to_the_finest(name: str) -> None:
    probe = shaken(HEADS[name], BLOCKS)
    maps = maps_for(probe)
    coarse = {4: maps[4][..., ::3, ::2], 1: maps[1]}
    layer = coarse[4].flatten(0, -4)
    fine = nn.functional.interpolate(layer, size=(3, 4), mode="bilinear").reshape(maps[4].shape)
    assert torch.equal(probe(coarse), probe({4: fine, 1: maps[1]}))


@pytest.mark.parametrize("name", HEADS)
def test_wrong_input_is_named(name: str) -> None:
    probe = HEADS[name](BLOCKS)
    maps = maps_for(probe)
    with pytest.raises(InputError, match="needs block 1"):
        probe({4: maps[4]})
    axis = 2 if probe.per_timestep else 1
    wide = torch.cat([maps[4], maps[4]], dim=axis)
    with pytest.raises(InputError, match=r"12 channels at block 4.*made for 6"):
        probe(maps | {4: wide})
    if probe.per_timestep:
        with pytest.raises(InputError, match="per_timestep=True"):
            probe(maps | {4: maps[4][:, 0]})
        with pytest.raises(InputError, match=r"2 timesteps at block 4.*made for 3"):
            probe(maps | {4: maps[4][:, :2]})
    else:
        with pytest.raises(InputError, match="per_timestep=False"):
            probe(maps | {4: maps[4][:, None]})


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: ChannelGate(0, [1]), "channels"),
        (lambda: ChannelGate(6, [1], l1=-1.0), "l1"),
        (lambda: ChannelGate(6, [1], l1=math.nan), "l1"),
        (lambda: ChannelGate(6, [1], threshold=1.0), "threshold"),
        (lambda: ChannelGate(6, [1], rate=0.0), "rate"),
        (lambda: LayerAggregation(6, [1], rate=float("inf")), "rate"),
        (lambda: BottleneckProbe(6, [1], width=0), "width"),
        (lambda: BottleneckProbe(6, [1, 1]), "blocks"),
        (lambda: LowRankAdapter(6, [1], rank=0), "rank"),
        (lambda: LowRankAdapter(6, [1], rank=7), "rank"),
        (lambda: LayerAggregation(6, [1], layer_projection="deep"), "layer_projection"),
        (lambda: LayerAggregation(6, [1], normalisation="none"), "normalisation"),
        (lambda: LayerAggregation(6, [1], num_timesteps=0), "num_timesteps"),
        (lambda: LayerAggregation(6, [1], width=3, layer_projection="bottleneck"), "width"),
        (lambda: TimestepAggregation(6, [1], 0), "num_timesteps"),
        (lambda: TimestepAggregation(6, [1], 3, "lstm"), "mode"),
        (lambda: TimestepAggregation(6, [1], 3, kernel_size=2), "kernel_size"),
        (lambda: TimestepAggregation(6, [1], 3, width=0), "width"),
    ],
)
def test_arguments_that_cannot_work_are_named(build: Callable[[], Probe], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        build()
    assert caught.value.argument == argument


@torch.no_grad()
def test_convolution_and_attention_know_the_order_of_timesteps_and_softmax_treats_all_tokens_alike() -> None:
    for name in ("convolution", "attention"):
        probe = shaken(HEADS[name], [4])
        maps = maps_for(probe)
        assert float((probe(maps) - probe({4: maps[4].flip(1)})).abs().max()) > 1e-3
    probe = shaken(HEADS["softmax"], [4])
    maps = maps_for(probe)
    backwards = shaken(HEADS["softmax"], [4])
    backwards.residuals["4"].logits.copy_(probe.residuals["4"].logits.flip(0))
    torch.testing.assert_close(probe(maps), backwards({4: maps[4].flip(1)}))


def test_weights_of_timesteps_are_those_of_softmax() -> None:
    probe = TimestepAggregation(CHANNELS, BLOCKS, 4, "softmax")
    with torch.no_grad():
        probe.residuals["1"].logits.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).log())
    assert probe.timestep_weights()[1] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert probe.timestep_weights()[4] == [0.25] * 4
    with pytest.raises(InputError, match="mode"):
        TimestepAggregation(CHANNELS, BLOCKS, 4, "attention").timestep_weights()


def test_penalty_sees_ratios_of_scales_only() -> None:
    gate = ChannelGate(4, BLOCKS, l1=0.5)
    penalty = gate.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(0.5)  # its largest value: all scales are equal
    with torch.no_grad():
        gate.weights["4"].copy_((torch.tensor([3.0, 0.0, 0.0, -4.0]) - 1) / 10)
        gate.weights["1"].fill_(-0.099)
        # Mean magnitude 7/4 over the root mean square 5/2, and 1 for the equal ones.
        assert float(gate.penalty()) == pytest.approx(0.5 * (0.7 + 1) / 2)
    assert ChannelGate(4, [1]).penalty() is None
    assert penalty_of(nn.Linear(2, 2)) is None


def test_training_with_the_penalty_closes_the_channels_that_say_nothing() -> None:
    """Two channels tell points apart, the others are noise that is drawn anew in every image."""
    torch.manual_seed(0)
    gate = ChannelGate(CHANNELS, [4], l1=0.3)
    optimiser = torch.optim.Adam(gate.parameters(), lr=0.005)
    for _ in range(120):
        what = torch.randn(1, 2, 4, 4)
        source, target = (torch.cat([what, 2 * torch.randn(1, 4, 4, 4)], 1)[:, [2, 0, 3, 4, 1, 5]] for _ in range(2))
        a, b = (nn.functional.normalize(gate({4: x}), dim=1).flatten(2)[0] for x in (source, target))
        loss = nn.functional.cross_entropy(a.T @ b / 0.1, torch.arange(16))
        optimiser.zero_grad()
        (loss + gate.penalty()).backward()
        optimiser.step()
    found = gate.closed({4: [0, 1, 3], 9: [5]})[4]
    assert (found.closed, found.massive, found.both) == ([0, 2, 3, 5], [0, 1, 3], [0, 3])
    assert gate.remarks({4: [0, 1, 3]}) == ("block 4: 4 of 6 channels closed, 2 of 3 massive",)
    assert gate.remarks() == ("block 4: 4 of 6 channels closed",)


def test_heads_without_remarks_have_none() -> None:
    assert remarks_of(LinearProbe(6, [1])) == remarks_of(nn.Linear(2, 2)) == ()


def test_a_fresh_gate_has_closed_nothing() -> None:
    assert ChannelGate(6, BLOCKS).remarks({4: [], 1: [2]}) == (
        "block 4: 0 of 6 channels closed, 0 of 0 massive",
        "block 1: 0 of 6 channels closed, 0 of 1 massive",
    )


@pytest.mark.parametrize("scale", [0.02, 1.0, 50.0])
def test_a_channel_is_closed_beside_the_others(scale: float) -> None:
    gate = ChannelGate(4, [1], rate=1.0)
    gate.weights["1"].data = scale * torch.tensor([1.0, -1.0, 0.05, 0.2]) - 1
    assert gate.closed()[1].closed == [2]


def test_initial_weights_have_the_scale_that_is_promised() -> None:
    torch.manual_seed(0)
    down = LowRankAdapter(256, [1], rank=64).down["1"].weight
    assert float(down.detach().std()) == pytest.approx(256**-0.5, rel=0.05)
    readout = TimestepAggregation(8, [1], 4).residuals["1"].readout
    assert torch.equal(readout, torch.full_like(readout, 1 / 4))
