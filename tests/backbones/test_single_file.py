"""One file in the layout of Black Forest Labs, written here from a small FLUX, read through diffusers."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders import single_file_model, single_file_utils
from safetensors.torch import save_file
from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.errors import InputError

RUN = {"timestep": 300, "tap": "attention", "image_ids": ["a"]}
IMAGES = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
WIDTH = 32


def small_flux(**options: object) -> nn.Module:
    widths = {"joint_attention_dim": 24, "pooled_projection_dim": 20, "axes_dims_rope": [4, 6, 6]}
    blocks = {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 2, "attention_head_dim": 16}
    model = FluxTransformer2DModel(in_channels=48, guidance_embeds=True, **widths, **blocks, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


# Of diffusers to Black Forest Labs; several names on the left are stacked along the first axis.
LAYERS = {
    ("x_embedder",): "img_in",
    ("context_embedder",): "txt_in",
    **{
        (f"time_text_embed.{ours}.linear_{number}",): f"{theirs}.{layer}"
        for ours, theirs in (
            ("timestep_embedder", "time_in"),
            ("guidance_embedder", "guidance_in"),
            ("text_embedder", "vector_in"),
        )
        for number, layer in ((1, "in_layer"), (2, "out_layer"))
    },
    ("proj_out",): "final_layer.linear",
}
DOUBLE = {
    ("norm1.linear",): "img_mod.lin",
    ("norm1_context.linear",): "txt_mod.lin",
    ("attn.to_q", "attn.to_k", "attn.to_v"): "img_attn.qkv",
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"): "txt_attn.qkv",
    ("attn.to_out.0",): "img_attn.proj",
    ("attn.to_add_out",): "txt_attn.proj",
    ("ff.net.0.proj",): "img_mlp.0",
    ("ff.net.2",): "img_mlp.2",
    ("ff_context.net.0.proj",): "txt_mlp.0",
    ("ff_context.net.2",): "txt_mlp.2",
}
SINGLE = {
    ("norm.linear",): "modulation.lin",
    ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"): "linear1",
    ("proj_out",): "linear2",
}
DOUBLE_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
SINGLE_NORMS = {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}


def original_layout(model: nn.Module) -> dict[str, Tensor]:
    tensors, found = model.state_dict(), {}

    def take(prefix: str, layers: dict[tuple[str, ...], str], into: str) -> None:
        for names, theirs in layers.items():
            for kind in ("weight", "bias"):
                found[f"{into}{theirs}.{kind}"] = torch.cat([tensors.pop(f"{prefix}{name}.{kind}") for name in names])

    take("", LAYERS, "")
    for container, into, layers, norms in (
        ("transformer_blocks", "double_blocks", DOUBLE, DOUBLE_NORMS),
        ("single_transformer_blocks", "single_blocks", SINGLE, SINGLE_NORMS),
    ):
        for number in range(len(model.get_submodule(container))):
            take(f"{container}.{number}.", layers, f"{into}.{number}.")
            for ours, theirs in norms.items():
                found[f"{into}.{number}.{theirs}.scale"] = tensors.pop(f"{container}.{number}.{ours}.weight")
    for kind in ("weight", "bias"):  # scale before shift becomes shift before scale
        scale, shift = tensors.pop(f"norm_out.linear.{kind}").chunk(2)
        found[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    assert not tensors
    return found


@pytest.fixture
def narrow_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter of diffusers has the width of FLUX.1 written into it; the same source at the width of the test."""
    name = "convert_flux_transformer_checkpoint_to_diffusers"
    source = inspect.getsource(getattr(single_file_utils, name))
    assert source.count("inner_dim = 3072") == 1
    scope = dict(vars(single_file_utils))
    exec(source.replace("inner_dim = 3072", f"inner_dim = {WIDTH}"), scope)
    entry = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    monkeypatch.setitem(entry, "checkpoint_mapping_fn", scope[name])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = small_flux()
    model.save_pretrained(tmp_path / "folder")
    save_file(original_layout(model), tmp_path / "flux1.safetensors")
    return tmp_path / "flux1.safetensors"


def assert_same_features(first: Backbone, second: Backbone, blocks: list[int]) -> None:
    runs = [backbone(IMAGES, blocks=blocks, **RUN) for backbone in (first, second)]
    for block in blocks:
        here, there = (run[block] for run in runs)
        assert torch.equal(here.hidden_states, there.hidden_states)
        assert torch.equal(here.shift, there.shift)
        assert torch.equal(here.scale, there.scale)


def test_the_original_layout_gives_the_same_features(file: Path, narrow_converter: None) -> None:
    expected = load_backbone(file.parent / "folder", device="cpu")
    for config in (file.parent / "folder", file.parent / "folder" / "config.json"):
        backbone = load_backbone(file, config=config, device="cpu")
        assert backbone.name == "flux1"
        assert_same_features(backbone, expected, [0, 1, 2, 3, 4])
    theirs = backbone.transformer.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in expected.transformer.state_dict().items())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_gguf(kind: str, file: Path, narrow_converter: None) -> None:
    """Written by the package gguf: the features are those of the weights that the file stands for."""
    gguf = pytest.importorskip("gguf", reason="writes the file and reads it: pip install gguf")
    how = gguf.GGMLQuantizationType[kind]
    writer, meant = gguf.GGUFWriter(str(file.with_suffix(".gguf")), "flux"), {}
    for name, tensor in original_layout(small_flux()).items():
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:  # the size of its blocks
            stored = gguf.quants.quantize(tensor.numpy(), how)
            writer.add_tensor(name, stored, raw_dtype=how)
            meant[name] = torch.from_numpy(gguf.quants.dequantize(stored, how)).half().float()  # as diffusers does
            assert not torch.equal(meant[name], tensor)
        else:
            writer.add_tensor(name, tensor.numpy())
            meant[name] = tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(meant, file)
    config = file.parent / "folder"
    expected = load_backbone(file, config=config, device="cpu")
    for part in ({}, {"last_block": 3, "last_tap": "attention"}):
        backbone = load_backbone(file.with_suffix(".gguf"), config=config, device="cpu", **part)
        assert backbone.settings()["quantization"] == "gguf"
        held = backbone.transformer.transformer_blocks[0].attn.to_q.weight
        assert held.dtype == torch.uint8
        runs = [b(IMAGES, blocks=[0, 3], **RUN) for b in (expected, backbone)]
        for block in (0, 3):
            for name in ("hidden_states", "shift", "scale"):
                found, wanted = (getattr(run[block], name) for run in reversed(runs))
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_up_to_a_block_and_in_bfloat16(file: Path, narrow_converter: None) -> None:
    config = file.parent / "folder"
    part = load_backbone(file, config=config, device="cpu", last_block=2)
    whole = load_backbone(file, config=config, device="cpu")
    assert_same_features(part, whole, [0, 2])
    assert part.settings() == whole.settings()
    with pytest.raises(InputError, match="loaded up to block 2"):
        part(IMAGES, blocks=[3], **RUN)
    half = load_backbone(file, config=config, device="cpu", dtype="bfloat16")
    assert {parameter.dtype for parameter in half.transformer.parameters()} == {torch.bfloat16}
    assert half.settings()["weights_sha256"] == whole.settings()["weights_sha256"]


def test_a_file_in_the_layout_of_diffusers(tmp_path: Path) -> None:
    model = small_flux()
    model.save_pretrained(tmp_path / "pipe" / "transformer")
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    backbone = load_backbone(tmp_path / "mine.safetensors", config=tmp_path / "pipe", device="cpu")
    assert_same_features(backbone, load_backbone(tmp_path / "pipe", device="cpu"), [0, 4])


def refused(name: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load_backbone(name, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_a_single_file_needs(file: Path, narrow_converter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = file.parent / "folder"
    assert "`config` is None" in refused(file)
    assert "config.json" in refused(file)
    assert "no such file or folder" in refused(file, config=file.parent / "elsewhere")
    assert "config.json" in refused(file, config=file.parent)
    assert "`config`" in refused(folder, config=folder)
    assert "`config`" in refused("ditf-tiny", config=folder)
    assert "no such file" in refused(file.parent / "missing.safetensors", config=folder)
    monkeypatch.setattr("ditf_probe.backbones.quantised.find_spec", lambda name: None)
    assert "pip install accelerate" in refused(file, config=folder)


def test_files_that_do_not_fit_the_config(file: Path, narrow_converter: None) -> None:
    config_file = file.parent / "folder" / "config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(config | {"num_single_layers": 4}))
    assert "lacks tensors of a FluxTransformer2DModel" in refused(file, config=config_file)
    config_file.write_text(json.dumps(config | {"num_attention_heads": 3}))
    assert "both must be of one model" in refused(file, config=config_file)
    config_file.write_text(json.dumps(config | {"_class_name": "DiTTransformer2DModel"}))
    assert "reads no single file of DiTTransformer2DModel" in refused(file, config=config_file)
    config_file.write_text(json.dumps(config | {"_class_name": "UNet1DModel"}))
    assert "UNet1DModel" in refused(file, config=config_file)
    config_file.write_text(json.dumps(config))
    file.write_bytes(file.read_bytes()[:2000])
    assert "no whole safetensors file" in refused(file, config=config_file)
