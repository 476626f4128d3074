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
    similarity: Tensor | None = None,
) -> None:
    """Raises InputError unless shapes and types fit and every number that counts is one.

    Args:
        predictions: `(B, K, 2)`, finite where visible.
        targets: `(B, K, 2)`, finite where visible.
        visible: `(B, K)` bool.
        threshold_base: `(B,)`, finite and not negative where a pair shows a keypoint.
        pair_index: `(B,)` integers from 0, below 2**24.
        similarity: `(B, K)`; may be NaN.
    """
    scores = {} if similarity is None else {"similarity": similarity}
    _check_shapes(
        predictions, targets=targets, visible=visible, threshold_base=threshold_base, pair_index=pair_index, **scores
    )
    if visible.dtype != torch.bool:
        raise InputError("visible", visible.dtype, "give bool")
    if pair_index.is_floating_point() or pair_index.dtype == torch.bool:
        raise InputError("pair_index", pair_index.dtype, "give integers")
    wrong = (pair_index < 0) | (pair_index >= LARGEST_INDEX)
    if wrong.any():
        raise InputError("pair_index", int(pair_index[wrong][0]), f"number the pairs from 0 to {LARGEST_INDEX - 1}")
    for name, points in (("predictions", predictions), ("targets", targets)):
        wrong = visible & ~points.isfinite().all(-1)
        if wrong.any():
            pair, keypoint = wrong.nonzero()[0].tolist()
            place = f"of keypoint {keypoint} of pair {int(pair_index[pair])}"
            raise InputError(name, points[pair, keypoint].tolist(), f"give finite coordinates {place}, or hide it")
    wrong = visible.any(1) & ~(threshold_base.isfinite() & (threshold_base >= 0))
    if wrong.any():
        pair = int(wrong.nonzero()[0])
        remedy = f"give pair {int(pair_index[pair])} a length in pixels"
        raise InputError("threshold_base", float(threshold_base[pair]), remedy)


def _check_shapes(predictions: Tensor, **others: Tensor) -> None:
    if predictions.ndim != 3 or predictions.shape[-1] != 2:
        raise InputError("predictions", tuple(predictions.shape), "give (B, K, 2)")
    shape = tuple(predictions.shape)
    expected = {"targets": shape, "visible": shape[:2], "similarity": shape[:2]}
    for name, values in others.items():
        wanted = expected.get(name, shape[:1])
        if values.shape != wanted:
            raise InputError(name, tuple(values.shape), f"give {wanted}, as `predictions` are {shape}")
