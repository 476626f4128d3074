"""Keypoint average precision (KAP): does the similarity of a match tell whether it is right?

PCK asks about keypoints that both images show, and never whether a matcher knows that the target does not show one.
KAP (Mariotti et al., CVPR 2024, arXiv 2312.13216; used in "Jamais Vu", arXiv 2506.08220) ranks the matches of all
keypoints that the source shows by their similarity. A match is positive if the target shows the keypoint and the match
lies within the threshold; it is negative if it lies outside or the target does not show the keypoint.

The code of the authors takes two values of every similarity map, its maxima inside and outside the threshold. Here a
keypoint has one match, the one that a matching rule found, so numbers agree in what they order and not in value.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from ditf_probe.errors import InputError
from ditf_probe.metrics.pck import ALPHAS, alpha_key, check_alphas, pck_counts
from ditf_probe.metrics.states import check_matches, check_points, check_shapes, joined


def average_precision(confidence: NDArray[Any], positive: NDArray[Any]) -> float:
    r"""Area under the steps of the curve of precision over recall.

    .. math:: \text{AP} = 100 \cdot \sum_n (R_n - R_{n - 1}) P_n

    over the different values of the confidence, from the highest on; equal ones fall together.

    Args:
        confidence: `(R,)`, no NaN; -inf ranks below everything.
        positive: `(R,)` bool.

    Returns:
        Percent; 0 where nothing is positive, NaN where there is nothing.
    """
    if not len(confidence):
        return float("nan")
    order = np.argsort(confidence)[::-1]
    ranked, hits = confidence[order], np.cumsum(positive[order], dtype=np.float64)
    if not hits[-1]:
        return 0.0
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    recall, precision = hits[ends] / hits[-1], hits[ends] / (ends + 1)
    return float(100 * (np.diff(recall, prepend=0.0) * precision).sum())


class KeypointAveragePrecision(Metric):
    """KAP over all keypoints that the sources show, on any number of ranks.

    As input to `forward` and `update` the metric accepts

    - `predictions` `(B, K, 2)` and `targets` `(B, K, 2)`: float (x, y) in pixels of the original target image;
    - `source_visible` and `target_visible` `(B, K)`: bool. Keypoints that the source does not show do not count;
    - `similarity` `(B, K)`: float, the confidence of each match;
    - `threshold_base` `(B,)`: float, pixels that alpha is multiplied by; may be NaN where nothing is visible in both;
    - `pair_index` `(B,)`: integers. A pair counts once, the first time, however often padded loaders show it;
    - `accepted` `(B, K)`: bool, optional. A match that a rule rejects ranks below all that are accepted.

    As output it gives a dictionary from threshold ("0.10") to percent, as 0-dimensional float32 tensors: 0 where no
    match is right, NaN without any keypoint.

    Args:
        alphas: Thresholds as fractions of the base length.
        strict: Compare distances with `<` instead of `<=`.
        **kwargs: Synchronisation options of torchmetrics.

    Raises:
        InputError: Bad thresholds, shapes that do not fit, or NaN where a number is due.

    Example:
        >>> import torch
        >>> metric = KeypointAveragePrecision(alphas=(0.10,))
        >>> targets = torch.tensor([[[10.0, 10.0], [50.0, 30.0], [0.0, 0.0]]])
        >>> predictions = torch.tensor([[[10.0, 12.0], [50.0, 60.0], [70.0, 20.0]]])
        >>> source_visible = torch.tensor([[True, True, True]])
        >>> target_visible = torch.tensor([[True, True, False]])
        >>> similarity = torch.tensor([[0.7, 0.4, 0.8]])  # surest of the one that is not there
        >>> base, pair_index = torch.tensor([100.0]), torch.tensor([0])
        >>> metric.update(predictions, targets, source_visible, target_visible, similarity, base, pair_index)
        >>> metric.compute()
        {'0.10': tensor(50.)}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 100.0

    pair_index: list[Tensor]
    keypoint: list[Tensor]
    confidence: list[Tensor]

    def __init__(self, alphas: Sequence[float] = ALPHAS, *, strict: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alphas, self.strict = check_alphas(alphas), strict
        self._positive = [f"positive_{alpha_key(alpha)}".replace(".", "_") for alpha in self.alphas]
        for name in ("pair_index", "keypoint", "confidence", *self._positive):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        predictions: Tensor,
        targets: Tensor,
        source_visible: Tensor,
        target_visible: Tensor,
        similarity: Tensor,
        threshold_base: Tensor,
        pair_index: Tensor,
        accepted: Tensor | None = None,
    ) -> None:
        """Adds a batch of pairs; shapes are those of the class."""
        others = {"source_visible": source_visible, "target_visible": target_visible, "accepted": accepted}
        check_shapes(predictions, **others)
        shown = source_visible & target_visible
        check_matches(predictions, targets, shown, threshold_base, pair_index, similarity=similarity, **others)
        check_points("predictions", predictions, source_visible, pair_index)
        if similarity[source_visible].isnan().any():
            raise InputError("similarity", float("nan"), "give a number for every keypoint that the source shows")
        pair, keypoint = source_visible.nonzero(as_tuple=True)
        base = threshold_base[pair]
        _, positive = pck_counts(
            predictions[pair, keypoint, None],
            targets[pair, keypoint, None],
            shown[pair, keypoint, None],
            base,
            self.alphas,
            strict=self.strict,
        )
        confidence = similarity if accepted is None else similarity.masked_fill(~accepted, -torch.inf)
        columns = (pair_index[pair], keypoint, confidence[pair, keypoint], *positive.unbind(1))
        for name, values in zip(("pair_index", "keypoint", "confidence", *self._positive), columns, strict=True):
            getattr(self, name).append(values.detach().to(self.device, torch.float32))

    def compute(self) -> dict[str, Tensor]:
        """Percent per threshold of all pairs so far, over all ranks."""
        keys = np.stack([joined(self.pair_index), joined(self.keypoint)])
        _, first = np.unique(keys, axis=1, return_index=True)
        confidence = joined(self.confidence)[first]
        return {
            alpha_key(alpha): torch.tensor(
                average_precision(confidence, joined(getattr(self, name))[first]), device=self.device
            )
            for alpha, name in zip(self.alphas, self._positive, strict=True)
        }
