"""What trains a probe: contrast between keypoints that correspond and everything else; and what trains a pixel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ditf_probe.data.pairs import Pair, Side
from ditf_probe.errors import InputError
from ditf_probe.geometry import cell_centres, grid_coordinates, resize_points
from ditf_probe.probes.segmentation import enlarged


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

        Raises:
            InputError: NaN or infinity in a map.
        """
        kept = [i for i, pair in enumerate(pairs) if bool(pair.visible.any())]
        if not kept:
            total: Tensor = sum((maps.sum() for maps in (*sources, *targets)), torch.zeros(())) * 0.0
            return total + self.log_temperature * 0.0
        chosen = [pairs[i] for i in kept]
        for name, maps in (("sources", sources), ("targets", targets)):
            if not all(features.isfinite().all() for features in maps):
                raise InputError(name, "NaN or infinity", "lower the learning rate or check the features")
        groups = same_keypoint(chosen)
        source = _Side.of([sources[i] for i in kept], [(pair.source, pair.visible) for pair in chosen])
        target = _Side.of([targets[i] for i in kept], [(pair.target, pair.visible) for pair in chosen])
        return (self._direction(source, target, groups) + self._direction(target, source, groups)) / 2

    def _direction(self, queries: "_Side", keys: "_Side", groups: Tensor) -> Tensor:
        """Cross entropy of the queries over the keys of the batch and the cells of the searched maps."""
        among_keys = torch.cat(queries.descriptors) @ torch.cat(keys.descriptors).T / self.temperature
        alike = (groups[:, None] == groups[None, :]).fill_diagonal_(False)
        among_keys = among_keys.masked_fill(alike, -torch.inf)
        # Apart from the keys, because maps may differ in their number of cells.
        among_cells = self._among_cells(queries.descriptors, keys)
        return (torch.logaddexp(among_keys.logsumexp(dim=1), among_cells) - among_keys.diagonal()).mean()

    def _among_cells(self, queries: Sequence[Tensor], keys: "_Side") -> Tensor:
        """`(M,)` logarithm of the sum over the negatives on the one map that each query searches."""
        sums: list[Tensor] = list(queries)
        for grid, members in _by_grid(keys.maps).items():
            cells = F.normalize(torch.stack([keys.maps[i] for i in members]).flatten(2), dim=1)
            logits = pad_sequence([queries[i] for i in members], batch_first=True) @ cells / self.temperature
            places = pad_sequence([keys.places[i] for i in members], batch_first=True)
            centres = cell_centres(grid, grid).to(places.device).expand(len(members), -1, -1)
            near = torch.cdist(places, centres) <= self.margin
            found = logits.masked_fill(near, -torch.inf).logsumexp(dim=2)
            for i, row in zip(members, found.unbind(), strict=True):
                sums[i] = row[: len(queries[i])]
        return torch.cat(sums)


@dataclass(frozen=True)
class _Side:
    """One side of a batch, map by map.

    Attributes:
        maps: `(D, h, w)`.
        places: `(K, 2)` visible keypoints, in cells of the map.
        descriptors: `(K, D)` of length one.
    """

    maps: Sequence[Tensor]
    places: list[Tensor]
    descriptors: list[Tensor]

    @classmethod
    def of(cls, maps: Sequence[Tensor], annotations: Sequence[tuple[Side, Tensor]]) -> "_Side":
        """Samples maps at the keypoints that a mask `(K,)` leaves of each image."""
        places = [
            grid_coordinates(side.keypoints[mask], side.size, (features.shape[1], features.shape[2])).to(
                features.device
            )
            for (side, mask), features in zip(annotations, maps, strict=True)
        ]
        return cls(maps, places, sample_batch(maps, places))


def sample_batch(maps: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
    """Unit descriptors of points on several maps: what `matching.sample_descriptors` gives map by map, at once.

    A loop over maps would take longer than the rest of a training step on small features.

    Args:
        maps: B maps `(D, h, w)`; grids may differ.
        places: B times `(K, 2)` (x, y) in cells of the map, from -0.5 to the number of cells - 0.5.

    Returns:
        B times `(K, D)` of length one.
    """
    samples = list(maps)
    for grid, members in _by_grid(maps).items():
        # What grid_sample calls a place: a two pixel wide image whose centre is the origin.
        scaled = pad_sequence([resize_points(places[i], grid, (2, 2)) - 0.5 for i in members], batch_first=True)
        stacked = torch.stack([maps[i] for i in members])
        found = F.grid_sample(stacked, scaled[:, None], padding_mode="border", align_corners=False)[:, :, 0]
        for i, rows in zip(members, F.normalize(found.transpose(1, 2), dim=2).unbind(), strict=True):
            samples[i] = rows[: len(places[i])]
    return samples


def _by_grid(maps: Sequence[Tensor]) -> dict[tuple[int, int], list[int]]:
    """Which maps have which grid."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, features in enumerate(maps):
        groups.setdefault((features.shape[1], features.shape[2]), []).append(number)
    return groups


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


def pixel_cross_entropy(scores: Sequence[Tensor], masks: Sequence[Tensor], ignore_index: int = 255) -> Tensor:
    """Mean cross-entropy over the labelled pixels of a batch, scores enlarged to the masks.

    Args:
        scores: B maps `(classes, h, w)`.
        masks: B masks `(H, W)`, integers.
        ignore_index: Marks pixels that count nowhere.

    Returns:
        Scalar; 0 where no pixel is labelled.
    """
    groups: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for number, (one, mask) in enumerate(zip(scores, masks, strict=True)):
        groups.setdefault((one.shape, mask.shape), []).append(number)
    total, count = scores[0].new_zeros(()), 0
    for members in groups.values():
        labels = torch.stack([masks[i] for i in members]).long()
        large = enlarged(torch.stack([scores[i] for i in members]), labels.shape[1:])
        total = total + F.cross_entropy(large, labels, ignore_index=ignore_index, reduction="sum")
        count += int((labels != ignore_index).sum())
    return total / max(1, count)
