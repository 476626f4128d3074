"""A backbone whose streams are planted, and pairs whose images are given."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone, Norm, Tap, TappedBlock
from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.errors import InputError

CHANNELS, STRIDE = 8, 4


class PlantedBackbone(Backbone):
    """The stream is a fixed projection of the patch means plus what was planted, so tests know it.

    Args:
        massive: Channel to what is added to it on every token.
        position: Whether a pattern that depends on the position alone is added.
        modulated: Whether there are shift and scale.
    """

    def __init__(self, massive: dict[int, float] | None = None, position: bool = False, modulated: bool = True) -> None:
        super().__init__()
        self.name, self.num_blocks, self.channels, self.stride = "planted", 3, CHANNELS, STRIDE
        self.massive, self.position, self.modulated = massive or {}, position, modulated
        generator = torch.Generator().manual_seed(0)
        self.project = nn.Parameter(torch.randn(3, CHANNELS, generator=generator), requires_grad=False)
        self.modulation = torch.randn(2, CHANNELS, generator=generator)
        self.calls: list[list[str] | None] = []
        self.arguments: dict[str, Any] = {}

    def taps(self, block: int) -> tuple[Tap, ...]:
        return ("attention",) if block == 2 else ("attention", "mlp")

    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def stream(self, images: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(images, STRIDE).flatten(2).mT @ self.project
        if self.position:
            x = x + 5 * torch.sin(torch.outer(torch.arange(x.shape[1]), torch.arange(CHANNELS) + 1.0))
        for channel, value in self.massive.items():
            x[..., channel] += value
        return x

    def forward(self, images: Tensor, *, image_ids: Sequence[str] | None = None, **arguments: Any) -> Any:
        self.calls.append(None if image_ids is None else list(image_ids))
        self.arguments = arguments
        grid = (images.shape[2] // STRIDE, images.shape[3] // STRIDE)
        shift, scale = ([x.repeat(len(images), 1) for x in self.modulation]) if self.modulated else (None, None)
        blocks = arguments["blocks"]
        return {
            b: TappedBlock((b + 1) * self.stream(images), shift, scale, scale, Norm(eps=1e-5), grid) for b in blocks
        }


class GivenPairs(PairDataset):
    """Pairs of neighbouring images of a list; the last image cannot be read if `broken`."""

    name, unit = "given", "pair"

    def __init__(self, images: Sequence[Tensor], broken: bool = False) -> None:
        self.images, self.broken = list(images), broken

    def __len__(self) -> int:
        return len(self.images) - 1

    def side(self, index: int) -> Side:
        size = (self.images[index].shape[1], self.images[index].shape[2])
        points = torch.zeros(1, 2)
        return Side(f"image{index}", size, points, torch.ones(1, dtype=torch.bool), torch.zeros(4))

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return Pair(index, "thing", str(index), self.side(index), self.side(index + 1))

    def image(self, image_id: str) -> Tensor:
        index = int(image_id.removeprefix("image"))
        if self.broken and index == len(self.images) - 1:
            raise InputError("image", image_id, "cannot be read")
        return self.images[index]


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def planted() -> type[PlantedBackbone]:
    return PlantedBackbone


@pytest.fixture
def given_pairs() -> type[GivenPairs]:
    return GivenPairs


@pytest.fixture
def make_image() -> Callable[..., Tensor]:
    return random_image
