"""Descriptors of points on many maps at once, without a loop over points or over maps of one grid."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ditf_probe.geometry import Size, resize_points


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
    for members in by_grid(maps).values():
        padded = pad_sequence([places[i] for i in members], batch_first=True)
        found = sample_stacked(torch.stack([maps[i] for i in members]), padded)
        for i, rows in zip(members, found.unbind(), strict=True):
            samples[i] = rows[: len(places[i])]
    return samples


def sample_stacked(maps: Tensor, places: Tensor) -> Tensor:
    """Unit descriptors of points on maps of one grid.

    Args:
        maps: `(B, D, h, w)`.
        places: `(B, K, 2)` (x, y) in cells, from -0.5 to the number of cells - 0.5.

    Returns:
        `(B, K, D)` of length one.
    """
    # What grid_sample calls a place: a two pixel wide image whose centre is the origin.
    scaled = (resize_points(places, maps.shape[2:], (2, 2)) - 0.5).to(maps.dtype)
    found = F.grid_sample(maps, scaled[:, None], padding_mode="border", align_corners=False)[:, :, 0]
    return F.normalize(found.transpose(1, 2), dim=2)


def by_grid(maps: Sequence[Tensor]) -> dict[Size, list[int]]:
    """Which maps have which grid."""
    groups: dict[Size, list[int]] = {}
    for number, features in enumerate(maps):
        groups.setdefault((features.shape[1], features.shape[2]), []).append(number)
    return groups
