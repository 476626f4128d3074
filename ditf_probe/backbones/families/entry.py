"""The parts of an entry: what has to be said about a diffusers class to run and tap it.

Paths are dotted; a block is numbered flat over the containers in order.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ditf_probe.conditions import PromptEmbeddings, PromptShape
from ditf_probe.errors import InputError

Noising = Literal["flow", "ddpm"]
TokenOrder = Literal["image_only", "text_first", "image_first", "after_text"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a hooked module.

    Attributes:
        module: The module.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        output: What it returned; None in a hook on the input.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None

    def argument(self, name: str) -> Any:
        """An argument by its name, however it was passed."""
        return inspect.signature(self.module.forward).bind(*self.args, **self.kwargs).arguments[name]


def first_input(call: Call) -> Tensor:
    """The first positional argument, or `hidden_states`."""
    value: Tensor = call.args[0] if call.args else call.kwargs["hidden_states"]
    return value


def output(call: Call) -> Tensor:
    """What the module returned."""
    value: Tensor = call.output
    return value


@dataclass(frozen=True, slots=True)
class Modulation:
    """Where shift, scale and gate are computed.

    Attributes:
        module: Path of the module whose call shows them, "" for the block itself.
        at: Hook its "input" or its "output". A sum of a table and an embedding is read at the input of the block.
        read: From that call to chunks of C channels, `(B, chunks * C)` or `(B, chunks, C)`.
        shared: The path starts at the transformer instead of the block.
    """

    module: str
    at: Literal["input", "output"] = "output"
    read: Callable[[Call], Tensor] = output
    shared: bool = False


@dataclass(frozen=True, slots=True)
class SubLayer:
    """One AdaLN of a block.

    Attributes:
        entry: Path of the module whose input is the raw stream.
        norm: Path of the module that normalises; kind, eps and weights are read from it.
        shift: Chunk of the modulation, None where the model has none.
        scale: As `shift`.
        gate: As `shift`.
        into: Path of the module that the modulated stream enters. Nothing is read there; it is what tests compare with.
        read: From the call of `entry` to the raw stream `(B, tokens, C)`; other layouts are brought there.
        weight_offset: What the norm adds to its weight: 1 where the weight counts from zero.
    """

    entry: str
    norm: str
    shift: int | None
    scale: int | None
    gate: int | None
    into: str
    read: Callable[[Call], Tensor] = first_input
    weight_offset: float = 0.0


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """Blocks of one kind.

    Attributes:
        container: Path of their list in the transformer.
        modulation: Where their shift, scale and gate come from.
        attention: The AdaLN before attention, the only one of parallel blocks.
        mlp: The AdaLN before the MLP, None where the block has a single one.
        order: Where the image tokens sit in the stream; "after_text" is directly after the text tokens that count in
            each row, with padding behind.
    """

    container: str
    modulation: Modulation
    attention: SubLayer
    mlp: SubLayer | None
    order: TokenOrder = "image_only"


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """What a call of the transformer is made of, one row per image and draw.

    Attributes:
        latents: `(R, C, H, W)` noisy latents.
        time: `(R,)` in the units of the model.
        condition: `(R,)` class labels or prompts.
        grid: (h, w) of the token grid.
        patch: Side of a token in latents.
        guidance: Guidance scale for models that embed it, else None.
        size: (height, width) of the prepared images in pixels.
        config: Of the transformer.
    """

    latents: Tensor
    time: Tensor
    condition: Tensor | PromptEmbeddings
    grid: tuple[int, int]
    patch: int
    guidance: float | None
    size: tuple[int, int]
    config: Any

    @property
    def prompt(self) -> PromptEmbeddings:
        """The condition of a model that takes prompts."""
        assert isinstance(self.condition, PromptEmbeddings)
        return self.condition

    @property
    def text_mask(self) -> Tensor:
        """`(R, L)` bool, True on the text tokens that count: all of them where the prompts have no mask."""
        return mask_or_all(self.prompt.mask, self.prompt.embeds)

    @property
    def text_lengths(self) -> Tensor | None:
        """`(R,)` text tokens that count, None without prompts."""
        return self.text_mask.sum(1) if isinstance(self.condition, PromptEmbeddings) else None


def mask_or_all(mask: Tensor | None, embeds: Tensor) -> Tensor:
    """The mask of text tokens `(R, L)`; without one every token counts."""
    return embeds.new_ones(embeds.shape[:2], dtype=torch.bool) if mask is None else mask


def heads_times_channels(config: Any) -> int:
    """Channels of the stream where the config gives attention heads and channels per head."""
    return int(config.num_attention_heads * config.attention_head_dim)


def hidden_size(config: Any) -> int:
    """Channels of the stream where the config gives them."""
    return int(config.hidden_size)


@dataclass(frozen=True, slots=True)
class Family:
    """How to run and tap one diffusers class.

    Attributes:
        groups: The kinds of blocks in order of execution.
        call: From the inputs to the keyword arguments of the transformer.
        patch: From its config and the number of latent channels to the side of a token in latents.
        noising: How its training noised images.
        time: From a timestep in 0 to 1000 to the model's own unit.
        text: From its config to the shape of its prompts; None takes class labels.
        tiny: Arguments of the class for a very small model; every test of entries runs on it.
        vae: Class of its autoencoder, a key of `AUTOENCODERS`.
        width: From its config to the channels of the stream.
    """

    groups: tuple[BlockGroup, ...]
    call: Callable[[ModelInputs], dict[str, Any]]
    patch: Callable[[Any, int], int]
    noising: Noising
    time: Callable[[float], float]
    text: Callable[[Any], PromptShape] | None
    tiny: Mapping[str, Any]
    vae: str = "AutoencoderKL"
    width: Callable[[Any], int] = field(default=heads_times_channels)


def as_it_is(timestep: float) -> float:
    """Time from 0 to 1000."""
    return timestep


def as_fraction(timestep: float) -> float:
    """Time from 0 to 1."""
    return timestep / 1000


def as_reversed_fraction(timestep: float) -> float:
    """Time from 1, a clean image, to 0."""
    return 1 - timestep / 1000


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


def table_plus(time: str) -> Callable[[Call], Tensor]:
    """Modulation as a table of the block plus an embedding of the time that all blocks share.

    Args:
        time: The argument of the block that brings the embedding, chunks * C values a row.

    Returns:
        A reader at the input of the block.
    """

    def read(call: Call) -> Tensor:
        table: Tensor = call.module.scale_shift_table
        embedding: Tensor = call.argument(time)
        return table.reshape(1, -1, table.shape[-1]) + embedding.reshape(len(embedding), -1, table.shape[-1])

    return read


def adaln_zero_blocks(mlp_norm: str, attention: str = "attn", container: str = "transformer_blocks") -> BlockGroup:
    """Blocks whose first AdaLN computes the six chunks of both.

    Args:
        mlp_norm: Path of the norm before the MLP.
        attention: Path of the attention.
        container: Path of the list of blocks.
    """
    return BlockGroup(
        container,
        Modulation("norm1.linear"),
        attention=SubLayer("norm1", norm="norm1.norm", shift=0, scale=1, gate=2, into=attention),
        mlp=SubLayer(mlp_norm, norm=mlp_norm, shift=3, scale=4, gate=5, into="ff"),
    )


def parallel_blocks(
    order: TokenOrder, into: str = "proj_mlp", container: str = "single_transformer_blocks"
) -> BlockGroup:
    """Blocks with one AdaLN before attention and MLP, which run side by side on one sequence of text and image.

    Args:
        order: Where the image tokens sit.
        into: Path of a module that the modulated stream enters.
        container: Path of the list of blocks.
    """
    return BlockGroup(
        container,
        Modulation("norm.linear"),
        attention=SubLayer("norm", norm="norm.norm", shift=0, scale=1, gate=2, into=into),
        mlp=None,
        order=order,
    )
