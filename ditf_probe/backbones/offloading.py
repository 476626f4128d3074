"""Weights that rest in CPU memory and visit the device for their own computation."""

from typing import Literal

import torch
from torch import nn

from ditf_probe.backbones.quantised import need
from ditf_probe.errors import InputError, check_choice

Offload = Literal["none", "model", "group"]
_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_WHOLE = ("HunyuanDiTAttentionPool",)  # reads the weights of its layers without calling them


def check_offload(offload: str, quantization: str | None) -> None:
    """Refuses an offloading that cannot run here.

    Args:
        offload: One of `Offload`.
        quantization: How the weights are quantised, or None.

    Raises:
        InputError: Unknown, accelerate is missing, or the weights are quantised.
    """
    check_choice("offload", offload, Offload)
    if offload == "none":
        return
    need("accelerate", "offload", offload)
    if quantization is not None:
        raise InputError("offload", offload, f"is for unquantised weights, leave it or quantization {quantization} out")


def apply_offload(transformer: nn.Module, offload: Offload, device: torch.device) -> None:
    """Offloads a transformer, in place; what it computes stays the same, bit for bit.

    Args:
        transformer: A diffusers transformer on the CPU.
        offload: "model": each linear, convolutional and embedding layer alone (accelerate), for the least memory;
            what is small stays on the device. "group": block by block (diffusers), with fewer and larger copies.
        device: Where it computes.
    """
    if offload == "group":
        from diffusers.hooks import apply_group_offloading  # diffusers is slow to import

        apply_group_offloading(transformer, onload_device=device, offload_type="block_level", num_blocks_per_group=1)
    elif offload == "model":
        from accelerate import cpu_offload  # an extra

        whole = [module for module in transformer.modules() if type(module).__name__ in _WHOLE]
        inside = {part for module in whole for part in module.modules()}
        for module in whole:
            cpu_offload(module, execution_device=device, preload_module_classes=[type(module).__name__])
        for module in [module for module in transformer.modules() if module not in inside]:
            if isinstance(module, _MATRICES):
                cpu_offload(module, execution_device=device)
            else:
                # Norm weights and modulation tables are read outside of their module's own call.
                for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                    tensor.data = tensor.data.to(device)
