"""Positional debias: what noise images have in common at each position is projected out of the features.

After INSID3 (arXiv 2603.28480), which removes it from DINOv3: features of an image without content, each of length one,
centred over the positions; their leading singular vectors span the subspace of position, and features keep what is
orthogonal to it. Here the content of the noise is averaged out over several seeded images.
"""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.backbones.latents import noise
from ditf_probe.errors import InputError

_DEVIATION = 0.25  # about that of photos around middle grey


def noise_images(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Gaussian noise around middle grey, the same on every machine.

    Args:
        count: Number of images N.
        size: (height, width) in pixels.
        seed: Seed of the run.

    Returns:
        `(N, 3, H, W)` float32 in [0, 1].
    """
    draws = [noise((3, *size), seed=seed, image_id="position", draw=draw, timestep=0) for draw in range(count)]
    return (0.5 + _DEVIATION * torch.stack(draws)).clamp(0, 1)


def position_components(features: Tensor, count: int) -> Tensor:
    """The directions in which the features of noise images depend on the position.

    Args:
        features: `(N, C, h, w)` features of N noise images.
        count: Number of directions K.

    Returns:
        `(K, C)` float32 on the CPU, orthonormal, the strongest first: left singular vectors of the mean over
        images of features of length one, centred over positions. Computed in float64.

    Raises:
        InputError: There are fewer than K such directions.
    """
    most = min(features.shape[1], features.shape[2] * features.shape[3] - 1)
    if not 0 < count <= most:
        remedy = f"use 1 to {most}: {features.shape[1]} channels on {features.shape[2]} x {features.shape[3]} tokens"
        raise InputError("debias_components", count, remedy)
    mean = F.normalize(features.to("cpu", torch.float64), dim=1).mean(0).flatten(1)
    centred = mean - mean.mean(1, keepdim=True)
    _, vectors = torch.linalg.eigh(centred @ centred.T)  # ascending
    components: Tensor = vectors[:, -count:].flip(1).T.float()
    return components


def project_out(features: Tensor, components: Tensor) -> Tensor:
    """Features without their part along some directions.

    Args:
        features: `(..., C, h, w)`.
        components: `(K, C)`, orthonormal.

    Returns:
        `(..., C, h, w)` float32.
    """
    basis = components.to(features.device, torch.float32)
    tokens = features.float().flatten(-2)
    return (tokens - basis.T @ (basis @ tokens)).reshape(features.shape)


class PositionBasis:
    """The components of every block, grid and recipe that is asked for, computed on first use.

    Args:
        tapped: Runs the backbone: prepared images and their ids to tapped blocks.
        components: Number of directions K.
        images: Number of noise images.
        seed: Seed of the noise.

    Raises:
        InputError: Less than one component or image.
    """

    def __init__(
        self,
        tapped: Callable[[Tensor, Sequence[str]], dict[int, TappedBlock]],
        components: int,
        images: int,
        seed: int,
    ) -> None:
        for name, value in (("debias_components", components), ("debias_images", images)):
            if value < 1:
                raise InputError(name, value, "use at least 1")
        self.components, self.images, self.seed = components, images, seed
        self._tapped = tapped
        self._found: dict[tuple[Hashable, int, tuple[int, int]], Tensor] = {}

    def at(
        self,
        block: int,
        grid: tuple[int, int],
        recipe: Hashable,
        make: Callable[[int, TappedBlock], Tensor],
        stride: int,
    ) -> Tensor:
        """The components `(K, C)` of one block.

        Args:
            block: Its index.
            grid: (h, w) of its tokens.
            recipe: Name of how features are made.
            make: From a block index and its tapped values to features `(N, C, h, w)`.
            stride: Pixels of the prepared image per token side.
        """
        if (recipe, block, grid) not in self._found:
            images = noise_images(self.images, (grid[0] * stride, grid[1] * stride), self.seed)
            ids = [f"position {number}" for number in range(self.images)]
            for index, tapped in self._tapped(images, ids).items():
                self._found[recipe, index, tapped.grid] = position_components(make(index, tapped), self.components)
        return self._found[recipe, block, grid]

    def clear(self) -> None:
        """Forgets all, for example because other channels are discarded now."""
        self._found.clear()
