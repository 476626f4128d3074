"""The parts of an entry: what has to be said about a diffusers class to run and tap it.

Paths are dotted; a block is numbered flat over the containers in order.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from ditf_probe.conditions import PromptEmbeddings, PromptShape
from ditf_probe.errors import InputError

Noising = Literal["flow", "ddpm"]
TokenOrder = Literal["image_only", "text_first", "image_first"]


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
    """

    entry: str
    norm: str
    shift: int | None
    scale: int | None
    gate: int | None
    into: str
    read: Callable[[Call], Tensor] = first_input


@dataclass(frozen=True, slots=True)
class Projections:
    """Where query, key and value of the image tokens are computed, and the norms of query and key.

    Attributes:
        query: Path of the linear layer.
        key: As `query`.
        value: As `query`.
        query_norm: Path of the norm before the position encoding; there may be no such module.
        key_norm: As `query_norm`.
        order: Where the image tokens sit in what the layers compute; None as in the stream of the block.
    """

    query: str = "attn.to_q"
    key: str = "attn.to_k"
    value: str = "attn.to_v"
    query_norm: str = "attn.norm_q"
    key_norm: str = "attn.norm_k"
    order: TokenOrder | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingParts:
    """The modules whose outputs add up to the embedding that the modulation of a block is computed from.

    Attributes:
        time: Paths of those that see the timestep (and the guidance); a path that the model lacks is passed over.
        condition: Paths of those that see the class or the prompt; empty where neither enters the modulation.
        shared: The paths start at the transformer instead of the block.
    """

    time: tuple[str, ...]
    condition: tuple[str, ...] = ()
    shared: bool = True


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """Blocks of one kind.

    Attributes:
        container: Path of their list in the transformer.
        modulation: Where their shift, scale and gate come from.
        attention: The AdaLN before attention, the only one of parallel blocks.
        mlp: The AdaLN before the MLP, None where the block has a single one.
        order: Where the image tokens sit in the stream.
        projections: Where query, key and value are computed; None if they cannot be read.
    """

    container: str
    modulation: Modulation
    attention: SubLayer
    mlp: SubLayer | None
    order: TokenOrder = "image_only"
    projections: Projections | None = None


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

    def guidance_rows(self) -> Tensor | None:
        """The guidance scale `(R,)` in the dtype of the latents, None for models that embed none."""
        return None if self.guidance is None else self.latents.new_full((len(self.latents),), self.guidance)


def heads_times_channels(config: Any) -> int:
    """Channels of the stream where the config gives attention heads and channels per head."""
    return int(config.num_attention_heads * config.attention_head_dim)


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
        parts: What the embedding behind its modulations is the sum of; None if it cannot be taken apart. Where a
            condition is part of it, the modulation is a linear layer on the SiLU of that embedding.
        schedule: For "ddpm": config of its noise schedule where none is given, by default that of DiT.
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
    parts: EmbeddingParts | None = None
    schedule: Mapping[str, Any] = field(default_factory=dict)


def as_it_is(timestep: float) -> float:
    """Time from 0 to 1000."""
    return timestep


def as_fraction(timestep: float) -> float:
    """Time from 0 to 1."""
    return timestep / 1000


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
    if config.in_channels != latent_channels:
        remedy = f"the transformer takes {config.in_channels} channels, give the matching autoencoder"
        raise InputError("vae", f"{latent_channels} latent channels", remedy)
    return int(config.patch_size)


def packed_patch(config: Any, latent_channels: int) -> int:
    """Patches are cut before the transformer; its channels are those of a whole patch."""
    patch = math.isqrt(config.in_channels // latent_channels)
    if patch < 1 or latent_channels * patch**2 != config.in_channels:
        remedy = f"the transformer takes tokens of {config.in_channels} channels, give the matching autoencoder"
        raise InputError("vae", f"{latent_channels} latent channels", remedy)
    return patch
