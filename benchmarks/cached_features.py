"""A feature store of noise, as wide as that of a large model, and pairs of its images: what probes are trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone, Norm, Tap, TappedBlock
from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.tasks.models import make_stream
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.streams import Stream

STRIDE = 16


class AbsentBackbone(Backbone):
    """Stands for a model whose features are all in a store.

    Args:
        channels: Width of its stream.
        blocks: How many.
        device: Where features are made.
    """

    name, stride = "absent", STRIDE

    def __init__(self, channels: int, blocks: int, device: torch.device) -> None:
        super().__init__()
        self.channels, self.num_blocks = channels, blocks
        self.place = nn.Parameter(torch.zeros(1, device=device), requires_grad=False)

    def taps(self, block: int) -> tuple[Tap, ...]:
        del block
        return ("attention", "mlp")

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "class": type(self).__name__, "channels": self.channels}

    def forward(self, images: Tensor, **options: Any) -> NoReturn:  # type: ignore[override]
        raise RuntimeError("an image is missing in the store")


class NoisePairs(PairDataset):
    """Pairs of images without pixels, with random keypoints.

    Args:
        images: How many images.
        pairs: How many pairs.
        size: (height, width) of an image in pixels.
        keypoints: Of a pair.
    """

    name, unit = "noise", "pair"

    def __init__(self, images: int, pairs: int, size: tuple[int, int], keypoints: int) -> None:
        self.images, self.pairs, self.size, self.keypoints = images, pairs, size, keypoints

    def __len__(self) -> int:
        return self.pairs

    def __getitem__(self, index: int) -> Pair:
        if index >= self.pairs:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(index)
        sides = []
        for image in torch.randint(0, self.images, (2,), generator=generator).tolist():
            points = torch.rand(self.keypoints, 2, generator=generator) * (torch.tensor(self.size[::-1]) - 1)
            box = torch.tensor([0.0, 0.0, self.size[1] - 1.0, self.size[0] - 1.0])
            sides.append(Side(str(image), self.size, points, torch.ones(self.keypoints, dtype=torch.bool), box))
        return Pair(index, f"category {index % 4}", str(index), *sides)

    def image(self, image_id: str) -> Tensor:
        raise RuntimeError(f"image {image_id} is missing in the store")

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        return {str(number): self.size for number in range(self.images)}


def stored_stream(
    folder: Path, dataset: NoisePairs, channels: int, blocks: Sequence[int], device: torch.device, dtype: str
) -> Stream:
    """Writes noise for every image to a store, and opens it as a training does.

    Args:
        folder: For the store.
        dataset: Whose images.
        channels: Width of the stream.
        blocks: Of each image.
        device: Where features are made.
        dtype: Of the store.
    """
    backbone = AbsentBackbone(channels, max(blocks) + 1, device)
    features = BackboneFeatures(blocks=list(blocks), timestep=0, bank_dtype=dtype, bank_gib=64.0, store=str(folder))
    grid = (dataset.size[0] // STRIDE, dataset.size[1] // STRIDE)
    generator, writing = torch.Generator(device).manual_seed(0), make_stream(backbone, features, blocks)
    writing.bank.plan(dataset)
    for image_id in dataset.image_sizes():
        writing.bank.keep([image_id], {block: noise_block(channels, grid, generator) for block in blocks})
    stream = make_stream(backbone, features, blocks)
    stream.open(dataset)
    return stream


def noise_block(channels: int, grid: tuple[int, int], generator: torch.Generator) -> TappedBlock:
    """The stream of one image and its modulation."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    shift, scale, gate = (0.2 * normal(1, channels) for _ in range(3))
    return TappedBlock(normal(1, grid[0] * grid[1], channels), shift, scale, gate, Norm(), grid)
