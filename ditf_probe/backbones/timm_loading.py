"""Models of timm by name: pretrained weights of the hub, a local file or folder, or random ones."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ditf_probe.backbones.checks import check_options
from ditf_probe.backbones.fingerprint import file_sha256
from ditf_probe.backbones.hub import explaining
from ditf_probe.backbones.loading import read_json
from ditf_probe.backbones.vit import TimmBackbone, seeded
from ditf_probe.devices import resolve_device, resolve_dtype
from ditf_probe.errors import InputError

# How models that are made for one size take any other: interpolated positions, padded windows.
_ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})


def load_timm(
    model_name: str, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto", **options: Any
) -> TimmBackbone:
    """Loads a timm model as a backbone.

    Args:
        model_name: timm's name, such as "vit_base_patch14_dinov2.lvd142m"; without a tag, that of timm's first
            weights of the model.
        device: As in `load_backbone`.
        dtype: As in `load_backbone`.
        **options: Of `read_model` (weights, pretrained, seed) and of `TimmBackbone` (name, norm, max_batch).

    Raises:
        InputError: No such model, no weights, weights that do not fit, no network, or an unknown option.
    """
    check_options(options, read_model, TimmBackbone)
    check_name(model_name)
    where = resolve_device(device)
    choices = {key: options.pop(key) for key in ("weights", "pretrained", "seed") if key in options}
    model, facts = read_model(model_name, **choices)
    given: dict[str, Any] = {"name": model_name, "build": partial(build_model, model_name)} | facts | options
    return TimmBackbone(model.to(where, resolve_dtype(dtype, where)), **given).to(where)


def read_model(
    name: str, *, weights: str | Path | None = None, pretrained: bool = True, seed: int = 0
) -> tuple[nn.Module, dict[str, Any]]:
    """Builds a model and fills in its weights.

    Args:
        name: timm's name.
        weights: A file of weights, or a folder with `config.json` and `model.safetensors` as timm saves it; by
            default timm's own, from the cache (`HF_HOME`) or the hub.
        pretrained: False for random weights.
        seed: Of random weights.

    Returns:
        The model, and what `TimmBackbone` should know of its weights.

    Raises:
        InputError: As in `load_timm`.
    """
    if weights is not None:
        if not pretrained:
            raise InputError("pretrained", pretrained, "leave it out where weights are given")
        return _read_local(name, Path(weights).expanduser())
    if not pretrained:
        return seeded(partial(build_model, name), seed), {}
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        remedy = "timm has no weights of it, give weights: FILE or pretrained: false, or name a tag that has some"
        raise InputError("backbone", f"timm/{name}", remedy + _suggestion(name, timm.list_pretrained()))
    with _fitting("backbone", f"timm/{name}", name), explaining(config.hf_hub_id or f"timm/{name}"):
        return build_model(name, pretrained=True), {}


def build_model(name: str, **options: Any) -> nn.Module:
    """`timm.create_model`, for images of any size where the model can."""
    for any_size in _ANY_SIZE:
        try:
            model: nn.Module = timm.create_model(name, **any_size, **options)
        except TypeError as error:  # the model has no such argument
            if not any(key in str(error) for key in any_size):
                raise
        else:
            return model
    plain: nn.Module = timm.create_model(name, **options)
    return plain


def check_name(name: str) -> None:
    """Refuses a model or a tag that timm does not know, with near names.

    Raises:
        InputError: timm does not know it.
    """
    if not timm.is_model(name):
        names = timm.list_models(include_tags="." in name)
        raise InputError(
            "backbone", f"timm/{name}", f"timm {timm.__version__} has no such model{_suggestion(name, names)}"
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        names = timm.list_models(f"{name.split('.')[0]}.*", include_tags=True)
        remedy = f"the model has no weights of this tag{_suggestion(name, names, cutoff=0.0)}"
        raise InputError("backbone", f"timm/{name}", remedy) from error


def _suggestion(name: str, names: list[str], cutoff: float = 0.6) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=cutoff)
    return f"; near names: {', '.join(near)}" if near else ""


def _read_local(name: str, path: Path) -> tuple[nn.Module, dict[str, Any]]:
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InputError("weights", str(path), f"there is no file {file}")
    with _fitting("weights", str(path), name):
        if path.is_dir():
            _check_architecture(name, path)
            model = build_model(f"local-dir:{path}", pretrained=True)
        else:
            model = build_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    return model, {"weights_sha256": partial(file_sha256, file)}


def _check_architecture(name: str, folder: Path) -> None:
    found = read_json(folder / "config.json").get("architecture")
    if found != name.split(".")[0]:
        raise InputError("weights", str(folder), f"its config.json is of {found}, use backbone: timm/{found}")


@contextmanager
def _fitting(argument: str, value: str, name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever damaged or foreign weights make of timm, safetensors and torch
        reason = " ".join(str(error).split())[:200]
        raise InputError(argument, value, f"holds no weights that fit {name} ({reason})") from error
