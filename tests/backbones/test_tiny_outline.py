"""What a small denoiser says of itself without being built, against the built one."""

import builtins
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.description import describe_backbone, taps_of_blocks
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.spec import MODEL_CLASSES, Architecture, tiny_spec
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.backbones.tiny_outline import TinyOutline, declared_defaults
from ditf_probe.errors import InputError
from ditf_probe.tasks.models import Models
from ditf_probe.tasks.settings import BackboneFeatures


@pytest.fixture(params=["ditf-tiny", "dit", "flux"])
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The packaged file, or one of random weights."""
    if request.param == "ditf-tiny":
        return "ditf-tiny"
    architecture: Architecture = request.param
    spec = tiny_spec(architecture, ["cat", "dog"], width=32, head_dim=16, blocks=3, double_blocks=1, image_size=16)
    TinyDenoiser.untrained(spec, seed=3).save(tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


@pytest.fixture
def without_diffusers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called, whoever imports diffusers fails."""
    real = builtins.__import__

    def guarded(name: str, *args: Any, **keywords: Any) -> Any:
        assert name.split(".")[0] != "diffusers", "imported"
        return real(name, *args, **keywords)

    return lambda: monkeypatch.setattr(builtins, "__import__", guarded)


def said(backbone: Backbone) -> dict[str, Any]:
    """All that a backbone says without computing."""
    blocks = range(backbone.num_blocks)
    facts = {name: getattr(backbone, name) for name in Backbone.__annotations__}
    each = [(backbone.taps(i), backbone.channels_at(i), backbone.stride_at(i)) for i in blocks]
    # As text, for order and for types: 1 and 1.0 are equal, and differ in a hash.
    return facts | {"each": each, "settings": json.dumps(backbone.settings())}


@pytest.mark.parametrize("part", [{}, {"last_block": 1, "last_tap": "query"}, {"name": "other", "dtype": "bfloat16"}])
def test_it_says_what_the_built_one_says(
    weights: str, part: dict[str, Any], without_diffusers: Callable[[], None]
) -> None:
    built = load_backbone(weights, device="cpu", **part)
    expected, control = said(built), said(built.untrained(5))
    declared_defaults.cache_clear()
    without_diffusers()
    outline = load_backbone(weights, device="cpu", loaded="none", **part)
    assert isinstance(outline, TinyOutline)
    assert said(outline) == expected
    assert said(outline.untrained(5)) == control
    assert outline.device == torch.device("meta")
    with pytest.raises(RuntimeError, match="no weights"):
        outline(torch.zeros(1, 3, 16, 16), blocks=[0], timestep=0)


def test_a_task_describes_it_without_diffusers(weights: str, without_diffusers: Callable[[], None]) -> None:
    features = BackboneFeatures(backbone=weights, blocks=[1], timestep=100, image_size=16)
    built = load_backbone(weights, device="cpu")
    expected = built.settings(), built.untrained(0).settings()
    without_diffusers()
    found = Models("cpu", [features])[features]
    assert (found.settings(), found.untrained(0).settings()) == expected


def test_taps_of_blocks(weights: str) -> None:
    groups = describe_backbone(weights).groups
    assert taps_of_blocks(weights) == [group.taps for group in groups for _ in range(group.first, group.last + 1)]


@pytest.mark.parametrize("name", MODEL_CLASSES.values())
def test_defaults_are_those_of_the_class(name: str) -> None:
    signature = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert declared_defaults(name) == {key: p.default for key, p in signature.items() if key != "self"}
    assert declared_defaults("NoSuchModel") is None


def test_what_it_cannot_tell_is_built(tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"max_batch": 2}, {"noising": "ddpm"}):
        outline = load_backbone(weights, device="cpu", loaded="none", **options)
        assert not isinstance(outline, TinyOutline)
        assert outline.settings() == load_backbone(weights, device="cpu", **options).settings()
    for wrong in ({"last_block": 99}, {"last_block": 0, "last_tap": "depth"}):
        with pytest.raises(InputError, match="last_"):
            load_backbone(weights, device="cpu", loaded="none", **wrong)
    monkeypatch.setattr("ditf_probe.backbones.tiny_outline.declared_defaults", lambda name: None)
    assert not isinstance(load_backbone(weights, device="cpu", loaded="none"), TinyOutline)
    assert taps_of_blocks(weights)


def test_a_config_that_the_class_does_not_take_is_left_to_the_class(tmp_path: Path) -> None:
    spec = tiny_spec("dit", ["cat"], width=32, head_dim=16, blocks=2, image_size=16)
    denoiser = TinyDenoiser.untrained(spec)
    denoiser.spec = replace(spec, config=spec.config | {"surprise": 1})
    denoiser.save(tmp_path / "tiny.safetensors")
    with pytest.raises(TypeError, match="surprise"):
        load_backbone(tmp_path / "tiny.safetensors", device="cpu", loaded="none")
