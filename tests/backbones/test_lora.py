"""LoRA inside the last tapped blocks of a very small transformer."""

from importlib import util
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ditf_probe.backbones.base import Backbone, Tap
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.spec import tiny_spec
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.probes import LinearProbe, LoraSettings, LoraWeights, attach, load_probe, lora_of
from ditf_probe.probes.folder import FACTS, describe_probe, save_probe

pytest.importorskip("peft", reason="adapts the layers: pip install peft")
from ditf_probe.backbones.lora import LoraBackbone, fresh_weights

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """FLUX of width 16: blocks 0 and 1 with two streams, 2 and 3 with one."""
    spec = tiny_spec("flux", ["a", "b"], width=16, head_dim=8, blocks=4, double_blocks=2, image_size=32)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    TinyDenoiser.untrained(spec, seed=1).save(path)
    return load_backbone(str(path), device="cpu")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def paths(weights: LoraWeights) -> list[str]:
    return [path.partition("blocks.")[2] for path in weights.layers]


def stirred(weights: LoraWeights) -> LoraWeights:
    with torch.no_grad():
        for up in weights.up:
            up.normal_(generator=torch.Generator().manual_seed(len(up)))
    return weights


@pytest.mark.parametrize(
    ("blocks", "tap", "count", "expected"),
    [
        ([1], "mlp", 1, [f"1.attn.{name}" for name in ATTENTION]),
        ([1], "attention", 1, [f"0.attn.{name}" for name in ATTENTION]),  # block 1 has not begun by then
        ([1], "key", 1, ["1.attn.to_k"]),
        ([0, 3], "attention", 1, [f"0.attn.{name}" for name in ATTENTION[:3]]),  # single blocks have no to_out.0
        ([1], "mlp", 2, [f"{block}.attn.{name}" for block in (0, 1) for name in ATTENTION]),
    ],
)
def test_the_layers_that_the_tap_depends_on(
    backbone: Backbone, images: Tensor, blocks: list[int], tap: Tap, count: int, expected: list[str]
) -> None:
    weights = fresh_weights(backbone, LoraSettings(blocks=count), blocks, tap)
    assert paths(weights) == expected
    # What does not reach the tap would get no gradient.
    tapped = LoraBackbone(backbone, stirred(weights))(images, blocks=blocks, timestep=200, tap=tap)
    tapped[max(blocks)].hidden_states.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights.parameters())


def test_a_fresh_adapter_changes_no_bit(backbone: Backbone, images: Tensor) -> None:
    weights = fresh_weights(backbone, LoraSettings(), [1], "mlp")
    adapted = LoraBackbone(backbone, weights)
    frozen, own = (FeatureExtractor(x, blocks=[1], timestep=[50, 200])(images)[1] for x in (backbone, adapted))
    assert torch.equal(frozen, own)
    assert not frozen.requires_grad
    assert own.requires_grad
    stirred(weights)
    assert not torch.allclose(frozen, FeatureExtractor(adapted, blocks=[1], timestep=[50, 200])(images)[1])
    assert torch.equal(frozen, FeatureExtractor(backbone, blocks=[1], timestep=[50, 200])(images)[1])


def test_it_computes_what_merged_weights_do(backbone: Backbone, images: Tensor) -> None:
    """alpha / r * up down, added to the matrix itself."""
    settings = LoraSettings(rank=3, alpha=6.0, targets=["to_q", "to_out.0"])
    weights = stirred(fresh_weights(backbone, settings, [1], "mlp"))
    assert [tuple(x.shape) for x in weights.down] == [(3, 16)] * 2
    found = LoraBackbone(backbone, weights)(images, blocks=[1], timestep=200)[1].hidden_states
    model = backbone
    kept = {path: model.transformer.get_submodule(path).weight.clone() for path in weights.layers}
    try:
        with torch.no_grad():
            for path, down, up in zip(weights.layers, weights.down, weights.up, strict=True):
                model.transformer.get_submodule(path).weight += 2 * up @ down
        expected = model(images, blocks=[1], timestep=200)[1].hidden_states
    finally:
        with torch.no_grad():
            for path, weight in kept.items():
                model.transformer.get_submodule(path).weight.copy_(weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_adapters_alone(backbone: Backbone, images: Tensor) -> None:
    before = {name: weight.clone() for name, weight in backbone.named_parameters()}
    weights = stirred(fresh_weights(backbone, LoraSettings(), [1], "mlp"))
    adapted = LoraBackbone(backbone, weights)
    assert {id(x) for x in adapted.parameters() if x.requires_grad} == {id(x) for x in weights.parameters()}
    optimiser = torch.optim.SGD([x for x in adapted.parameters() if x.requires_grad], lr=0.01)
    losses = []
    for _ in range(5):
        features = FeatureExtractor(adapted, blocks=[1], timestep=200)(images)[1]
        loss = features[:, 0].square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses == sorted(losses, reverse=True)
    assert all(torch.equal(weight, before[name]) for name, weight in backbone.named_parameters())
    assert all(x.grad is None for x in backbone.parameters())
    # The numeric derivative, along one adapter.
    up = weights.up[0]
    loss = FeatureExtractor(adapted, blocks=[1], timestep=200)(images)[1][:, 0].square().mean()
    (gradient,) = torch.autograd.grad(loss, up)
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            up += sign * 1e-2 * gradient / gradient.norm()
            ends.append(float(FeatureExtractor(adapted, blocks=[1], timestep=200)(images)[1][:, 0].square().mean()))
            up -= sign * 1e-2 * gradient / gradient.norm()
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(gradient.norm()), rel=0.02)


def test_a_head_carries_its_adapters_to_disk_and_back(backbone: Backbone, images: Tensor, tmp_path: Path) -> None:
    head = LinearProbe(16, [1], 8)
    weights = stirred(fresh_weights(backbone, LoraSettings(rank=2), [1], "mlp"))
    attach(head, weights)
    settings = LoraBackbone(backbone, weights).settings()
    assert settings["lora"]["rank"] == 2
    assert settings["weights_sha256"] == backbone.settings()["weights_sha256"]
    save_probe(tmp_path, head.state_dict(), describe_probe(head, features={}, backbone=settings, training={}))
    again, facts = load_probe(tmp_path)
    found = lora_of(again)
    assert found is not None
    assert facts.lora == weights.facts()
    assert "to_q" in (tmp_path / FACTS).read_text()
    one, other = (
        LoraBackbone(backbone, x)(images, blocks=[1], timestep=200)[1].hidden_states for x in (weights, found)
    )
    assert torch.equal(one, other)
    assert LoraBackbone(backbone, found).settings() == settings
    with pytest.raises(InputError, match="rename it"):
        attach(again, weights)


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"targets": ["to_z"]}, r"lora.targets.*attn.to_q"),
        ({"blocks": 3}, "lora.blocks.*only 2 blocks"),
        ({"rank": 0}, "lora.rank"),
        ({"blocks": 0}, "lora.blocks"),
        ({"alpha": 0.0}, "lora.alpha"),
        ({"targets": []}, "lora.targets"),
    ],
)
def test_what_cannot_be_is_refused(backbone: Backbone, settings: dict, remedy: str) -> None:
    with pytest.raises(InputError, match=remedy):
        fresh_weights(backbone, LoraSettings(**settings), [1], "mlp")


def test_other_backbones_are_refused(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = fresh_weights(backbone, LoraSettings(), [1], "mlp")
    facts = weights.facts()
    for change in ({"layers": ["a", *facts["layers"][1:]]}, {"widths": [[8, 16], *facts["widths"][1:]]}):
        with pytest.raises(InputError, match=r"lora\.layers"):
            LoraBackbone(backbone, LoraWeights(**(facts | change)))

    class Other(Backbone):
        name, num_blocks = "other", 1
        taps = settings = forward = None

    with pytest.raises(InputError, match="diffusers transformer"):
        LoraBackbone(Other(), weights)
    monkeypatch.setattr(backbone, "quantization", "int8")
    with pytest.raises(InputError, match="unquantised"):
        LoraBackbone(backbone, weights)


def test_without_peft_it_is_refused(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    real = util.find_spec
    monkeypatch.setattr("ditf_probe.backbones.lora.find_spec", lambda name: None if name == "peft" else real(name))
    with pytest.raises(InputError, match=r"pip install 'ditf_probe\[lora\]'"):
        fresh_weights(backbone, LoraSettings(), [1], "mlp")
