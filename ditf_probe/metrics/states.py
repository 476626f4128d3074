"""What the metrics share: what a batch of matches must be like, and columns that any number of ranks can gather.

The columns are one-dimensional float32, which is what torchmetrics gathers from ranks that saw different numbers of
pairs, or none.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.errors import InputError

Floats = NDArray[np.float32]
LARGEST_INDEX = 2**24  # float32 counts exactly up to here
NUMBERS = ("similarity", "ceiling")


def joined(state: list[Tensor] | Tensor) -> Floats:
    """A "cat" state as one array, before or after the ranks were joined."""
    values = [state] if isinstance(state, Tensor) else [torch.zeros(0), *state]
    return torch.cat([value.cpu() for value in values]).numpy()


def check_matches(
    predictions: Tensor,
    targets: Tensor,
    visible: Tensor,
    threshold_base: Tensor,
    pair_index: Tensor,
    **others: Tensor | None,
) -> None:
    """Raises InputError unless shapes and types fit and every number that counts is one.

    Args:
        predictions: `(B, K, 2)`, finite where visible.
        targets: `(B, K, 2)`, finite where visible.
        visible: `(B, K)` bool.
        threshold_base: `(B,)`, finite and not negative where a pair shows a keypoint.
        pair_index: `(B,)` integers from 0, below 2**24.
        **others: `(B, K)` each, bool except for those in `NUMBERS`, which may be NaN; None where not given.
    """
    check_shapes(
        predictions, targets=targets, visible=visible, threshold_base=threshold_base, pair_index=pair_index, **others
    )
    if pair_index.is_floating_point() or pair_index.dtype == torch.bool:
        raise InputError("pair_index", pair_index.dtype, "give integers")
    wrong = (pair_index < 0) | (pair_index >= LARGEST_INDEX)
    if wrong.any():
        raise InputError("pair_index", int(pair_index[wrong][0]), f"number the pairs from 0 to {LARGEST_INDEX - 1}")
    check_points("predictions", predictions, visible, pair_index)
    check_points("targets", targets, visible, pair_index)
    wrong = visible.any(1) & ~(threshold_base.isfinite() & (threshold_base >= 0))
    if wrong.any():
        pair = int(wrong.nonzero()[0])
        remedy = f"give pair {int(pair_index[pair])} a length in pixels"
        raise InputError("threshold_base", float(threshold_base[pair]), remedy)


def check_points(name: str, points: Tensor, shown: Tensor, pair_index: Tensor) -> None:
    """Raises InputError unless every point that counts is finite.

    Args:
        name: What the points are called in the message.
        points: `(B, K, 2)`.
        shown: `(B, K)` bool, which of them count.
        pair_index: `(B,)`.
    """
    wrong = shown & ~points.isfinite().all(-1)
    if wrong.any():
        pair, keypoint = wrong.nonzero()[0].tolist()
        place = f"of keypoint {keypoint} of pair {int(pair_index[pair])}"
        raise InputError(name, points[pair, keypoint].tolist(), f"give finite coordinates {place}, or hide it")


def check_shapes(predictions: Tensor, **others: Tensor | None) -> None:
    """Raises InputError unless shapes and types fit; see `check_matches`."""
    if predictions.ndim != 3 or predictions.shape[-1] != 2:
        raise InputError("predictions", tuple(predictions.shape), "give (B, K, 2)")
    shape = tuple(predictions.shape)
    expected = {"targets": shape, "threshold_base": shape[:1], "pair_index": shape[:1]}
    for name, values in others.items():
        wanted = expected.get(name, shape[:2])
        if values is None:
            continue
        if values.shape != wanted:
            raise InputError(name, tuple(values.shape), f"give {wanted}, as `predictions` are {shape}")
        if name not in (*expected, *NUMBERS) and values.dtype != torch.bool:
            raise InputError(name, values.dtype, "give bool")
