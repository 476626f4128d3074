"""What `info` says, against models that are really built and against published numbers."""

import json
from pathlib import Path

import diffusers
import pytest
import torch

from ditf_probe.backbones import description
from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.description import Amount, describe, describe_backbone
from ditf_probe.backbones.description_table import readable_count, readable_size
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.skeletons import build_skeleton
from ditf_probe.commands import main
from ditf_probe.errors import InputError

FLUX_DEV = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}

LAST = {"last_block": 28, "last_tap": "attention"}

pytestmark = pytest.mark.usefixtures("autoencoders_once")


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_flux_dev_in_full_size_takes_no_memory() -> None:
    """11.9 billion parameters, as published; up to a block counted by hand, layer by layer."""
    width, head = 3072, 128
    single = linear(width, 3 * width) + 3 * linear(width, width) + 2 * head + linear(width, 4 * width)
    single += linear(5 * width, width)
    double = 2 * (linear(width, 6 * width) + 4 * linear(width, width) + 2 * head)
    double += 2 * (linear(width, 4 * width) + linear(4 * width, width))
    embedders = linear(64, width) + linear(4096, width) + linear(768, width) + 2 * linear(256, width)
    embedders += 3 * linear(width, width)
    head_size = linear(width, 2 * width) + linear(width, 64)
    skeleton = build_skeleton(diffusers.FluxTransformer2DModel, FLUX_DEV)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    found = describe("FLUX.1-dev", skeleton, last_block=28)
    assert found.total.parameters == embedders + 19 * double + 38 * single + head_size == 11_901_408_320
    assert found.loaded.parameters == embedders + 19 * double + 10 * single == 7_917_760_512
    assert found.loaded.size == 2 * found.loaded.parameters
    assert (readable_count(found.total.parameters), readable_size(found.loaded.size)) == ("11.90 B", "14.7 GiB")
    before = found.loaded.parameters - single  # the 28 blocks whose output block 28 reads
    tapped = describe("FLUX.1-dev", build_skeleton(diffusers.FluxTransformer2DModel, FLUX_DEV), **LAST).loaded
    assert tapped.parameters == before + linear(width, 3 * width) == 7_804_489_472  # and its own modulation
    assert (readable_count(tapped.parameters), readable_size(tapped.size)) == ("7.80 B", "14.5 GiB")
    spans = [(group.first, group.last, group.each.parameters) for group in found.groups]
    assert spans == [(0, 18, double), (19, 56, single)]
    assert "mlp" in found.groups[0].taps
    assert "mlp" not in found.groups[1].taps
    assert found.channels == width


def save_pipeline(name: str, folder: Path) -> Path:
    """Configs only: a description reads no weights."""
    family = FAMILIES[name]
    for part, cls, config in (
        ("transformer", name, family.tiny),
        ("vae", family.vae, AUTOENCODERS[family.vae].tiny),
    ):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps({"_class_name": cls, **config}))
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_it_tells_what_a_backbone_has(name: str, tmp_path: Path) -> None:
    folder = save_pipeline(name, tmp_path)
    last = {"last_block": 0, "last_tap": "attention"}
    found = describe_backbone(folder, **last, dtype=torch.float32)
    for part, cls in (("transformer", name), ("vae", FAMILIES[name].vae)):
        model = getattr(diffusers, cls).from_config(json.loads((folder / part / "config.json").read_text()))
        model.save_pretrained(folder / part)
    whole = load_backbone(folder, device="cpu")
    part = load_backbone(folder, device="cpu", **last)
    assert (found.channels, found.stride, found.transformer) == (whole.channels, whole.stride, name)
    assert found.groups[-1].last == whole.num_blocks - 1
    assert all(group.taps == whole.taps(group.first) for group in found.groups)
    for amount, module in (
        (found.total, whole.transformer),
        (found.loaded, part.transformer),
        (found.vae, whole.latents.vae),
    ):
        sizes = [(p.numel(), p.numel() * p.element_size()) for p in module.parameters()]
        assert amount == Amount(sum(count for count, _ in sizes), sum(size for _, size in sizes))
    half = describe_backbone(folder, dtype=torch.bfloat16)
    transformer = load_backbone(folder, device="cpu", dtype="bfloat16").transformer
    assert half.total.size == sum(p.numel() * p.element_size() for p in transformer.parameters())
    assert half.loaded == half.total


def test_of_a_hub_id_only_configs_are_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = save_pipeline("FluxTransformer2DModel", tmp_path)
    asked = []

    def snapshot(repository: str, **options: object) -> str:
        asked.append((repository, options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr("ditf_probe.backbones.hub.snapshot_download", snapshot)
    assert describe_backbone("someone/flux").channels == describe_backbone(folder).channels
    ((repository, patterns),) = asked
    assert repository == "someone/flux"
    assert all(pattern.endswith(".json") and "diffusion_pytorch_model" not in pattern for pattern in patterns)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    folder = save_pipeline("FluxTransformer2DModel", tmp_path / "pipe")
    main(["info", str(folder), "--last-block", "1", "--dtype", "float32"])
    shown = capsys.readouterr().out
    found = describe_backbone(folder, last_block=1, dtype=torch.float32)
    for word in ("transformer_blocks", "attention", "float32", "up to block 1", f"{found.stride} pixels"):
        assert word in shown
    assert readable_count(found.loaded.parameters) in shown
    assert readable_size(found.total.size) in shown
    main(["info", str(folder), "--last-block", "1", "--last-tap", "attention", "--dtype", "float32"])
    shown = capsys.readouterr().out
    less = describe_backbone(folder, last_block=1, last_tap="attention", dtype=torch.float32)
    assert "up to block 1, tap attention" in shown
    assert readable_count(less.loaded.parameters) in shown
    assert less.loaded.parameters < found.loaded.parameters
    main(["info", "ditf-tiny"])
    shown = capsys.readouterr().out
    tiny = load_backbone("ditf-tiny", device="cpu")
    assert f"{tiny.stride} pixels" in shown
    assert readable_count(sum(p.numel() for p in tiny.transformer.parameters())) in shown
    main(["info", str(folder / "transformer")])
    assert "not known without an autoencoder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["no-such-thing"], "ditf-tiny"),
        (["ditf-tiny", "--last-block", "99"], "`last_block`"),
        (["ditf-tiny", "--last-tap", "both"], "`last_tap`"),
        (["ditf-tiny", "--dtype", "int8"], "`dtype`"),
    ],
)
def test_mistakes_end_in_one_line(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["info", *words])
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert reason in line
    assert line.count("\n") == 1


def test_a_class_without_an_entry(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet1DModel"}))
    with pytest.raises(InputError, match="UNet1DModel"):
        describe_backbone(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="safetensors"):
        description.describe_backbone(tmp_path / "other.safetensors")


def test_readable_numbers() -> None:
    assert [readable_count(n) for n in (999, 1_000, 2_500_000, 11_901_408_320)] == [
        "999",
        "1.00 k",
        "2.50 M",
        "11.90 B",
    ]
    assert [readable_size(n) for n in (512, 3 * 2**20, 14.75 * 2**30)] == ["0.5 KiB", "3.0 MiB", "14.8 GiB"]
