"""What several entries have in common: times, prompts, patches and modulations."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ditf_probe.backbones.families.entry import Call
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.errors import InputError


def as_it_is(timestep: float) -> float:
    """Time from 0 to 1000."""
    return timestep


def as_fraction(timestep: float) -> float:
    """Time from 0 to 1."""
    return timestep / 1000


def as_reversed_fraction(timestep: float) -> float:
    """Time from 1, a clean image, to 0."""
    return 1 - timestep / 1000


def every_token(prompt: PromptEmbeddings) -> Tensor:
    """The text tokens for a model that attends to all of them.

    Raises:
        InputError: Some are masked.
    """
    if prompt.mask is not None:
        raise InputError("conditions.mask", tuple(prompt.mask.shape), "this model attends to every token, give None")
    return prompt.embeds


def zero_padding(prompt: PromptEmbeddings) -> Tensor:
    """The text tokens for a model that attends to all of them but was trained with zero vectors for padding."""
    return prompt.embeds if prompt.mask is None else prompt.embeds * prompt.mask[..., None]


def spatial_patch(config: Any, latent_channels: int) -> int:
    """The transformer cuts the patches itself; its channels are those of the latents."""
    check_channels(config.in_channels, latent_channels)
    return int(config.patch_size)


def video_patch(config: Any, latent_channels: int) -> int:
    """As `spatial_patch`, with sides for frames, rows and columns."""
    check_channels(config.in_channels, latent_channels)
    return int(config.patch_size[1])


def check_channels(taken: int, latent_channels: int) -> None:
    """Refuses an autoencoder whose latents have other channels than the transformer takes."""
    if taken != latent_channels:
        remedy = f"the transformer takes {taken} channels, give the matching autoencoder"
        raise InputError("vae", f"{latent_channels} latent channels", remedy)


def packed_patch(config: Any, latent_channels: int) -> int:
    """Patches are cut before the transformer; its channels are those of a whole patch."""
    patch = math.isqrt(config.in_channels // latent_channels)
    if patch < 1 or latent_channels * patch**2 != config.in_channels:
        remedy = f"the transformer takes tokens of {config.in_channels} channels, give the matching autoencoder"
        raise InputError("vae", f"{latent_channels} latent channels", remedy)
    return patch


def centred_region(grid: tuple[int, int], base: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a grid lies when it is stretched to just fit into the positions that a model was trained on, in the middle.

    Args:
        grid: (h, w) of the token grid.
        base: (h, w) of the positions.

    Returns:
        The corners at the top left and at the bottom right, (row, column).
    """
    longer = 0 if grid[0] * base[1] > grid[1] * base[0] else 1  # the axis that fills its positions
    height, width = (round(base[longer] / grid[longer] * side) for side in grid)
    top, left = round((base[0] - height) / 2), round((base[1] - width) / 2)
    return (top, left), (top + height, left + width)


def table_plus(time: str) -> Callable[[Call], Tensor]:
    """Modulation as a table of the block plus an embedding of the time that all blocks share.

    Args:
        time: The argument of the block that brings the embedding, chunks * C values a row.

    Returns:
        A reader at the input of the block.
    """

    def read(call: Call) -> Tensor:
        embedding: Tensor = call.argument(time)
        table = call.module.get_parameter("scale_shift_table").to(embedding.device)  # an offloaded one lies elsewhere
        return table.reshape(1, -1, table.shape[-1]) + embedding.reshape(len(embedding), -1, table.shape[-1])

    return read
