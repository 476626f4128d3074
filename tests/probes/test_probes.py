from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ditf_probe.errors import InputError
from ditf_probe.probes import (
    LayerAggregation,
    LinearProbe,
    ProbeFacts,
    describe_probe,
    load_probe,
    load_weights,
    read_facts,
    save_probe,
)

BLOCKS = [1, 4]


def features(channels: int = 6, grid: tuple[int, int] = (3, 5)) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {block: torch.randn(2, channels, *grid, generator=generator) for block in (*BLOCKS, 7)}


def facts_of(probe: nn.Module) -> ProbeFacts:
    return describe_probe(probe, features={"timestep": 260}, backbone={"name": "tiny"}, training={"epoch": 3})


def test_linear_probe_is_the_sum_of_one_matrix_per_layer() -> None:
    probe = LinearProbe(6, BLOCKS, width=4)
    maps = features()
    expected = torch.zeros(2, 4, 3, 5)
    for b in range(2):
        for y in range(3):
            for x in range(5):
                for block in BLOCKS:
                    layer = probe.projections[str(block)]
                    expected[b, :, y, x] += layer.weight[:, :, 0, 0] @ maps[block][b, :, y, x] + layer.bias
    torch.testing.assert_close(probe(maps), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalisation", ["layer_norm", "l2"])
def test_aggregation_is_a_softmax_weighted_sum_of_normalised_projected_layers(normalisation: str) -> None:
    probe = LayerAggregation(6, BLOCKS, width=4, normalisation=normalisation)  # type: ignore[arg-type]
    with torch.no_grad():
        probe.mixture.copy_(torch.tensor([0.03, -0.12]))  # ten times as much in the softmax
    maps = features()
    weights = torch.tensor([0.3, -1.2]).exp()
    weights = weights / weights.sum()
    expected = torch.zeros(2, 4, 3, 5)
    for b in range(2):
        for y in range(3):
            for x in range(5):
                for weight, block in zip(weights, BLOCKS, strict=True):
                    token = maps[block][b, :, y, x]
                    if normalisation == "l2":
                        token = token / token.norm()
                    else:
                        token = (token - token.mean()) / (token.var(unbiased=False) + 1e-6).sqrt()
                    layer = probe.projections[str(block)]
                    expected[b, :, y, x] += weight * (layer.weight[:, :, 0, 0] @ token + layer.bias)
    torch.testing.assert_close(probe(maps), expected, atol=1e-5, rtol=1e-5)
    assert probe.layer_weights() == pytest.approx(dict(zip(BLOCKS, weights.tolist(), strict=True)))


def weights_after_a_training(rate: float) -> list[float]:
    """Two views of 64 tokens are to be matched; one block shows them with little noise, the other shows only noise."""
    torch.manual_seed(0)
    tokens, probe = torch.randn(64, 6), LayerAggregation(6, BLOCKS, width=6, rate=rate)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3)
    for _ in range(200):
        views = (tokens + 0.5 * torch.randn(2, 64, 6)).transpose(1, 2).unsqueeze(2)  # (B, C, 1, 64)
        first, second = F.normalize(probe({1: views, 4: torch.randn(2, 6, 1, 64)}), dim=1).squeeze(2)
        loss = F.cross_entropy(first.T @ second / 0.1, torch.arange(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return list(probe.layer_weights().values())


def test_weights_come_apart_within_a_training() -> None:
    useful, noise = weights_after_a_training(rate=10.0)
    assert useful > 4 * noise
    useful, noise = weights_after_a_training(rate=1.0)
    assert noise < useful < 2 * noise, "a softmax over the weights themselves hardly moves"


@pytest.mark.parametrize(
    "probe", [LinearProbe(6, BLOCKS, 4), LayerAggregation(6, BLOCKS, 4)], ids=["linear", "mixture"]
)
def test_gradient_reaches_every_parameter(probe: nn.Module) -> None:
    probe(features()).square().sum().backward()
    for name, parameter in probe.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_projections_start_semi_orthogonal() -> None:
    weight = LinearProbe(6, [1], width=4).projections["1"].weight[:, :, 0, 0]
    torch.testing.assert_close(weight @ weight.T, torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [LinearProbe, LayerAggregation])
def test_wrong_input_is_named(kind: type[LinearProbe | LayerAggregation]) -> None:
    with pytest.raises(InputError, match="needs block 4"):
        kind(6, BLOCKS)({1: torch.zeros(1, 6, 2, 2)})
    with pytest.raises(InputError, match=r"9 channels at block 1.*made for 6"):
        kind(6, BLOCKS)(features(channels=9))
    for blocks in ([], [-1], [2, 2]):
        with pytest.raises(InputError, match="blocks"):
            kind(6, blocks)
    with pytest.raises(InputError, match="width"):
        kind(6, BLOCKS, width=0)


def test_folder_round_trip(tmp_path: Path) -> None:
    probe = LayerAggregation(6, BLOCKS, width=4, normalisation="l2")
    with torch.no_grad():
        probe.mixture.normal_()
    save_probe(tmp_path / "p", probe.state_dict(), facts_of(probe))
    again, facts = load_probe(tmp_path / "p")
    assert facts == facts_of(probe)
    assert isinstance(again, LayerAggregation)
    assert not again.training
    assert torch.equal(again(features()), probe(features()))
    assert yaml.safe_load((tmp_path / "p" / "probe.yaml").read_text())["init_args"]["blocks"] == BLOCKS
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["probe.safetensors", "probe.yaml"]


def test_failed_write_leaves_the_older_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = LinearProbe(6, BLOCKS, width=4)
    save_probe(tmp_path, probe.state_dict(), facts_of(probe))

    def killed(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr("ditf_probe.probes.folder.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save_probe(tmp_path, LinearProbe(6, BLOCKS, width=4).state_dict(), facts_of(probe))
    again, _ = load_probe(tmp_path)
    assert torch.equal(again(features()), probe(features()))
    assert len(list(tmp_path.iterdir())) == 2


def test_warm_start_copies_or_names_the_widths(tmp_path: Path) -> None:
    probe = LinearProbe(6, BLOCKS, width=4)
    save_probe(tmp_path, probe.state_dict(), facts_of(probe))
    other = LinearProbe(6, BLOCKS, width=4)
    load_weights(other, tmp_path)
    assert torch.equal(other(features()), probe(features()))
    with pytest.raises(InputError, match=r"\(4,\) there and \(8,\) here"):
        load_weights(LinearProbe(6, BLOCKS, width=8), tmp_path)
    with pytest.raises(InputError, match="mixture"):
        load_weights(LayerAggregation(6, BLOCKS, width=4), tmp_path)


def test_broken_folders_end_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no probe\.safetensors"):
        read_facts(tmp_path)
    (tmp_path / "probe.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(InputError, match="is not a probe"):
        load_probe(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "probe.safetensors")
    with pytest.raises(InputError, match="is not a probe"):
        load_probe(tmp_path)
    probe = LinearProbe(6, BLOCKS, width=4)
    for path in ("ditf_probe.probes.linear.Gone", "no_such_package.Head", "Head"):
        save_probe(tmp_path, probe.state_dict(), ProbeFacts(path, {}, {}, {}, {}))
        with pytest.raises(InputError, match=f"{path} is not here"):
            load_probe(tmp_path)
    save_probe(tmp_path, probe.state_dict(), replace(facts_of(probe), init_args={"channels": 6}))
    with pytest.raises(InputError, match="LinearProbe cannot be built"):
        load_probe(tmp_path)
    poisoned = {name: torch.full_like(value, float("nan")) for name, value in probe.state_dict().items()}
    save_probe(tmp_path, poisoned, facts_of(probe))
    with pytest.raises(InputError, match="NaN"):
        load_probe(tmp_path)


def test_what_a_folder_names_is_not_called_unless_it_is_a_module(tmp_path: Path) -> None:
    made = tmp_path / "made"
    save_probe(tmp_path / "p", {"a": torch.zeros(1)}, ProbeFacts("os.mkdir", {"path": str(made)}, {}, {}, {}))
    with pytest.raises(InputError, match=r"os\.mkdir is no torch module"):
        load_probe(tmp_path / "p")
    assert not made.exists()


def test_a_probe_that_hides_its_arguments_is_refused() -> None:
    class Forgetful(nn.Module):
        def __init__(self, channels: int, depth: int) -> None:
            super().__init__()
            self.channels = channels

    with pytest.raises(InputError, match="depth"):
        facts_of(Forgetful(3, 2))
