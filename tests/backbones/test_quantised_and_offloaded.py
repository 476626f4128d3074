"""Quantised weights: what diffusers is told, and every refusal. Offloading: the same numbers, bit for bit."""

import importlib.metadata
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from ditf_probe.backbones import quantised
from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.quantised import quantization_config
from ditf_probe.errors import InputError

RUN = {"timestep": 260, "image_ids": ["a", "b"]}

pytestmark = pytest.mark.usefixtures("no_gradients")


def randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save_pipeline(name: str, folder: Path) -> Path:
    family = FAMILIES[name]
    randomise(getattr(diffusers, name)(**family.tiny)).save_pretrained(folder / "transformer")
    randomise(getattr(diffusers, family.vae)(**AUTOENCODERS[family.vae].tiny)).save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("FluxTransformer2DModel", tmp_path_factory.mktemp("flux"))


def refused(name: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load_backbone(name, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def run(backbone: Backbone, tap: str) -> dict[int, Any]:
    images = torch.rand(2, 3, 2 * backbone.stride, 3 * backbone.stride, generator=torch.Generator().manual_seed(1))
    blocks = [block for block in range(backbone.num_blocks) if tap in backbone.taps(block)]
    return backbone(images, blocks=blocks, tap=tap, ensemble=2, **RUN) if blocks else {}


def test_offloading_changes_no_number(pipeline: Path) -> None:
    """On the CPU, where "model" leaves every matrix on "meta" outside of its own call; classes take turns."""
    name = json.loads((pipeline / "transformer" / "config.json").read_text())["_class_name"]
    offload = ("model", "group")[list(FAMILIES).index(name) % 2]
    plain = load_backbone(pipeline, device="cpu")
    backbone = load_backbone(pipeline, device="cpu", offload=offload)
    assert backbone.device == torch.device("cpu")
    assert backbone.settings() == plain.settings()
    assert any(p.is_meta for p in backbone.transformer.parameters()) == (offload == "model")
    backbone.to("cpu", torch.float64)  # as a module around it might: an offloaded model moves its weights itself
    for tap in ("attention", "mlp", "query"):
        expected = run(plain, tap)
        for _ in range(2):  # the first pass ended early, in the middle of a block
            found = run(backbone, tap)
            assert expected.keys() == found.keys()
            for block, tapped in expected.items():
                assert torch.equal(tapped.hidden_states, found[block].hidden_states)
                for name in ("shift", "scale", "gate"):
                    value = getattr(tapped, name)
                    assert value is None or torch.equal(value, getattr(found[block], name))


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_a_part(offload: str, flux: Path) -> None:
    plain = load_backbone(flux, device="cpu")
    part = load_backbone(flux, device="cpu", offload=offload, last_block=1, last_tap="mlp")
    images = torch.rand(1, 3, 2 * plain.stride, 2 * plain.stride, generator=torch.Generator().manual_seed(1))
    runs = [b(images, blocks=[1], tap="mlp", timestep=260, image_ids=["a"])[1] for b in (plain, part)]
    assert torch.equal(runs[0].hidden_states, runs[1].hidden_states)


def test_what_cannot_be_offloaded(flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "none, model, group" in refused(flux, offload="disk")
    assert "`offload`" in refused("ditf-tiny", offload="model")
    assert "unquantised" in refused(flux, offload="group", quantization="nf4")
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    assert "pip install accelerate" in refused(flux, offload="model")


@pytest.mark.parametrize(
    ("kind", "package"), [("nf4", "bitsandbytes"), ("int8", "bitsandbytes"), ("fp8", "torchao"), ("gguf", "gguf")]
)
def test_missing_packages(kind: str, package: str, flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    assert f"pip install {package}" in refused(flux, quantization=kind)
    monkeypatch.setattr(quantised, "find_spec", lambda name: None if name == "accelerate" else object())
    assert "pip install accelerate" in refused(flux, quantization=kind)


def test_quantisations_that_cannot_be(flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda name: object())
    assert "nf4, int8, fp8, gguf" in refused(flux, quantization="int4")
    for kind in ("nf4", "int8"):
        assert "not on cpu" in refused(flux, quantization=kind)
        with pytest.raises(InputError, match="not on mps"):
            quantised.check_quantization(kind, torch.device("mps"))
    assert "gguf is for .gguf files" in refused(flux, quantization="gguf")
    file = tmp_path / "flux.gguf"
    file.write_bytes(b"GGUF")
    assert "gguf is for .gguf files" in refused(file, quantization="fp8", config=flux)
    assert "`config`" in refused(file)
    assert "both must be of one model" in refused(file, config=flux)
    assert "no such file" in refused(tmp_path / "missing.gguf", config=flux)
    assert "`quantization`" in refused("ditf-tiny", quantization="fp8")


def test_what_diffusers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.49" if name == "bitsandbytes" else version(name))
    nf4 = quantization_config("nf4", torch.bfloat16)
    assert (nf4.load_in_4bit, nf4.bnb_4bit_quant_type, nf4.bnb_4bit_compute_dtype) == (True, "nf4", torch.bfloat16)
    int8 = quantization_config("int8", torch.bfloat16)
    assert (int8.load_in_8bit, int8.load_in_4bit) == (True, False)
    assert quantization_config("gguf", torch.float16).compute_dtype == torch.float16

    class Float8WeightOnlyConfig:
        """Stands for that of torchao."""

    package, quantization, api = (
        ModuleType(f"torchao{end}") for end in ("", ".quantization", ".quantization.quant_api")
    )
    quantization.Float8WeightOnlyConfig = Float8WeightOnlyConfig
    api.AOBaseConfig = Float8WeightOnlyConfig
    for module in (package, quantization, api):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert isinstance(quantization_config("fp8", torch.bfloat16).quant_type, Float8WeightOnlyConfig)


def test_a_quantised_backbone(flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through diffusers' `from_pretrained`, with the quantiser left out: no package for one is needed here."""
    asked = {}
    original = diffusers.FluxTransformer2DModel.from_pretrained

    def from_pretrained(folder: str, quantization_config: Any = None, **options: Any) -> Any:
        asked.update(options, config=quantization_config)
        return original(folder, **options)

    monkeypatch.setattr(diffusers.FluxTransformer2DModel, "from_pretrained", from_pretrained)
    monkeypatch.setattr(quantised, "find_spec", lambda name: object())
    monkeypatch.setattr(quantised, "quantization_config", lambda kind, dtype: (kind, dtype))
    plain = load_backbone(flux, device="cpu")
    backbone = load_backbone(flux, device="cpu", quantization="fp8", last_block=1)
    assert asked["config"] == ("fp8", torch.float32)
    assert asked["device_map"] == {"": torch.device("cpu")}
    assert backbone.settings() == plain.settings() | {"quantization": "fp8"}
    assert "quantization" not in plain.settings()
    images = torch.rand(1, 3, 2 * plain.stride, 2 * plain.stride, generator=torch.Generator().manual_seed(1))
    runs = [b(images, blocks=[1], tap="mlp", timestep=260, image_ids=["a"])[1] for b in (plain, backbone)]
    torch.testing.assert_close(runs[0].hidden_states, runs[1].hidden_states)
    with pytest.raises(InputError, match="loaded up to block 1"):
        backbone(images, blocks=[2], tap="attention", timestep=260)


def test_a_quantiser_that_fails_is_one_line(flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ImportError("two\nlines")

    monkeypatch.setattr(quantised, "find_spec", lambda name: object())
    monkeypatch.setattr(quantised, "quantization_config", lambda kind, dtype: None)
    monkeypatch.setattr(diffusers.FluxTransformer2DModel, "from_pretrained", fail)
    assert "two lines" in refused(flux, quantization="fp8")


def test_where_an_offloaded_model_computes_is_not_for_users_to_say() -> None:
    assert "is no option" in refused("ditf-tiny", compute_device="cpu")
