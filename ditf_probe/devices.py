"""Where and in which precision to compute: what "auto" means."""

import torch

from ditf_probe.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device of a name.

    Args:
        device: "auto" (CUDA if there is one, else MPS, else CPU) or a torch device.

    Raises:
        InputError: No such device on this machine.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()  # read back, because the device "meta" holds no values
    except (
        RuntimeError,  # no such name, no driver, no such index, or no kernels for it in this torch
        AssertionError,  # torch was compiled without this backend
        ImportError,  # the backend lives in a package that is not installed
    ) as error:
        raise InputError("device", str(device), "this machine does not have it, use auto or cpu") from error
    return found


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of a name.

    Args:
        dtype: "auto" (bfloat16 on CUDA devices that compute it, float32 elsewhere), "float32", "bfloat16", "float16",
            or a torch dtype among these.
        device: Where the model will run.

    Raises:
        InputError: Any other dtype.
    """
    if dtype == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise InputError("dtype", str(dtype), f"use one of auto, {', '.join(DTYPES)}")
    return found
