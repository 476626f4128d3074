"""The parts of an entry: what has to be said about a diffusers class to run and tap it.

Paths are dotted; a block is numbered flat over the containers in order.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ditf_probe.conditions import PromptEmbeddings, PromptShape

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
        modulation: Where its chunks come from, if from elsewhere than those of the other AdaLN.
    """

    entry: str
    norm: str
    shift: int | None
    scale: int | None
    gate: int | None
    into: str
    read: Callable[[Call], Tensor] = first_input
    weight_offset: float = 0.0
    modulation: Modulation | None = None


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
        fused: The three are one layer; its first channels are query, key and value, each as wide as the stream.
    """

    query: str = "attn.to_q"
    key: str = "attn.to_k"
    value: str = "attn.to_v"
    query_norm: str = "attn.norm_q"
    key_norm: str = "attn.norm_k"
    order: TokenOrder | None = None
    fused: bool = False


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
        modulation: Where their shift, scale and gate come from, unless a sub-layer has its own.
        attention: The AdaLN before attention, the only one of parallel blocks.
        mlp: The AdaLN before the MLP, None where the block has a single one.
        order: Where the image tokens sit in the stream; "after_text" is directly after the text tokens that count in
            each row, with padding behind.
        projections: Where query, key and value are computed.
    """

    container: str
    modulation: Modulation
    attention: SubLayer
    mlp: SubLayer | None
    order: TokenOrder = "image_only"
    projections: Projections = Projections()


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
        scaled: Its latents are multiplied by the scaling factor of the autoencoder, where that has one.
        width: From its config to the channels of the stream.
        parts: What the embedding behind its modulations is the sum of; None if it cannot be taken apart. Where a
            condition is part of it, the modulation is a linear layer on the SiLU of that embedding.
        schedule: For "ddpm": config of its noise schedule where none is given, by default that of DiT.
        uninitialised: Names of stacked matrices `(..., inputs, outputs)` that the class leaves as the memory was; an
            untrained control initialises them like linear layers.
    """

    groups: tuple[BlockGroup, ...]
    call: Callable[[ModelInputs], dict[str, Any]]
    patch: Callable[[Any, int], int]
    noising: Noising
    time: Callable[[float], float]
    text: Callable[[Any], PromptShape] | None
    tiny: Mapping[str, Any]
    vae: str = "AutoencoderKL"
    scaled: bool = True
    width: Callable[[Any], int] = field(default=heads_times_channels)
    parts: EmbeddingParts | None = None
    schedule: Mapping[str, Any] = field(default_factory=dict)
    uninitialised: tuple[str, ...] = ()
