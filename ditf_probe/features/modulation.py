"""The pure steps between a raw residual stream and a DiTF feature. All compute in float32 or better."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.errors import InputError, check_choice

NormKind = Literal["layer_norm", "rms_norm"]


def modulate(
    hidden_states: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    *,
    norm: NormKind = "layer_norm",
    eps: float = 1e-6,
) -> Tensor:
    """Adaptive layer norm, (1 + scale) * norm(x) + shift (DiTF, AdaLN equation), the norm without own weights.

    Args:
        hidden_states: `(B, N, C)` raw residual stream.
        shift: `(B, C)`, `(C,)`, or None for zero.
        scale: `(B, C)`, `(C,)`, or None for zero.
        norm: "layer_norm" (subtract the mean over channels, divide by the standard deviation) or "rms_norm".
        eps: Added to the variance, or to the mean square.

    Returns:
        `(B, N, C)` float32 (float64 if the stream is).

    Raises:
        InputError: Unknown norm, or a stream without the three axes.
    """
    check_choice("norm", norm, NormKind)
    if hidden_states.ndim != 3:
        raise InputError("hidden_states", tuple(hidden_states.shape), "give tokens as (B, N, C)")
    x = _at_least_float32(hidden_states)
    width = (x.shape[-1],)
    x = F.layer_norm(x, width, eps=eps) if norm == "layer_norm" else F.rms_norm(x, width, eps=eps)
    if scale is not None:
        x = x * (1 + _per_token(scale).to(x))
    if shift is not None:
        x = x + _per_token(shift).to(x)
    return x


def discard_channels(x: Tensor, channels: Sequence[int]) -> Tensor:
    """Sets channels to zero.

    Args:
        x: `(B, N, C)`.
        channels: Indices from 0 to C - 1; empty changes nothing.

    Returns:
        `(B, N, C)` of the same dtype, `x` untouched.

    Raises:
        InputError: An index out of range.
    """
    width = x.shape[-1]
    for channel in channels:
        if not 0 <= channel < width:
            raise InputError("massive_channels", channel, f"use indices from 0 to {width - 1}")
    return x.index_fill(-1, torch.tensor(sorted(channels), dtype=torch.int64, device=x.device), 0)


def find_massive_channels(hidden_states: Tensor, ratio: float = 100.0) -> list[int]:
    """Channels whose mean magnitude is at least `ratio` times the median magnitude of the stream.

    Args:
        hidden_states: `(B, N, C)` raw residual stream of calibration images.
        ratio: How massive is massive (DiTF: about 100).

    Returns:
        Indices in ascending order; empty where there is none, never a "top k".

    Raises:
        InputError: No tokens, values that are not finite (float16 saturates on massive channels), or a ratio that is
            not positive.
    """
    if not ratio > 0:
        raise InputError("ratio", ratio, "use a positive number, such as 100")
    magnitude = _at_least_float32(hidden_states).abs()
    if not magnitude.numel() or not bool(magnitude.isfinite().all()):
        raise InputError("hidden_states", tuple(hidden_states.shape), "needs at least one token, all values finite")
    mean = magnitude.flatten(0, -2).mean(0)
    massive = (mean >= ratio * magnitude.median()) & (mean > 0)
    return [int(channel) for channel in massive.nonzero().flatten()]


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _per_token(parameters: Tensor) -> Tensor:
    return parameters[:, None] if parameters.ndim == 2 else parameters
