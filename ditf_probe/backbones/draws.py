"""The noisy latents of a batch of images, row by row, and the mean over the draws of each image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.backbones.latents import Encoded, LatentSpace, noise
from ditf_probe.conditions import PromptEmbeddings

Condition = Tensor | PromptEmbeddings


class NoiseProcess(Protocol):
    """From clean latents, noise and a timestep to noisy latents, all `(C, h, w)`."""

    def __call__(self, clean: Tensor, eps: Tensor, timestep: int, /) -> Tensor:
        """Adds noise."""


@dataclass(frozen=True, slots=True)
class NoisyBatch:
    """Images that are run together.

    Attributes:
        encoded: Their clean latents.
        ids: Their ids, which seed the noise.
        condition: One row per image.
        timesteps: Noise levels S.
        seed: Seed of the noise.
        noising: How noise is added.
    """

    encoded: Encoded
    ids: Sequence[str]
    condition: Condition
    timesteps: tuple[int, ...]
    seed: int
    noising: NoiseProcess

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, draws: Sequence[int]) -> list[tuple[int, int, int]]:
        """Image, timestep and draw of each row of a pass: image by image, then timestep by timestep."""
        return [(image, t, draw) for image in range(len(self)) for t in self.timesteps for draw in draws]

    def noisy(self, image: int, timestep: int, draw: int) -> Tensor:
        """The noisy latents `(C, h, w)` of one row."""
        image_id = self.ids[image]
        clean = self.encoded.draw(image, seed=self.seed, image_id=image_id, draw=draw)
        eps = noise(clean.shape, seed=self.seed, image_id=image_id, draw=draw, timestep=timestep)
        return self.noising(clean, eps.to(clean.device), timestep)


@dataclass(frozen=True, slots=True)
class Draws:
    """What every image of a call is run with.

    Attributes:
        timesteps: Noise levels S.
        ensemble: Number of draws.
        seed: Seed of the noise.
        noising: How noise is added.
        max_batch: Most rows (image x timestep x draw) of a pass.
    """

    timesteps: tuple[int, ...]
    ensemble: int
    seed: int
    noising: NoiseProcess
    max_batch: int


def run_draws(
    images: Tensor,
    ids: Sequence[str],
    condition: Condition,
    latents: LatentSpace,
    draws: Draws,
    run: Callable[[NoisyBatch, range], dict[int, TappedBlock]],
) -> dict[int, TappedBlock]:
    """Encodes images once each and runs all their draws, as many images at a time as fit a pass.

    Args:
        images: `(B, 3, H, W)` in [0, 1], on the device of the model.
        ids: One per image.
        condition: One row per image.
        latents: Encodes them.
        draws: What each is run with.
        run: As in `mean_over_draws`.

    Returns:
        As `mean_over_draws`, of all images.
    """
    parts = []
    for rows in slices(len(images), max(1, draws.max_batch // (draws.ensemble * len(draws.timesteps)))):
        numbers = torch.arange(rows.start, rows.stop, device=images.device)
        encoded = latents.encode(images[rows])
        batch = NoisyBatch(encoded, ids[rows], condition[numbers], draws.timesteps, draws.seed, draws.noising)
        parts.append(mean_over_draws(batch, draws.ensemble, draws.max_batch, run))
    return {index: TappedBlock.join([part[index] for part in parts], torch.cat) for index in parts[0]}


def only_timestep(blocks: dict[int, TappedBlock]) -> dict[int, TappedBlock]:
    """Drops the axis of the timesteps where there is one timestep."""
    return {index: block.map(lambda x: x[:, 0]) for index, block in blocks.items()}


def mean_over_draws(
    batch: NoisyBatch,
    ensemble: int,
    max_batch: int,
    run: Callable[[NoisyBatch, range], dict[int, TappedBlock]],
) -> dict[int, TappedBlock]:
    """Runs all draws of a batch, a part at a time.

    Args:
        batch: The images.
        ensemble: Number of draws.
        max_batch: Most rows of a pass.
        run: From the batch and some draws to the tapped blocks of all rows.

    Returns:
        Block index to streams `(B, S, N, C)` and modulations `(B, S, C)`: means over the draws in float32; a single
        draw stays as the model computed it.
    """
    sums: dict[int, TappedBlock] = {}
    steps = len(batch.timesteps)
    for part in slices(ensemble, max(1, max_batch // (len(batch) * steps))):
        draws = range(part.start, part.stop)
        for index, tapped in run(batch, draws).items():
            found = tapped.map(partial(_over_draws, images=len(batch), timesteps=steps, keep=ensemble == 1))
            sums[index] = TappedBlock.join([sums[index], found], _sum) if index in sums else found
    return sums if ensemble == 1 else {index: tapped.map(lambda x: x / ensemble) for index, tapped in sums.items()}


def slices(count: int, size: int) -> Iterator[slice]:
    """Cuts `count` things into parts of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _over_draws(rows: Tensor, images: int, timesteps: int, keep: bool) -> Tensor:
    """Rows `(images * timesteps * draws, ...)` to their sums over the draws, or to the only draw."""
    apart = rows.reshape(images, timesteps, -1, *rows.shape[1:])
    return apart[:, :, 0] if keep else apart.float().sum(2)


def _sum(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] + parts[1]
