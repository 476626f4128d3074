"""Accuracy of homographies and of the matches that they come from, over the pairs of planar sequences.

The corner error is that of SuperPoint (DeTone et al., CVPRW 2018), as CAPS and DIFT use it on HPatches: the mean
distance between the corners of the first image under the estimated and under the true homography. The matching accuracy
is that of D2-Net (Dusmanu et al., CVPR 2019): the share of a pair's matches that are off by at most a threshold,
averaged over pairs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from ditf_probe.errors import InputError
from ditf_probe.metrics.states import LARGEST_INDEX, Floats, joined

ACCURACY_THRESHOLDS = (1.0, 3.0, 5.0)
MATCHING_THRESHOLDS = tuple(float(pixels) for pixels in range(1, 11))

Accuracies = dict[str, dict[str, Tensor]]


class _PerPair(Metric):
    """Numbers per pair, gathered from any number of ranks; each pair counts once, the first time.

    Args:
        columns: Names of the numbers.
        **kwargs: Synchronisation options of torchmetrics.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    numbers: list[Tensor]

    def __init__(self, columns: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._columns = ("pair_index", "viewpoint", *columns)
        # Flat, since ranks may have seen different numbers of pairs; and one state is gathered at once.
        self.add_state("numbers", default=[], dist_reduce_fx="cat")

    def _add(self, pair_index: Tensor, viewpoint: Tensor, **columns: Tensor) -> None:
        if pair_index.ndim != 1 or pair_index.is_floating_point() or pair_index.dtype == torch.bool:
            raise InputError("pair_index", f"{tuple(pair_index.shape)} {pair_index.dtype}", "give integers (B,)")
        if ((pair_index < 0) | (pair_index >= LARGEST_INDEX)).any():
            raise InputError("pair_index", pair_index.tolist(), f"number the pairs from 0 to {LARGEST_INDEX - 1}")
        if viewpoint.shape != pair_index.shape or viewpoint.dtype != torch.bool:
            raise InputError("viewpoint", f"{tuple(viewpoint.shape)} {viewpoint.dtype}", "give one bool per pair")
        given = (pair_index, viewpoint, *columns.values())
        rows = torch.stack([values.detach().to(self.device, torch.float32) for values in given], dim=1)
        self.numbers.append(rows.flatten())

    def _unique(self) -> dict[str, Floats]:
        """The columns, each pair once, in order of the pairs."""
        rows = joined(self.numbers).reshape(-1, len(self._columns))
        _, first = np.unique(rows[:, 0], return_index=True)
        return dict(zip(self._columns, rows[first].T, strict=True))

    def pairs(self) -> dict[str, Floats]:
        """The numbers of every pair over all ranks, in order of `pair_index`; a collective operation like `compute`."""
        with self.sync_context():
            return self._unique()

    def _means(self, shares: Mapping[str, NDArray[Any]], viewpoint: Floats) -> Accuracies:
        """Percentages over all pairs and over those of each change; NaN without any."""
        chosen = {"all": viewpoint >= 0, "viewpoint": viewpoint > 0, "illumination": viewpoint == 0}
        return {
            change: {key: torch.tensor(_percent(values[own]), device=self.device) for key, values in shares.items()}
            for change, own in chosen.items()
        }


class HomographyAccuracy(_PerPair):
    r"""Share of pairs whose corner error is at most a few pixels.

    As input to `forward` and `update` the metric accepts

    - `corner_error` `(B,)`: float, pixels of the target; infinite where no homography was found, which is a failure;
    - `viewpoint` `(B,)`: bool, whether the viewpoint changes in a pair (True) or the illumination (False);
    - `pair_index` `(B,)`: integers. A pair counts once, the first time, however often padded loaders show it.

    As output it gives percentages under `all`, `viewpoint` and `illumination`, each a dictionary from threshold ("3")
    to score; NaN without any pair.

    Args:
        thresholds: Pixels; errors are compared with `<=`.
        **kwargs: Synchronisation options of torchmetrics.

    Raises:
        InputError: Bad thresholds, or shapes and numbers that do not fit.

    Example:
        >>> import torch
        >>> metric = HomographyAccuracy()
        >>> metric.update(torch.tensor([0.5, 4.0]), torch.tensor([True, False]), torch.tensor([0, 1]))
        >>> metric.compute()["all"]["3"]
        tensor(50.)
    """

    def __init__(self, thresholds: Sequence[float] = ACCURACY_THRESHOLDS, **kwargs: Any) -> None:
        super().__init__(("corner_error",), **kwargs)
        self.thresholds = _checked_thresholds(thresholds)

    def update(self, corner_error: Tensor, viewpoint: Tensor, pair_index: Tensor) -> None:
        """Adds a batch of pairs; shapes are those of the class."""
        if corner_error.shape != pair_index.shape or not (corner_error >= 0).all():
            raise InputError(
                "corner_error", corner_error.tolist(), "give one distance per pair, infinite for a failure"
            )
        self._add(pair_index, viewpoint, corner_error=corner_error)

    def compute(self) -> Accuracies:
        """Scores of all pairs so far, over all ranks."""
        columns = self._unique()
        errors = columns["corner_error"]
        hits = {pixel_key(t): (errors <= t).astype(np.float32) for t in self.thresholds}
        return self._means(hits, columns["viewpoint"])


class MeanMatchingAccuracy(_PerPair):
    r"""Share of the matches of a pair that are off by at most so many pixels, averaged over pairs.

    As input to `forward` and `update` the metric accepts

    - `errors`: B tensors `(M_b,)`, the `match_errors` of each pair. Without any match a pair counts as 0;
    - `viewpoint` `(B,)` and `pair_index` `(B,)` as in `HomographyAccuracy`.

    The output is like that of `HomographyAccuracy`, one percentage per threshold: the curve. `pairs()` has the counts
    behind it, `num_matches` and `num_correct_1`, `num_correct_2` and so on.

    Args:
        thresholds: Pixels; errors are compared with `<=`.
        **kwargs: Synchronisation options of torchmetrics.

    Raises:
        InputError: Bad thresholds, or shapes and numbers that do not fit.

    Example:
        >>> import torch
        >>> metric = MeanMatchingAccuracy((1, 3))
        >>> metric.update([torch.tensor([0.5, 2.0]), torch.zeros(0)], torch.tensor([True, True]), torch.tensor([0, 1]))
        >>> metric.compute()["all"]
        {'1': tensor(25.), '3': tensor(50.)}
    """

    def __init__(self, thresholds: Sequence[float] = MATCHING_THRESHOLDS, **kwargs: Any) -> None:
        checked = _checked_thresholds(thresholds)
        super().__init__(("num_matches", *map(matching_column, checked)), **kwargs)
        self.thresholds = checked

    def update(self, errors: Sequence[Tensor], viewpoint: Tensor, pair_index: Tensor) -> None:
        """Adds a batch of pairs; shapes are those of the class."""
        if len(errors) != len(pair_index) or any(values.ndim != 1 for values in errors):
            shapes = [tuple(values.shape) for values in errors]
            raise InputError("errors", shapes, f"give a list of distances (M,) for each of {len(pair_index)} pairs")
        if any(not (values >= 0).all() for values in errors):
            raise InputError("errors", "negative or NaN", "give distances in pixels")
        counts = {"num_matches": torch.tensor([len(values) for values in errors])}
        for t in self.thresholds:
            counts[matching_column(t)] = torch.tensor([int((values <= t).sum()) for values in errors])
        self._add(pair_index, viewpoint, **counts)

    def compute(self) -> Accuracies:
        """The curve of all pairs so far, over all ranks."""
        columns = self._unique()
        shares = {
            pixel_key(t): columns[matching_column(t)] / np.maximum(columns["num_matches"], 1) for t in self.thresholds
        }
        return self._means(shares, columns["viewpoint"])


def _percent(shares: NDArray[Any]) -> float:
    return 100 * float(shares.mean(dtype=np.float64)) if len(shares) else float("nan")


def pixel_key(threshold: float) -> str:
    """Name of a threshold in results: "3", or as many decimals as it takes."""
    return f"{threshold:g}"


def matching_column(threshold: float) -> str:
    """Name of the count of matches within a threshold, as `MeanMatchingAccuracy.pairs` has it."""
    return f"num_correct_{pixel_key(threshold)}".replace(".", "_")


def _checked_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(t) for t in thresholds)
    if (
        not numbers
        or not all(0 < t < float("inf") for t in numbers)
        or len(set(map(pixel_key, numbers))) < len(numbers)
    ):
        raise InputError("thresholds", list(thresholds), "give positive numbers of pixels, each once")
    return numbers
