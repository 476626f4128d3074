"""Transformers that two ranks divide between them: half of the weights on each, and the features of the whole."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh

from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.base import Backbone, TappedBlock
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.sharding import load_sharded
from ditf_probe.errors import InputError

# Two lists of blocks, a modulation that blocks share, and norms with weights, which are read when the pass is over.
NAMES = ("FluxTransformer2DModel", "PixArtTransformer2DModel", "Lumina2Transformer2DModel")
CPU = torch.device("cpu")


def randomise(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save_pipeline(folder: Path, name: str) -> Path:
    family = FAMILIES[name]
    transformer: Any = randomise(getattr(diffusers, name)(**family.tiny))
    transformer.save_pretrained(folder / name / "transformer", max_shard_size="40KB")
    vae: Any = randomise(getattr(diffusers, family.vae)(**AUTOENCODERS[family.vae].tiny))
    vae.save_pretrained(folder / name / "vae")
    return folder / name


def on_two_ranks(work: Callable[..., Any], *arguments: Any) -> None:
    """Runs `work(mesh, rank, *arguments)` on two ranks of gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start: Callable[..., Any] = multiprocessing.start_processes
    start(_process, args=(port, work, arguments), nprocs=2, start_method="fork")


def _process(rank: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        work(init_device_mesh("cpu", (2,)), rank, *arguments)
    finally:
        torch.distributed.destroy_process_group()


def assert_equal(here: dict[int, TappedBlock], there: dict[int, TappedBlock]) -> None:
    assert list(here) == list(there)
    for block, tapped in here.items():
        other = there[block]
        assert (tapped.grid, tapped.norm) == (other.grid, other.norm)
        for name in ("hidden_states", "shift", "scale", "gate"):
            a, b = getattr(tapped, name), getattr(other, name)
            assert (a is None) == (b is None)
            if a is not None:
                assert a.dtype == b.dtype
                torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def compare(mesh: Any, rank: int, folder: Path, dtype: str, **part: Any) -> None:
    """Each rank has other images, and taps that need no more, or more, than the pass has at hand when it ends."""
    whole = load_backbone(folder, device="cpu", dtype=dtype, **part)
    divided = load_sharded(folder, mesh, device=CPU, dtype=dtype, **part)
    assert divided.settings() == whole.settings()
    assert divided.device == CPU
    images = torch.rand(2, 3, 3 * whole.stride, 2 * whole.stride, generator=torch.Generator().manual_seed(rank))
    last = part.get("last_block", whole.num_blocks - 1)
    cases = [(part.get("last_tap", "attention"), condition) for condition in whole.modulation_conditions[::2]]
    for tap, condition in cases if "last_tap" in part else [*cases, ("query", "t+c")]:
        for blocks in (range(last + 1), [0]):
            asked: Any = {"blocks": blocks, "timestep": [100, 700], "tap": tap, "image_ids": ["a", f"b{rank}"]}
            asked |= {"modulation_condition": condition}
            assert_equal(divided(images, **asked), whole(images, **asked))
    assert_divided(divided, whole)


def assert_divided(divided: Backbone, whole: Backbone) -> None:
    """A rank holds half of the transformer after its passes, though some of them ended early."""
    assert isinstance(divided.transformer, nn.Module)
    assert isinstance(whole.transformer, nn.Module)
    held = sum(weight.to_local().numel() for weight in divided.transformer.parameters())
    total = sum(weight.numel() for weight in whole.transformer.parameters())
    assert held / total == pytest.approx(0.5, abs=0.02)
    assert not any(weight.is_meta for weight in (*divided.parameters(), *divided.buffers()))


def compare_families(mesh: Any, rank: int, folder: Path) -> None:
    for name in NAMES:
        compare(mesh, rank, folder / name, "float32")


def test_features_are_those_of_the_whole(tmp_path: Path) -> None:
    for name in NAMES:
        save_pipeline(tmp_path, name)
    on_two_ranks(compare_families, tmp_path)


def compare_parts(mesh: Any, rank: int, folder: Path) -> None:
    for dtype in ("bfloat16", "float32"):
        compare(mesh, rank, folder, dtype, last_block=1, last_tap="mlp")
    compare(mesh, rank, folder, "float32", last_block=2, last_tap="attention")


def test_a_part_of_a_model_in_other_dtypes(tmp_path: Path) -> None:
    on_two_ranks(compare_parts, save_pipeline(tmp_path, NAMES[0]))


def refuse(mesh: Any, rank: int, folder: Path) -> None:
    found = {}
    for name, options in {
        "ditf-tiny": {},
        "timm/vit_tiny_patch16_224": {},
        "no-such-folder": {},
        str(folder): {"offload": "group"},
        str(folder / "transformer"): {"quantization": "fp8"},
    }.items():
        with pytest.raises(InputError) as error:
            load_sharded(name, mesh, device=CPU, **options)
        found[name] = str(error.value)
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(list(found.values())))


def test_refusals(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path, NAMES[1])
    on_two_ranks(refuse, folder)
    tiny, timm, missing, offload, quantised = json.loads((folder / "found.json").read_text())
    assert "diffusers folders and hub ids, not for ditf-tiny" in tiny
    assert "not for timm/" in timm
    assert "no-such-folder" in missing
    assert "leave offload out" in offload
    assert "leave quantization out" in quantised
