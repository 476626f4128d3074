"""Backbones by name: the packaged one, a weights file, a local diffusers folder, or a repository of the hub."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditf_probe.backbones.base import Backbone, Tap
from ditf_probe.backbones.checkpoints import Checkpoint
from ditf_probe.backbones.checks import check_options
from ditf_probe.backbones.diffusion import DiffusionBackbone
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.fingerprint import file_sha256, files_sha256
from ditf_probe.backbones.hub import download
from ditf_probe.backbones.latents import noise_schedule
from ditf_probe.backbones.model_configs import find_entry, home_of, named_class, read_json
from ditf_probe.backbones.offloading import Offload, apply_offload
from ditf_probe.backbones.quantised import Quantization, load_quantised
from ditf_probe.backbones.single_file import SUFFIXES, config_file, is_tiny, load_original, settle
from ditf_probe.backbones.skeletons import load_model, outline_model
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.backbones.tiny_outline import tiny_outline
from ditf_probe.backbones.unet import UNET, DIFTBackbone
from ditf_probe.backbones.weight_options import ALL_OF_IT, Loaded, WeightOptions
from ditf_probe.devices import resolve_device, resolve_dtype
from ditf_probe.errors import InputError

PACKAGED = {"ditf-tiny": Path(__file__).parents[1] / "weights" / "ditf_tiny.safetensors"}
_SET_BY_LOADING = ("quantization", "compute_device")


def load_backbone(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    last_block: int | None = None,
    last_tap: Tap | None = None,
    config: str | Path | None = None,
    quantization: Quantization | None = None,
    offload: Offload = "none",
    loaded: Loaded = "all",
    **options: Any,
) -> Backbone:
    """Loads a frozen backbone.

    Args:
        name_or_path: "ditf-tiny" (in the package); a `.safetensors` file written by `TinyDenoiser.save`, or a
            `.safetensors` or `.gguf` file of a transformer as its authors published it, with `config`; a diffusers
            folder, either of a pipeline (`transformer/` or `unet/`, `vae/`, `scheduler/`) or of a transformer
            (`config.json`); "timm/NAME" for a vision transformer or CNN of timm (see `load_timm`); else a hub id,
            "owner/name", downloaded unless the offline flags of the hub say no.
        device: "auto" (CUDA, else MPS, else CPU) or a torch device.
        dtype: "auto" (bfloat16 on CUDA, float32 elsewhere; float32 for the small pixel-space models), "float32",
            "bfloat16" or "float16".
        last_block: The last block that will be asked for, from 0. Later blocks and the output head are not loaded:
            their weights are neither read nor given memory (those of single files and of quantised models are read
            and dropped). Every number stays the same.
        last_tap: The only tap of that block that will be asked for. What runs in it after the tap is not loaded either,
            and other taps that need it are refused.
        config: For a single file: a local pipeline folder (for its autoencoder and scheduler too), a transformer
            folder, or the transformer's config.json.
        quantization: "nf4" or "int8" (bitsandbytes, on a GPU), "fp8" (torchao), or "gguf", which `.gguf` files are
            of themselves. A folder that was saved quantised says so itself.
        offload: "none", or "model" or "group" for weights that rest in CPU memory, see `apply_offload`.
        loaded: "all"; or "none" for a backbone that says everything of itself, `settings` included, and computes
            nothing; or "autoencoder" for one whose transformer alone is missing. Of files of `TinyDenoiser.save`, where
            "none" is told from the file and need not build the model, and of folders that are not quantised.
        **options: As in `Backbone.from_model`: name, scheduler, noising, prompts, posterior, guidance, max_batch and
            so on; those of timm models are in `load_timm`.

    Returns:
        The backbone in eval mode, without gradients, on the device.

    Raises:
        InputError: Nothing of that name, a class without an entry, damaged or incomplete weights, an unknown option.
    """
    name, path = str(name_or_path), PACKAGED.get(str(name_or_path), Path(name_or_path).expanduser())
    part = {"last_block": last_block, "last_tap": last_tap}
    kept = part | {"quantization": quantization, "offload": None if offload == "none" else offload}
    outline = None if loaded == "all" else loaded
    if name.startswith("timm/"):
        from ditf_probe.backbones.timm_loading import load_timm  # timm is slow to import

        _refuse(name, config=config, loaded=outline, **kept)
        return load_timm(name.removeprefix("timm/"), device, dtype, **options)
    check_options(options, DiffusionBackbone, without=_SET_BY_LOADING)
    where = resolve_device(device)
    how = WeightOptions.checked(path, where, last_block, last_tap, quantization, offload, loaded)
    if path.is_file():
        given = {"name": name if name in PACKAGED else path.stem} | options
        if path.suffix != ".gguf" and is_tiny(path):
            _refuse(name, **(kept | {"config": config} | dict.fromkeys(part)))
            return load_tiny(path, where, dtype, how, **given)
        _refuse(name, loaded=outline)
        return load_single_file(path, config, where, resolve_dtype(dtype, where), how, **given)
    if path.suffix in SUFFIXES:
        raise InputError("backbone", name, "no such file")
    _refuse(name, config=config)
    precision = resolve_dtype(dtype, where)
    if path.is_dir():
        return load_folder(path, where, precision, how, **({"name": path.resolve().name} | options))
    if len(parts := name.split("/")) == 2 and all(parts) and not name.startswith((".", "~")):
        return load_folder(download(name), where, precision, how, **({"name": parts[1]} | options))
    raise InputError("backbone", name, f"give {', '.join(PACKAGED)}, a file, a diffusers folder or a hub id owner/name")


def _refuse(name: str, **options: Any) -> None:
    for option, value in options.items():
        if value is not None:
            raise InputError(option, str(value), f"{name} does not take it, leave it out")


def load_tiny(
    path: Path,
    device: torch.device,
    dtype: str | torch.dtype,
    how: WeightOptions = ALL_OF_IT,
    **options: Any,
) -> Backbone:
    """Loads a weights file of `TinyDenoiser`.

    Args:
        path: The file.
        device: Where to put it.
        dtype: "auto" is float32.
        how: Up to which block.
        **options: Of `DiffusionBackbone`.
    """
    precision = resolve_dtype("float32" if dtype == "auto" else dtype, device)
    if how.loaded == "none" and (outline := tiny_outline(path, precision, how, options)) is not None:
        return outline
    denoiser = TinyDenoiser.load(path) if how.loaded == "all" else TinyDenoiser.outline(path)
    how.cut(denoiser.transformer, FAMILIES[type(denoiser.transformer).__name__])
    place = device if how.loaded == "all" else torch.device("meta")
    denoiser.to(place, precision)
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


def load_folder(
    folder: Path, device: torch.device, dtype: torch.dtype, how: WeightOptions = ALL_OF_IT, **options: Any
) -> Backbone:
    """Loads a diffusers pipeline folder or transformer folder.

    Args:
        folder: With `transformer/config.json`, `unet/config.json` or `config.json`.
        device: Where to put it.
        dtype: Of the transformer, and of the autoencoder unless it is float16, in which autoencoders overflow.
        how: Up to which block, how precise, and where the weights rest.
        **options: Of `DiffusionBackbone` or, for a UNet, of `DIFTBackbone`.

    Raises:
        InputError: Not such a folder, or damaged.
    """
    home = home_of(folder)
    config = read_json(home / "config.json")
    pipeline = None if home == folder else folder
    if named_class(config) == UNET:
        check_options(options, DIFTBackbone)
        offload = None if how.offload == "none" else how.offload
        kept = {"last_block": how.last_block, "last_tap": how.last_tap, "quantization": how.quantization}
        _refuse(f"the {UNET} of {folder}", **kept, offload=offload)
        unet = load_model(home, dtype, device) if how.loaded == "all" else outline_model(home, dtype)
        return _with_pipeline(unet, Checkpoint.find(home).files, pipeline, device, dtype, how, **options)
    family = find_entry(config, home)
    saved = config.get("quantization_config") is not None  # the folder holds quantised weights
    if saved or how.quantization is not None:
        _refuse(f"quantised {folder}", loaded=None if how.loaded == "all" else how.loaded)
        transformer = load_quantised(home, how.quantization, device, dtype)
        how.cut(transformer, family)
    elif how.loaded != "all":
        transformer = outline_model(home, dtype, how.last_block, how.last_tap)
    else:
        transformer = load_model(home, dtype, how.resting_place(device), how.last_block, how.last_tap)
    given = {"quantization": how.quantization or ("saved" if saved else None)} | options
    return _with_pipeline(transformer, Checkpoint.find(home).files, pipeline, device, dtype, how, **given)


def load_single_file(
    file: Path,
    config: str | Path | None,
    device: torch.device,
    dtype: torch.dtype,
    how: WeightOptions = ALL_OF_IT,
    **options: Any,
) -> Backbone:
    """Loads a transformer from one file as its authors published it.

    Args:
        file: safetensors or GGUF.
        config: As in `load_backbone`.
        device: Where to put it.
        dtype: As in `load_folder`.
        how: As in `load_folder`.
        **options: Of `DiffusionBackbone`.

    Raises:
        InputError: No config, a class without a single-file layout, or a damaged file.
    """
    home = config_file(config, file)
    family = find_entry(read_json(home), home)
    transformer = load_original(file, home, dtype, device, how.quantization)
    how.cut(transformer, family)
    if how.quantization is None:
        settle(transformer, how.resting_place(device))
    pipeline = home.parent.parent if home.parent.name == "transformer" else None
    return _with_pipeline(transformer, [file], pipeline, device, dtype, how, quantization=how.quantization, **options)


def _with_pipeline(
    transformer: nn.Module,
    weights: Sequence[Path],
    pipeline: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    how: WeightOptions,
    **options: Any,
) -> Backbone:
    """A transformer with the autoencoder and the scheduler of the pipeline folder around it, if there is one."""
    vae, files = None, [*weights]
    if pipeline is not None and (pipeline / "vae" / "config.json").is_file():
        precision = torch.float32 if dtype == torch.float16 else dtype
        hollow = how.loaded == "none"
        vae = (outline_model if hollow else partial(load_model, device=device))(pipeline / "vae", precision)
        files += Checkpoint.find(pipeline / "vae").files
    if how.loaded == "all":
        apply_offload(transformer, how.offload, device)
    given = {
        "scheduler": None if pipeline is None else load_scheduler(pipeline),
        "weights_sha256": partial(files_sha256, files, pipeline or files[0].parent),
    } | ({} if how.offload == "none" else {"compute_device": device})
    return Backbone.from_model(transformer, vae, **(given | options))


def load_scheduler(folder: Path) -> Any:
    """The noise schedule of a pipeline folder for DDPM noising; None where the folder has none, or a flow one."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return None
    config = read_json(file)
    return noise_schedule(config) if "beta_schedule" in config else None
