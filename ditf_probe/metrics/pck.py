"""Percentage of correct keypoints (PCK).

A keypoint is correct where its prediction lies within alpha times a base length of the annotation: `<=`, as DIFT and
DiTF compare, or `<` (`strict`), as GeoAware-SC does. All four averages of the literature are given: over points or over
images, each over all pairs or over the categories first.

PCK-dagger asks in addition that no other keypoint of the target is nearer to the prediction (Aygün and Mac Aodha, ECCV
2022, arXiv 2207.05054): a prediction between the two eyes, within the threshold of both, is right for one of them only.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from ditf_probe.errors import InputError
from ditf_probe.metrics.nearest import nearest_keypoints
from ditf_probe.metrics.states import check_matches, check_points, joined
from ditf_probe.precision import to_float64

ALPHAS = (0.01, 0.05, 0.10, 0.15)
AVERAGES = ("per_point", "per_image", "category_macro", "category_macro_per_image")

Scores = dict[str, dict[str, Tensor]]


def pck_counts(
    predictions: Tensor,
    targets: Tensor,
    visible: Tensor,
    threshold_base: Tensor,
    alphas: Sequence[float] = ALPHAS,
    *,
    strict: bool = False,
    accepted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Counts correct keypoints per pair.

    Args:
        predictions: `(B, K, 2)` (x, y) in pixels of the original target image.
        targets: `(B, K, 2)` annotated keypoints in the same pixels.
        visible: `(B, K)` bool; what is not visible in both images does not count.
        threshold_base: `(B,)` length in the same pixels that alpha is multiplied by.
        alphas: A thresholds as fractions of it.
        strict: Compare with `<` instead of `<=`.
        accepted: `(B, K)` bool, False where a matching rule says "no match", which is wrong where visible; by default
            every match is accepted.

    Returns:
        num_points: `(B,)` int64 visible keypoints.
        num_correct: `(B, A)` int64 correct ones per threshold.
    """
    # float64: in float32, whole distances could fall on the wrong side of a threshold such as 0.1 * 30.
    distance = (to_float64(predictions) - to_float64(targets)).square().sum(-1).sqrt()
    limits = to_float64(threshold_base)[:, None] * torch.tensor(alphas, dtype=torch.float64, device=distance.device)
    within = distance[..., None] < limits[:, None] if strict else distance[..., None] <= limits[:, None]
    counted = visible if accepted is None else visible & accepted
    return visible.sum(1), (within.to(visible.device) & counted[..., None]).sum(1)


def pck_scores(
    num_points: NDArray[Any], num_correct: NDArray[Any], categories: Sequence[str], alphas: Sequence[float] = ALPHAS
) -> dict[str, dict[str, float]]:
    """Averages the counts of pairs; pairs without visible keypoints count nowhere.

    Args:
        num_points: `(N,)` visible keypoints per pair.
        num_correct: `(N, A)` correct ones per threshold.
        categories: N names.
        alphas: The A thresholds.

    Returns:
        Percentages under `per_point`, `per_image`, `category_macro` (mean over categories of per-point scores) and
        `category_macro_per_image` (of per-image scores), each by threshold as in `alpha_key`; NaN without any point.
    """
    counted = np.asarray(num_points) > 0
    points = np.asarray(num_points, dtype=np.float64)[counted]
    correct = np.asarray(num_correct, dtype=np.float64)[counted]
    keys = [alpha_key(alpha) for alpha in alphas]
    if not len(points):
        values = {name: np.full(len(keys), np.nan) for name in AVERAGES}
    else:
        names, group = np.unique(np.asarray(categories, dtype=object)[counted].astype(str), return_inverse=True)
        member = (group == np.arange(len(names))[:, None]).astype(np.float64)
        shares = correct / points[:, None]
        values = {
            "per_point": correct.sum(0) / points.sum(),
            "per_image": shares.mean(0),
            "category_macro": (member @ correct / (member @ points)[:, None]).mean(0),
            "category_macro_per_image": (member @ shares / member.sum(1)[:, None]).mean(0),
        }
    return {name: dict(zip(keys, (100 * values[name]).tolist(), strict=True)) for name in AVERAGES}


def check_alphas(alphas: Sequence[float]) -> tuple[float, ...]:
    """The thresholds as numbers.

    Raises:
        InputError: None, one that is no positive number, or one twice.
    """
    found = tuple(float(alpha) for alpha in alphas)
    if not found or not all(0 < alpha < float("inf") for alpha in found):
        raise InputError("alphas", alphas, "give at least one positive fraction")
    if len(set(found)) < len(found):
        raise InputError("alphas", alphas, "give each threshold once")
    return found


def alpha_key(alpha: float) -> str:
    """Name of a threshold in results: two decimals, or as many as it takes."""
    return f"{alpha:.2f}" if round(alpha, 2) == alpha else repr(float(alpha))


class PercentageCorrectKeypoints(Metric):
    r"""PCK over all pairs of a data set, on any number of ranks.

    .. math:: \text{PCK}_\alpha = 100 \cdot \frac{1}{K} \sum_k [\lVert p_k - t_k \rVert_2 \leq \alpha \cdot b]

    As input to `forward` and `update` the metric accepts

    - `predictions` `(B, K, 2)` and `targets` `(B, K, 2)`: float (x, y) in pixels of the original target image;
    - `visible` `(B, K)`: bool. The others may hold anything, and K may differ from call to call;
    - `threshold_base` `(B,)`: float, pixels that alpha is multiplied by; NaN is allowed where nothing is visible;
    - `pair_index` `(B,)`: integers. A pair counts once, the first time, however often padded loaders show it;
    - `category`: B names;
    - `accepted` `(B, K)`: bool, optional. Where a matching rule says "no match" of a visible keypoint, that is wrong;
    - `target_visible` `(B, K)`: bool, with `dagger` only: which keypoints the target shows, in the source or not.

    As output it gives a dictionary of percentages, as 0-dimensional float32 tensors: `per_point`, `per_image`,
    `category_macro` (mean over categories of per-point scores) and `category_macro_per_image`, each a dictionary from
    threshold ("0.10") to score. Pairs without visible keypoints count nowhere; without any point, scores are NaN.

    Args:
        alphas: Thresholds as fractions of the base length.
        strict: Compare with `<` instead of `<=`.
        dagger: Score PCK-dagger: a prediction that lies nearer to another visible keypoint of the target is wrong.
        **kwargs: Synchronisation options of torchmetrics.

    Raises:
        InputError: Bad thresholds, shapes that do not fit, or NaN where a number is due.

    Example:
        >>> import torch
        >>> metric = PercentageCorrectKeypoints(alphas=(0.05, 0.10))
        >>> targets = torch.tensor([[[10.0, 10.0], [50.0, 30.0], [70.0, 20.0]]])
        >>> predictions = targets + torch.tensor([[[0.0, 3.0], [8.0, 6.0], [20.0, 0.0]]])
        >>> visible = torch.tensor([[True, True, False]])
        >>> metric.update(predictions, targets, visible, torch.tensor([100.0]), torch.tensor([0]), ["cat"])
        >>> metric.compute()["per_point"]
        {'0.05': tensor(50.), '0.10': tensor(100.)}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 100.0

    pair_index: list[Tensor]
    num_points: list[Tensor]
    category_length: list[Tensor]
    category_letters: list[Tensor]

    def __init__(
        self, alphas: Sequence[float] = ALPHAS, *, strict: bool = False, dagger: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.alphas = check_alphas(alphas)
        self.strict, self.dagger = strict, dagger
        self._correct = [f"num_correct_{alpha_key(alpha)}".replace(".", "_") for alpha in self.alphas]
        # Names travel as their letters: ranks may see different categories.
        for name in ("pair_index", "num_points", *self._correct, "category_length", "category_letters"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self,
        predictions: Tensor,
        targets: Tensor,
        visible: Tensor,
        threshold_base: Tensor,
        pair_index: Tensor,
        category: Sequence[str],
        accepted: Tensor | None = None,
        target_visible: Tensor | None = None,
    ) -> None:
        """Adds a batch of pairs; shapes are those of the class."""
        others = {"accepted": accepted, "target_visible": target_visible}
        check_matches(predictions, targets, visible, threshold_base, pair_index, **others)
        if isinstance(category, str) or len(category) != len(predictions):
            raise InputError("category", category, f"give a sequence of one name per pair, {len(predictions)}")
        if self.dagger:
            accepted = self._own(predictions, targets, target_visible, accepted, pair_index)
        points, correct = pck_counts(
            predictions, targets, visible, threshold_base, self.alphas, strict=self.strict, accepted=accepted
        )
        letters = [ord(letter) for name in category for letter in name]
        rows = {
            "pair_index": pair_index,
            "num_points": points,
            **dict(zip(self._correct, correct.unbind(1), strict=True)),
            "category_length": torch.tensor([len(name) for name in category]),
            "category_letters": torch.tensor(letters),
        }
        for name, values in rows.items():
            getattr(self, name).append(values.to(self.device, torch.float32))

    @staticmethod
    def _own(
        predictions: Tensor, targets: Tensor, target_visible: Tensor | None, accepted: Tensor | None, pair_index: Tensor
    ) -> Tensor:
        """Which predictions are nearest to their own keypoint, of those that are accepted."""
        if target_visible is None:
            raise InputError("target_visible", None, "give (B, K) bool, `dagger` looks for the nearest of them")
        check_points("targets", targets, target_visible, pair_index)
        nearest = nearest_keypoints(predictions, targets, target_visible)
        own = nearest == torch.arange(nearest.shape[1], device=nearest.device)
        return own if accepted is None else own & accepted

    def compute(self) -> Scores:
        """Scores of all pairs so far, over all ranks."""
        _, first = np.unique(joined(self.pair_index), return_index=True)
        points = joined(self.num_points)[first]
        correct = np.stack([joined(getattr(self, name)) for name in self._correct], axis=1)[first]
        letters = "".join(map(chr, joined(self.category_letters).astype(np.int64)))
        lengths = joined(self.category_length).astype(np.int64)
        names = [letters[end - length : end] for length, end in zip(lengths, lengths.cumsum(), strict=True)]
        scores = pck_scores(points, correct, [names[i] for i in first], self.alphas)
        return {
            average: {key: torch.tensor(score, device=self.device) for key, score in row.items()}
            for average, row in scores.items()
        }
