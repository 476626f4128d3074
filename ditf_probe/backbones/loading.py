"""Backbones by name: the packaged one, a weights file, a local diffusers folder, or a repository of the hub."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.checks import check_options
from ditf_probe.backbones.diffusion import DiffusionBackbone
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.fingerprint import file_sha256, files_sha256
from ditf_probe.backbones.hub import download
from ditf_probe.backbones.latents import noise_schedule
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.backbones.unet import UNET, DIFTBackbone
from ditf_probe.devices import resolve_device, resolve_dtype
from ditf_probe.errors import InputError

PACKAGED = {"ditf-tiny": Path(__file__).parents[1] / "weights" / "ditf_tiny.safetensors"}


def load_backbone(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    **options: Any,
) -> Backbone:
    """Loads a frozen backbone.

    Args:
        name_or_path: "ditf-tiny" (in the package); a `.safetensors` file written by `TinyDenoiser.save`; a diffusers
            folder, either of a pipeline (`transformer/` or `unet/`, `vae/`, `scheduler/`) or of a transformer
            (`config.json`); "timm/NAME" for a vision transformer or CNN of timm (see `load_timm`); else a hub id,
            "owner/name", downloaded unless the offline flags of the hub say no.
        device: "auto" (CUDA, else MPS, else CPU) or a torch device.
        dtype: "auto" (bfloat16 on CUDA, float32 elsewhere; float32 for the small pixel-space models), "float32",
            "bfloat16" or "float16".
        **options: As in `Backbone.from_model`: name, scheduler, noising, prompts, posterior, guidance, max_batch and
            so on; those of timm models are in `load_timm`.

    Returns:
        The backbone in eval mode, without gradients, on the device.

    Raises:
        InputError: Nothing of that name, a class without an entry, damaged or incomplete weights, an unknown option.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name.startswith("timm/"):
        from ditf_probe.backbones.timm_loading import load_timm  # timm is slow to import

        return load_timm(name.removeprefix("timm/"), device, dtype, **options)
    check_options(options, DiffusionBackbone)
    where = resolve_device(device)
    if name in PACKAGED:
        return load_tiny(PACKAGED[name], where, dtype, **({"name": name} | options))
    if path.is_file():
        return load_tiny(path, where, dtype, **({"name": path.stem} | options))
    if path.suffix == ".safetensors":
        raise InputError("backbone", name, "no such file")
    precision = resolve_dtype(dtype, where)
    if path.is_dir():
        return load_folder(path, where, precision, **({"name": path.resolve().name} | options))
    if len(parts := name.split("/")) == 2 and all(parts) and not name.startswith((".", "~")):
        return load_folder(download(name), where, precision, **({"name": parts[1]} | options))
    raise InputError("backbone", name, f"give {', '.join(PACKAGED)}, a file, a diffusers folder or a hub id owner/name")


def load_tiny(path: Path, device: torch.device, dtype: str | torch.dtype, **options: Any) -> Backbone:
    """Loads a weights file of `TinyDenoiser`.

    Args:
        path: The file.
        device: Where to put it.
        dtype: "auto" is float32.
        **options: Of `DiffusionBackbone`.
    """
    denoiser = TinyDenoiser.load(path)
    denoiser.to(device, resolve_dtype("float32" if dtype == "auto" else dtype, device))
    return from_denoiser(denoiser, **({"weights_sha256": partial(file_sha256, path)} | options))


def from_denoiser(denoiser: TinyDenoiser, **options: Any) -> Backbone:
    """A small denoiser as a backbone; runs its very modules.

    Args:
        denoiser: Of this project's own training. Set to eval mode and frozen: give a copy while training.
        **options: Of `DiffusionBackbone`.
    """
    noising = denoiser.spec.noising
    given = {"noising": noising, "class_embedding": denoiser.class_embedding} | options
    return DiffusionBackbone(denoiser.transformer, **given)


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype, **options: Any) -> Backbone:
    """Loads a diffusers pipeline folder or transformer folder.

    Args:
        folder: With `transformer/config.json`, `unet/config.json` or `config.json`.
        device: Where to put it.
        dtype: Of the transformer, and of the autoencoder unless it is float16, in which autoencoders overflow.
        **options: Of `DiffusionBackbone` or, for a UNet, of `DIFTBackbone`.

    Raises:
        InputError: Not such a folder, or damaged.
    """
    homes = (folder / "transformer", folder / "unet", folder)
    home = next((f for f in homes if (f / "config.json").is_file()), None)
    if home is None:
        raise InputError("backbone", str(folder), "the folder needs transformer/config.json, unet/ or config.json")
    name = class_name(home)
    if name not in (*FAMILIES, UNET):
        raise InputError("backbone", f"{folder}: {name}", f"use one of the classes {', '.join((*FAMILIES, UNET))}")
    check_options(options, DIFTBackbone if name == UNET else DiffusionBackbone)
    used = [home]
    transformer = load_model(home, dtype).to(device)
    vae = None
    if home != folder and (folder / "vae" / "config.json").is_file():
        used.append(folder / "vae")
        vae = load_model(folder / "vae", torch.float32 if dtype == torch.float16 else dtype).to(device)
    weights = [file for part in used for file in part.iterdir() if file.suffix in (".safetensors", ".bin")]
    given = {"scheduler": load_scheduler(folder), "weights_sha256": partial(files_sha256, weights, folder)} | options
    return Backbone.from_model(transformer, vae, **given)


def load_model(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Loads one diffusers model, every tensor of it.

    Raises:
        InputError: Unknown class, missing or damaged files, or missing tensors.
    """
    name = class_name(folder)
    model_class: Any = getattr(diffusers, name, None)
    if not hasattr(model_class, "from_pretrained"):
        raise InputError("backbone", f"{folder}: {name}", f"no model class of diffusers {diffusers.__version__}")
    try:
        model, info = model_class.from_pretrained(
            str(folder), torch_dtype=dtype, output_loading_info=True, local_files_only=True
        )
    except Exception as error:  # whatever a damaged folder makes of diffusers, safetensors and torch
        reason = " ".join(str(error).split())[:200]
        raise InputError("backbone", str(folder), f"cannot be loaded, copy or download it again ({reason})") from error
    if info["missing_keys"]:
        found = f"{folder}: no tensor {sorted(info['missing_keys'])[0]}"
        raise InputError("backbone", found, "the weights are incomplete, copy or download them again")
    loaded: nn.Module = model
    return loaded


def load_scheduler(folder: Path) -> Any:
    """The noise schedule of a pipeline folder for DDPM noising; None where the folder has none, or a flow one."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return None
    config = read_json(file)
    return noise_schedule(config) if "beta_schedule" in config else None


def class_name(folder: Path) -> str:
    """The diffusers class that a `config.json` names."""
    return str(read_json(folder / "config.json").get("_class_name"))


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError("backbone", str(file), "is no readable JSON file") from error
    if not isinstance(values, dict):
        raise InputError("backbone", str(file), "holds no JSON object")
    return values
