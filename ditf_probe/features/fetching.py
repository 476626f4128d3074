"""Tapped blocks on their way from the device to CPU memory, in the dtypes in which they are kept."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.errors import InputError


def fetch(tapped: Mapping[int, TappedBlock], dtype: torch.dtype) -> Callable[[], dict[int, TappedBlock]]:
    """Starts bringing tapped blocks to CPU memory.

    From a CUDA device they go to pinned memory while it computes on; from elsewhere they are there at once.

    Args:
        tapped: Block index to tensors on one device.
        dtype: Of the streams; shift, scale and gate become float32.

    Returns:
        Waits for the copies, from any thread, and gives them.

    Raises:
        InputError: From what is returned: streams are not finite, or too large for the dtype.
    """
    kept = {
        index: replace(block.map(_to_cpu), hidden_states=_to_cpu(block.hidden_states, dtype))
        for index, block in tapped.items()
    }
    devices = {block.hidden_states.device for block in tapped.values() if block.hidden_states.is_cuda}
    events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def arrived() -> dict[int, TappedBlock]:
        for event in events:
            event.synchronize()
        for block in kept.values():
            if not all(bool(end.isfinite()) for end in torch.aminmax(block.hidden_states)):
                name = str(dtype).removeprefix("torch.")
                raise InputError("dtype", name, "streams are too large for it or not finite, use bfloat16 or float32")
        return kept

    return arrived


def _to_cpu(values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    # Converted where it is, so that no more bytes travel than are kept; torch pins what such a copy goes to.
    return values.to(dtype).to("cpu", non_blocking=values.is_cuda)
