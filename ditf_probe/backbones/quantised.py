"""Weights of 4 or 8 bits, through the quantisers of diffusers.

The tests run very small models with weights of torchao and GGUF on a CPU, where these packages are installed. Those of
bitsandbytes, for which diffusers wants a GPU, were not run: tested are the configurations and the refusals.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ditf_probe.backbones.model_configs import model_class, read_json
from ditf_probe.errors import InputError, check_choice

Quantization = Literal["nf4", "int8", "fp8", "gguf"]
PACKAGES: dict[str, str] = {"nf4": "bitsandbytes", "int8": "bitsandbytes", "fp8": "torchao", "gguf": "gguf"}


def need(package: str, argument: str, value: object) -> None:
    """Refuses an option whose package is not installed.

    Args:
        package: Name of the package, for import and for pip.
        argument: The option.
        value: Its value.

    Raises:
        InputError: It is not installed.
    """
    if find_spec(package) is None:
        raise InputError(argument, value, f"needs the package {package}: pip install {package}")


def check_quantization(kind: str, device: torch.device) -> None:
    """Refuses a quantisation that cannot run here.

    Args:
        kind: One of `Quantization`.
        device: Where the model is to run.

    Raises:
        InputError: Unknown, a package is missing, or there is no GPU where it needs one.
    """
    check_choice("quantization", kind, Quantization)
    for package in (PACKAGES[kind], "accelerate"):
        need(package, "quantization", kind)
    if PACKAGES[kind] == "bitsandbytes" and device.type not in ("cuda", "xpu"):
        remedy = (
            f"diffusers runs bitsandbytes on CUDA or XPU alone, not on {device.type}; fp8 and .gguf files need neither"
        )
        raise InputError("quantization", kind, remedy)


def quantization_config(kind: Quantization, dtype: torch.dtype) -> Any:
    """What diffusers is told.

    Args:
        kind: "nf4" (4-bit normal float) and "int8" (LLM.int8) of bitsandbytes, "fp8" (float8 weights) of torchao, or
            "gguf" for a file of that format.
        dtype: Of the computation, and of what is not quantised.
    """
    import diffusers  # slow to import

    if kind == "nf4":
        return diffusers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if kind == "int8":
        return diffusers.BitsAndBytesConfig(load_in_8bit=True)
    if kind == "fp8":
        from torchao.quantization import Float8WeightOnlyConfig  # optional, and slow to import

        return diffusers.TorchAoConfig(Float8WeightOnlyConfig())
    return diffusers.GGUFQuantizationConfig(compute_dtype=dtype)


def load_quantised(folder: Path, kind: Quantization | None, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Loads a transformer folder of diffusers and quantises it, or one that was saved quantised.

    Unlike unquantised weights it is read whole, whatever block is the last one wanted.

    Args:
        folder: With `config.json` and the weights.
        kind: How to quantise; None for a folder that says so itself.
        device: Where to put it.
        dtype: Of the computation, and of what is not quantised.

    Raises:
        InputError: diffusers refuses, or a tensor is missing.
    """
    cls = model_class(read_json(folder / "config.json"), folder)
    given = {} if kind is None else {"quantization_config": quantization_config(kind, dtype)}
    try:
        model, info = cls.from_pretrained(
            str(folder),
            torch_dtype=dtype,
            device_map={"": device},
            output_loading_info=True,
            local_files_only=True,
            **given,
        )
    except Exception as error:  # of diffusers, accelerate, the quantiser, safetensors and torch
        reason = " ".join(str(error).split())[:200]
        raise InputError("backbone", str(folder), f"cannot be loaded with quantised weights ({reason})") from error
    if info["missing_keys"]:
        found = f"{folder}: no tensor {sorted(info['missing_keys'])[0]}"
        raise InputError("backbone", found, "the weights are incomplete, copy or download them again")
    loaded: nn.Module = model
    return loaded
