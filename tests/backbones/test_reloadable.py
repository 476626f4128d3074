"""One backbone in memory at a time, and nothing that a caller could tell from the backbone itself."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.reloadable import ModelSlot, ReloadableBackbone
from ditf_probe.errors import InputError

RUN = {"blocks": [0, -1], "timestep": 200, "tap": "attention", "image_ids": ["a", "b"]}


class Loads:
    """Loads a folder, and remembers what it has loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: list[weakref.ref[Backbone]] = []

    def __call__(self) -> Backbone:
        backbone = load_backbone(self.folder, device="cpu")
        self.loaded.append(weakref.ref(backbone))
        return backbone

    @property
    def alive(self) -> int:
        gc.collect()
        return sum(reference() is not None for reference in self.loaded)


@pytest.fixture
def dit_loads(make_dit: Callable[..., nn.Module], tmp_path: Path) -> Loads:
    make_dit().save_pretrained(tmp_path / "dit")
    return Loads(tmp_path / "dit")


@pytest.fixture
def flux_loads(make_flux: Callable[..., nn.Module], tmp_path: Path) -> Loads:
    make_flux().save_pretrained(tmp_path / "flux")
    return Loads(tmp_path / "flux")


def assert_equal_runs(first: Backbone, second: Backbone, images: torch.Tensor) -> None:
    runs = [backbone(images, **RUN) for backbone in (first, second)]
    assert list(runs[0]) == list(runs[1])
    for block, tapped in runs[0].items():
        for name in ("hidden_states", "shift", "scale", "gate"):
            assert torch.equal(getattr(tapped, name), getattr(runs[1][block], name))


def test_a_lone_backbone_is_loaded_once(dit_loads: Loads, images: torch.Tensor) -> None:
    backbone = ReloadableBackbone(dit_loads, ModelSlot(room=0))
    for _ in range(2):
        assert_equal_runs(backbone, load_backbone(dit_loads.folder, device="cpu"), images)
    assert backbone.settings() == backbone.model.settings()
    assert len(dit_loads.loaded) == 1


def test_backbones_take_turns(dit_loads: Loads, flux_loads: Loads, images: torch.Tensor) -> None:
    slot = ModelSlot(room=0)
    dit, flux = ReloadableBackbone(dit_loads, slot), ReloadableBackbone(flux_loads, slot)
    assert (dit_loads.alive, flux_loads.alive) == (0, 1)
    assert_equal_runs(dit, load_backbone(dit_loads.folder, device="cpu"), images)
    assert (dit_loads.alive, flux_loads.alive) == (1, 0)
    # Facts and settings outlive what they are about.
    assert (flux.name, flux.device) == ("flux", torch.device("cpu"))
    assert flux.taps(-1) == ("attention", "query", "key", "value")
    assert flux.settings() == load_backbone(flux_loads.folder, device="cpu").settings()
    assert (len(dit_loads.loaded), len(flux_loads.loaded)) == (2, 1)
    slot.clear()
    assert (dit_loads.alive, flux_loads.alive) == (0, 0)


def test_the_untrained_control_takes_its_turn(dit_loads: Loads, images: torch.Tensor) -> None:
    slot = ModelSlot(room=0)
    trained = ReloadableBackbone(dit_loads, slot)
    control = trained.untrained(seed=3)
    assert dit_loads.alive == 0
    expected = load_backbone(dit_loads.folder, device="cpu").untrained(seed=3)
    assert control.settings() == expected.settings()
    assert_equal_runs(control, expected, images)
    assert len(dit_loads.loaded) == 1  # made from what was there
    slot.clear()
    assert_equal_runs(control, expected, images)
    assert len(dit_loads.loaded) == 2
    assert dit_loads.alive == 0


def test_what_cannot_be_loaded_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="backbone"):
        ReloadableBackbone(partial(load_backbone, tmp_path), ModelSlot(room=0))


def test_nothing_of_the_contract_is_left_to_its_defaults(dit_loads: Loads) -> None:
    backbone = ReloadableBackbone(dit_loads, ModelSlot(room=0))
    for name in Backbone.__annotations__:
        assert getattr(backbone, name) == getattr(backbone.model, name)
    # Makes another backbone; stays in eval mode; made of channels_at and stride_at.
    inherited = {"from_model", "train", "common_channels", "common_stride"}
    public = {name for name in vars(Backbone) if not name.startswith("_")} - set(Backbone.__annotations__)
    assert public - inherited <= set(vars(ReloadableBackbone))
    for block in range(backbone.num_blocks):
        assert backbone.taps(block) == backbone.model.taps(block)
    with pytest.raises(InputError, match="block"):
        backbone.taps(backbone.num_blocks)


def test_together_nothing_is_loaded_twice(dit_loads: Loads, flux_loads: Loads, images: torch.Tensor) -> None:
    slot = ModelSlot(None)
    dit, flux = ReloadableBackbone(dit_loads, slot), ReloadableBackbone(flux_loads, slot)
    untrained = dit.untrained()
    for _ in range(2):
        for backbone in (dit, flux, untrained):
            backbone(images, **RUN)
    assert len(dit_loads.loaded) == len(flux_loads.loaded) == 1
    assert dit_loads.alive == flux_loads.alive == 1
    slot.clear()
    assert dit_loads.alive == flux_loads.alive == 0


def test_small_ones_stay_up_to_a_size(dit_loads: Loads, flux_loads: Loads, images: torch.Tensor) -> None:
    dit = ReloadableBackbone(dit_loads, ModelSlot(room=0))
    size = sum(weight.nbytes for weight in (*dit.model.parameters(), *dit.model.buffers()))
    dit_loads.loaded.clear()
    slot = ModelSlot(room=size)  # room for the one, not for both
    dit, flux = ReloadableBackbone(dit_loads, slot), ReloadableBackbone(flux_loads, slot)
    assert (dit_loads.alive, flux_loads.alive) == (0, 1)
    roomy = ModelSlot(room=100 * size)
    dit, flux = ReloadableBackbone(dit_loads, roomy), ReloadableBackbone(flux_loads, roomy)
    for backbone in (dit, flux, dit):
        backbone(images, **RUN)
    assert len(dit_loads.loaded) == len(flux_loads.loaded) == 2


def outlined(loads: Loads, slot: ModelSlot, **options: Any) -> ReloadableBackbone:
    """A backbone that is described without being loaded."""
    outline = partial(load_backbone, loads.folder, device="cpu", **options)
    return ReloadableBackbone(loads, slot, outline=lambda loaded: outline(loaded=loaded), device=torch.device("cpu"))


def test_an_outline_says_all_that_the_backbone_says(
    dit_loads: Loads, flux_loads: Loads, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loads in (dit_loads, flux_loads):
        backbone, expected = outlined(loads, ModelSlot(room=0)), load_backbone(loads.folder, device="cpu")
        assert backbone.settings() == expected.settings()
        control = backbone.untrained(seed=3)
        assert control.settings() == expected.untrained(seed=3).settings()
        for one in (backbone, control):
            for name in Backbone.__annotations__:
                if name != "name":
                    assert getattr(one, name) == getattr(expected, name)
            assert one.device == torch.device("cpu")
            assert [one.taps(i) for i in range(4)[: one.num_blocks]] == [
                expected.taps(i) for i in range(4)[: one.num_blocks]
            ]
        assert loads.loaded == [], "nothing was loaded for it"
        assert_equal_runs(backbone, expected, images)
        assert_equal_runs(control, expected.untrained(seed=3), images)
        assert len(loads.loaded) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("part", [{}, {"last_block": 1, "last_tap": "mlp"}])
def test_an_outline_of_a_pipeline(
    make_dit: Callable[..., nn.Module], make_vae: Callable[..., nn.Module], tmp_path: Path, dtype: str, part: Any
) -> None:
    """With an autoencoder, whose weights tell the control apart, in every dtype and truncated."""
    make_dit(in_channels=4, patch_size=2).save_pretrained(tmp_path / "pipeline" / "transformer")
    make_vae().save_pretrained(tmp_path / "pipeline" / "vae")
    load = partial(load_backbone, tmp_path / "pipeline", device="cpu", dtype=dtype, **part)
    whole = load()
    for loaded in ("none", "autoencoder"):
        outline = load(loaded=loaded)
        assert outline.settings() == whole.settings()
        there = [(n, p.dtype, p.shape) for n, p in whole.named_parameters()]
        assert [(n, p.dtype, p.shape) for n, p in outline.named_parameters()] == there
        held = {name for name, weight in outline.named_parameters() if not weight.is_meta}
        assert held == {name for name, _, _ in there if loaded == "autoencoder" and name.startswith("latents.")}
    control = load(loaded="autoencoder").untrained(5)
    assert control.settings() == whole.untrained(5).settings()


def test_what_cannot_be_told_from_its_configuration_has_no_outline(tmp_path: Path) -> None:
    for backbone in ("timm/vit_tiny_patch16_224",):
        with pytest.raises(InputError, match="loaded"):
            load_backbone(backbone, loaded="none")
    with pytest.raises(InputError, match="loaded"):
        load_backbone("ditf-tiny", loaded="some")  # no such choice


def test_missing_weights_are_refused_by_an_outline(dit_loads: Loads) -> None:
    file = dit_loads.folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file)
    with pytest.raises(InputError, match="no tensor"):
        outlined(dit_loads, ModelSlot(room=0))
