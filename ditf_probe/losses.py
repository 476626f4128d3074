"""What trains a probe: contrast between keypoints that correspond and everything else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditf_probe.data.pairs import Pair
from ditf_probe.errors import InputError
from ditf_probe.geometry import cell_centres, grid_coordinates
from ditf_probe.matching import sample_descriptors


class KeypointContrast(nn.Module):
    """Symmetric InfoNCE over the visible keypoints of a batch, with negatives from the map that is searched.

    In each direction a keypoint must pick its partner among the keypoints of all pairs of the batch and all cells of
    the one image that matching would search. Not counted as negatives: the same keypoint of the same category in
    another pair, which is a match as well, and cells within `margin` cells of the partner, which nearly are it.

    InfoNCE is from van den Oord et al., arXiv 1807.03748, equation 4; its symmetric form with a learnt temperature from
    CLIP (Radford et al., ICML 2021, section 2.3).

    Args:
        temperature: Cosines are divided by this; where it starts if it is learnt.
        learn_temperature: Whether the temperature is a parameter, kept between 0.01 and 1.
        margin: Radius around the partner without negatives, in cells of the searched map.
    """

    def __init__(self, temperature: float = 0.07, learn_temperature: bool = True, margin: float = 1.0) -> None:
        super().__init__()
        if not 0.01 <= temperature <= 1:
            raise InputError("temperature", temperature, "give a number from 0.01 to 1")
        if not 0 <= margin < math.inf:
            raise InputError("margin", margin, "give a number of cells, 0 or more")
        self.margin = margin
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learn_temperature)

    @property
    def temperature(self) -> Tensor:
        """The temperature, a scalar."""
        return self.log_temperature.exp().clamp(0.01, 1.0)

    def forward(self, sources: Sequence[Tensor], targets: Sequence[Tensor], pairs: Sequence[Pair]) -> Tensor:
        """The loss of a batch of pairs.

        Args:
            sources: Descriptor map of each source image, `(D, h, w)`, covering the original image.
            targets: Descriptor map of each target image, `(D, h, w)`.
            pairs: Annotations.

        Returns:
            Scalar, the mean of both directions; 0 (with a graph) where no keypoint is visible in both images.
        """
        kept = [i for i, pair in enumerate(pairs) if bool(pair.visible.any())]
        if not kept:
            total: Tensor = sum((maps.sum() for maps in (*sources, *targets)), torch.zeros(())) * 0.0
            return total + self.log_temperature * 0.0
        groups = same_keypoint([pairs[i] for i in kept]).to(sources[0].device)
        a = [_Points.sample(sources[i], pairs[i], "source") for i in kept]
        b = [_Points.sample(targets[i], pairs[i], "target") for i in kept]
        forward = self._direction(a, b, [targets[i] for i in kept], groups)
        backward = self._direction(b, a, [sources[i] for i in kept], groups)
        return (forward + backward) / 2

    def _direction(
        self, queries: "list[_Points]", keys: "list[_Points]", searched: list[Tensor], groups: Tensor
    ) -> Tensor:
        """Cross entropy of the queries over the keys of the batch and the cells of the searched maps."""
        query = torch.cat([points.descriptors for points in queries])
        key = torch.cat([points.descriptors for points in keys])
        among_keys = query @ key.T / self.temperature
        others = (groups[:, None] == groups[None, :]) & ~torch.eye(len(query), dtype=torch.bool, device=query.device)
        among_keys = among_keys.masked_fill(others, -torch.inf)
        among_cells = [self._cells(*pair) for pair in zip(queries, keys, searched, strict=True)]
        # Normalisers apart, because maps may differ in their number of cells.
        normaliser = torch.logaddexp(among_keys.logsumexp(dim=1), torch.cat(among_cells))
        return (normaliser - among_keys.diagonal()).mean()

    def _cells(self, queries: "_Points", partners: "_Points", searched: Tensor) -> Tensor:
        """`(K,)` logarithm of the sum over the cells of one map that are negatives."""
        cosines = queries.descriptors @ F.normalize(searched.flatten(1), dim=0)
        grid = (searched.shape[1], searched.shape[2])
        cells = cell_centres(grid, grid).to(searched.device)
        near = torch.cdist(partners.cells(grid), cells) <= self.margin
        return (cosines / self.temperature).masked_fill(near, -torch.inf).logsumexp(dim=1)


@dataclass(frozen=True)
class _Points:
    """Visible keypoints of one image: unit descriptors `(K, D)`, pixels `(K, 2)` and the size of the image."""

    descriptors: Tensor
    pixels: Tensor
    size: tuple[int, int]

    @classmethod
    def sample(cls, features: Tensor, pair: Pair, side: Literal["source", "target"]) -> "_Points":
        image = pair.source if side == "source" else pair.target
        pixels = image.keypoints[pair.visible].to(features.device)
        return cls(sample_descriptors(features, pixels, image.size), pixels, image.size)

    def cells(self, grid: tuple[int, int]) -> Tensor:
        """`(K, 2)` in cells of a grid over the image."""
        return grid_coordinates(self.pixels, self.size, grid)


def same_keypoint(pairs: Sequence[Pair]) -> Tensor:
    """Numbers that are equal where two visible keypoints mean the same: category and row are equal.

    Args:
        pairs: Annotations.

    Returns:
        `(M,)` int64 over the visible keypoints of all pairs, in order.
    """
    keys = [(pair.category, row) for pair in pairs for row in pair.visible.nonzero()[:, 0].tolist()]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys], dtype=torch.int64)
