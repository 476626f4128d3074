"""Weights that are really quantised, on a CPU: features are those of a model with the dequantised weights."""

from pathlib import Path

import diffusers
import pytest
import torch
from torch import nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.loading import load_backbone

torchao = pytest.importorskip("torchao", reason="quantises the weights: pip install torchao")

IMAGES = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
RUN = {"timestep": 260, "tap": "attention", "image_ids": ["a", "b"]}


def randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    """RGB pixels in patches of 2."""
    model = diffusers.FluxTransformer2DModel(**(FAMILIES["FluxTransformer2DModel"].tiny | {"in_channels": 12}))
    randomise(model).save_pretrained(tmp_path / "flux")
    return tmp_path / "flux"


def quantised_weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    tensors = backbone.transformer.state_dict()
    return {name: tensor for name, tensor in tensors.items() if type(tensor).__module__.startswith("torchao.")}


def assert_dequantised_features(backbone: Backbone, folder: Path, dtype: str, tolerance: float) -> None:
    quantised = quantised_weights(backbone)
    assert "transformer_blocks.0.attn.to_q.weight" in quantised
    plain = load_backbone(folder, device="cpu", dtype=dtype)
    images = {"images": IMAGES, "blocks": [1, 3]}
    before = plain(**images, **RUN)
    plain.transformer.load_state_dict(
        {name: tensor.dequantize().float() for name, tensor in quantised.items()}, strict=False
    )
    expected, found = plain(**images, **RUN), backbone(**images, **RUN)
    for block in (1, 3):
        error = (found[block].hidden_states.float() - expected[block].hidden_states).abs().max()
        scale = expected[block].hidden_states.abs().max()
        assert error <= tolerance * scale
        assert (before[block].hidden_states - expected[block].hidden_states).abs().max() > 1e-3 * scale


def test_float8_weights(flux: Path) -> None:
    backbone = load_backbone(flux, device="cpu", quantization="fp8")
    assert backbone.settings()["quantization"] == "fp8"
    assert_dequantised_features(backbone, flux, "float32", 1e-5)
    part = load_backbone(flux, device="cpu", quantization="fp8", last_block=1, last_tap="attention")
    runs = [b(IMAGES, blocks=[1], **RUN)[1].hidden_states for b in (backbone, part)]
    assert torch.equal(*runs)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("Float8WeightOnlyConfig", "float32"), ("Int8WeightOnlyConfig", "bfloat16")]
)
def test_a_folder_that_holds_quantised_weights(kind: str, dtype: str, flux: Path, tmp_path: Path) -> None:
    """As diffusers writes it; integers compute in bfloat16."""
    config = diffusers.TorchAoConfig(getattr(torchao.quantization, kind)())
    precision = getattr(torch, dtype)
    place = {"": torch.device("cpu")}  # as a device: the word counts as offloaded, and is not quantised
    model = diffusers.FluxTransformer2DModel.from_pretrained(
        str(flux), quantization_config=config, device_map=place, torch_dtype=precision
    )
    model.save_pretrained(tmp_path / "saved")
    backbone = load_backbone(tmp_path / "saved", device="cpu", dtype=dtype)
    assert backbone.settings()["quantization"] == "saved"
    assert_dequantised_features(backbone, flux, dtype, 1e-5 if dtype == "float32" else 2e-2)
