"""Random pairs with maps on grids that differ within a batch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ditf_probe.data.pairs import Pair, Side

Batch = tuple[list[Tensor], list[Tensor], list[Pair]]
GRIDS = ((3, 4), (4, 3), (2, 5))


def draw_batch(seed: int, count: int = 3, width: int = 4, dtype: torch.dtype = torch.float64) -> Batch:
    """Descriptor maps of both sides and annotations; the first pair has a keypoint that both images show."""
    generator = torch.Generator().manual_seed(seed)

    def whole(least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (), generator=generator))

    def side(name: str, keypoints: int) -> Side:
        size = whole(6, 20), whole(6, 20)
        points = torch.rand(keypoints, 2, generator=generator) * torch.tensor([size[1] - 1.0, size[0] - 1.0])
        visible = torch.rand(keypoints, generator=generator) < 0.7
        return Side(name, size, points, visible, torch.tensor([0.0, 0.0, 5.0, 5.0]))

    sources, targets, pairs = [], [], []
    for index in range(count):
        keypoints = whole(1, 4)
        sides = side(f"{index}/a", keypoints), side(f"{index}/b", keypoints)
        if index == 0:
            for one in sides:
                one.visible[0] = True
        pairs.append(Pair(index, "cat" if index % 2 else "dog", str(index), *sides))
        for maps in (sources, targets):
            maps.append(torch.randn(width, *GRIDS[whole(0, 2)], generator=generator, dtype=dtype))
    return sources, targets, pairs


@pytest.fixture
def draw() -> Callable[..., Batch]:
    return draw_batch
