"""One file with the weights of a transformer, as its authors published it, with a local config."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ditf_probe.backbones.model_configs import home_of, model_class, read_json
from ditf_probe.backbones.quantised import Quantization, need, quantization_config
from ditf_probe.backbones.spec import METADATA_KEY
from ditf_probe.errors import InputError

SUFFIXES = (".safetensors", ".gguf")


def is_tiny(file: Path) -> bool:
    """Whether `TinyDenoiser.save` wrote a safetensors file, by its metadata.

    Raises:
        InputError: It is no safetensors file, or not whole.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return METADATA_KEY in (opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        remedy = "is no whole safetensors file (as TinyDenoiser.save or a hub writes them), copy or download it again"
        raise InputError("backbone", str(file), remedy) from error


def config_file(config: str | Path | None, weights: Path) -> Path:
    """The transformer's `config.json` that goes with a file of weights.

    Args:
        config: A local pipeline folder, a transformer folder, or the JSON file.
        weights: The file of weights.

    Raises:
        InputError: None was given, or there is none.
    """
    if config is None:
        remedy = (
            f"{weights.name} was not written by TinyDenoiser.save, "
            "give a local folder with the transformer's config.json (with vae/ and scheduler/ beside transformer/)"
        )
        raise InputError("config", None, remedy)
    path = Path(config).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return home_of(path) / "config.json"
    raise InputError("config", str(config), "no such file or folder, give one with the transformer's config.json")


def load_original(
    file: Path, config: Path, dtype: torch.dtype, device: torch.device, quantization: Quantization | None = None
) -> nn.Module:
    """Loads a transformer from one file, in the layout of its authors or in that of diffusers.

    diffusers renames and splits the tensors, for which it reads the whole file into CPU memory.

    Args:
        file: safetensors or GGUF.
        config: The transformer's `config.json`; its class is the one that is built.
        dtype: Of the weights; of the computation for quantised ones.
        device: Where quantised weights are put; others stay on the CPU.
        quantization: How to quantise; "gguf" for a file of that format.

    Raises:
        InputError: The class has no such layout, the file is damaged or of another model, or accelerate is missing.
    """
    cls = model_class(read_json(config), config)
    if not hasattr(cls, "from_single_file"):
        remedy = f"diffusers reads no single file of {cls.__name__}, give a folder in the layout of diffusers"
        raise InputError("backbone", str(file), remedy)
    need("accelerate", "backbone", str(file))  # without it diffusers leaves missing tensors random and says nothing
    given = {} if quantization is None else {"quantization_config": quantization_config(quantization, dtype)}
    try:
        model: nn.Module = cls.from_single_file(
            str(file),
            config=str(config),
            torch_dtype=dtype,
            local_files_only=True,
            device="cpu" if quantization is None else str(device),
            **given,
        )
    except NotImplementedError as error:  # torch refuses to move a tensor without values: it was not in the file
        remedy = f"lacks tensors of a {cls.__name__} with {config}, both must be of one model"
        raise InputError("backbone", str(file), remedy) from error
    except Exception as error:  # of diffusers, accelerate, safetensors and torch
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        remedy = f"cannot be read as a {cls.__name__} with {config}, both must be of one model ({reason})"
        raise InputError("backbone", str(file), remedy) from error
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if missing:
        raise InputError("backbone", f"{file}: no tensor {missing[0]}", "the file and the config are not of one model")
    return model


def settle(model: nn.Module, device: torch.device) -> None:
    """Copies unquantised weights from the mapping of their file to a device, in place.

    On the CPU too: a mapped tensor lies in memory as it does in the file, and matrix products round by how their input
    is aligned.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.to(device, copy=True)
