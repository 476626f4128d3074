"""One declarative entry per diffusers class: where its AdaLN layers are and how it wants to be called.

A new family is one entry in `FAMILIES`. Paths are dotted; a block is numbered flat over the containers in order.
Checked against the source of diffusers 0.42.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ditf_probe.backbones.packing import pack_patches, position_ids
from ditf_probe.conditions import PromptEmbeddings
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
        read: From the call of `entry` to the raw stream `(B, tokens, C)`; other layouts are brought there.
    """

    entry: str
    norm: str
    shift: int | None
    scale: int | None
    gate: int | None
    read: Callable[[Call], Tensor] = first_input


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """Blocks of one kind.

    Attributes:
        container: Path of their list in the transformer.
        modulation: Where their shift, scale and gate come from.
        attention: The AdaLN before attention, the only one of parallel blocks.
        mlp: The AdaLN before the MLP, None where the block has a single one.
        order: Where the image tokens sit in the stream.
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
    """

    latents: Tensor
    time: Tensor
    condition: Tensor | PromptEmbeddings
    grid: tuple[int, int]
    patch: int
    guidance: float | None


@dataclass(frozen=True, slots=True)
class Family:
    """How to run and tap one diffusers class.

    Attributes:
        groups: The kinds of blocks in order of execution.
        call: From the inputs to the keyword arguments of the transformer.
        patch: From its config and the number of latent channels to the side of a token in latents.
        noising: How its training noised images.
        time: From a timestep in 0 to 1000 to the model's own unit.
        condition: What it takes: class labels or prompts.
        text_width: Key of its config that holds the width of text tokens.
        pooled_width: Key of its config that holds the width of the pooled prompt.
    """

    groups: tuple[BlockGroup, ...]
    call: Callable[[ModelInputs], dict[str, Any]]
    patch: Callable[[Any, int], int]
    noising: Noising
    time: Callable[[float], float]
    condition: Literal["class", "prompt"]
    text_width: str | None = None
    pooled_width: str | None = None


def as_it_is(timestep: float) -> float:
    """Time from 0 to 1000."""
    return timestep


def as_fraction(timestep: float) -> float:
    """Time from 0 to 1."""
    return timestep / 1000


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


def call_dit(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time and class label."""
    return {"hidden_states": inputs.latents, "timestep": inputs.time, "class_labels": inputs.condition}


def call_flux(inputs: ModelInputs) -> dict[str, Any]:
    """Packed tokens with their positions, time, guidance, text tokens and the pooled prompt."""
    prompt = inputs.condition
    assert isinstance(prompt, PromptEmbeddings)
    if prompt.mask is not None:
        raise InputError("conditions.mask", tuple(prompt.mask.shape), "this model attends to every token, give None")
    ids = position_ids(inputs.grid, inputs.latents.device)
    guidance = None if inputs.guidance is None else torch.full_like(inputs.time, inputs.guidance)
    return {
        "hidden_states": pack_patches(inputs.latents, inputs.patch),
        "encoder_hidden_states": prompt.embeds,
        "pooled_projections": prompt.pooled,
        "timestep": inputs.time,
        "guidance": guidance,
        "img_ids": ids,
        "txt_ids": ids.new_zeros(prompt.embeds.shape[1], 3),
    }


def adaln_zero_blocks(mlp_norm: str) -> BlockGroup:
    """Blocks whose first AdaLN computes the six chunks of both; `mlp_norm` is the path of the norm of the second."""
    return BlockGroup(
        "transformer_blocks",
        Modulation("norm1.linear"),
        attention=SubLayer("norm1", norm="norm1.norm", shift=0, scale=1, gate=2),
        mlp=SubLayer(mlp_norm, norm=mlp_norm, shift=3, scale=4, gate=5),
    )


FAMILIES: dict[str, Family] = {
    "DiTTransformer2DModel": Family(
        groups=(adaln_zero_blocks("norm3"),),
        call=call_dit,
        patch=spatial_patch,
        noising="ddpm",
        time=as_it_is,
        condition="class",
    ),
    "FluxTransformer2DModel": Family(
        groups=(
            adaln_zero_blocks("norm2"),
            BlockGroup(
                "single_transformer_blocks",
                Modulation("norm.linear"),
                attention=SubLayer("norm", norm="norm.norm", shift=0, scale=1, gate=2),
                mlp=None,
                order="text_first",
            ),
        ),
        call=call_flux,
        patch=packed_patch,
        noising="flow",
        time=as_fraction,
        condition="prompt",
        text_width="joint_attention_dim",
        pooled_width="pooled_projection_dim",
    ),
}
