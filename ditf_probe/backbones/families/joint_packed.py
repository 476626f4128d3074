"""Joint text and image attention over tokens that the pipeline packs: whole patches of latents, one row each."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.backbones.families.blocks import (
    adaln_zero_blocks,
    fused_projections_of,
    parallel_blocks,
    projections_of,
)
from ditf_probe.backbones.families.entry import BlockGroup, Call, Family, ModelInputs, Modulation, SubLayer
from ditf_probe.backbones.families.forms import as_fraction, as_it_is, every_token, packed_patch, zero_padding
from ditf_probe.backbones.families.joint import positioned_tokens
from ditf_probe.backbones.packing import pack_patches
from ditf_probe.conditions import PromptShape
from ditf_probe.errors import InputError


def call_flux2(inputs: ModelInputs) -> dict[str, Any]:
    """As FLUX without a pooled prompt; a fourth axis of the positions counts the text tokens."""
    arguments = positioned_tokens(inputs, every_token(inputs.prompt))
    text = arguments["txt_ids"]
    return arguments | {
        "guidance": inputs.guidance_rows(),
        "img_ids": F.pad(arguments["img_ids"], (0, 1)),
        "txt_ids": torch.cat([text, torch.arange(len(text), device=text.device)[:, None]], dim=1),
    }


def call_chroma(inputs: ModelInputs) -> dict[str, Any]:
    """As FLUX without a pooled prompt and guidance; padding is masked, all but the first token that prompts keep."""
    mask = None if inputs.prompt.mask is None else with_image(inputs.prompt.mask, inputs)
    return positioned_tokens(inputs, inputs.prompt.embeds) | {"attention_mask": mask}


def call_bria(inputs: ModelInputs) -> dict[str, Any]:
    """As FLUX without a pooled prompt and guidance."""
    return positioned_tokens(inputs, every_token(inputs.prompt))


def call_bria_fibo(inputs: ModelInputs) -> dict[str, Any]:
    """As Bria; besides, each block takes a layer of the language model (`second`), and padding is masked.

    The last layers go to the blocks in order; where there are fewer than blocks, the last one is repeated.
    """
    prompt, config = inputs.prompt, inputs.config
    assert prompt.second is not None
    if prompt.second.shape[1] != prompt.embeds.shape[1]:
        raise InputError("conditions.second", tuple(prompt.second.shape), "give as many tokens as in embeds")
    mask = None if prompt.mask is None else with_image(prompt.mask, inputs)[:, None, None]
    blocks = config.num_layers + config.num_single_layers
    layers = list(torch.split(prompt.second, config.text_encoder_dim, dim=-1))[-blocks:]
    return positioned_tokens(inputs, prompt.embeds) | {
        "text_encoder_layers": layers + [layers[-1]] * (blocks - len(layers)),
        "joint_attention_kwargs": {} if mask is None else {"attention_mask": mask},
    }


def call_ovis(inputs: ModelInputs) -> dict[str, Any]:
    """As Bria; text tokens lie on the diagonal of the image, and padding becomes zero vectors."""
    arguments = positioned_tokens(inputs, zero_padding(inputs.prompt))
    return arguments | {"txt_ids": diagonal(arguments["txt_ids"])}


def call_longcat(inputs: ModelInputs) -> dict[str, Any]:
    """As Bria; text tokens lie on a diagonal that runs towards the image, which starts after the longest prompt."""
    arguments = positioned_tokens(inputs, every_token(inputs.prompt))
    start = arguments["img_ids"].new_tensor([1, _LONGCAT_TOKENS, _LONGCAT_TOKENS])
    return arguments | {"img_ids": arguments["img_ids"] + start, "txt_ids": diagonal(arguments["txt_ids"])}


def call_qwen(inputs: ModelInputs) -> dict[str, Any]:
    """Packed tokens and their grid, time and text tokens; padding is masked."""
    for variant in ("zero_cond_t", "use_additional_t_cond", "use_layer3d_rope"):
        if inputs.config.get(variant):
            remedy = "this variant edits images or takes them apart into layers, use the text-to-image model"
            raise InputError("transformer", f"{variant}=True", remedy)
    return {
        "hidden_states": pack_patches(inputs.latents, inputs.patch),
        "encoder_hidden_states": inputs.prompt.embeds,
        "encoder_hidden_states_mask": inputs.prompt.mask,
        "timestep": inputs.time,
        "img_shapes": [[(1, *inputs.grid)]] * len(inputs.latents),
    }


def with_image(mask: Tensor, inputs: ModelInputs) -> Tensor:
    """A mask of text tokens extended by the image tokens, none of them masked."""
    return F.pad(mask, (0, math.prod(inputs.grid)), value=True)


def diagonal(ids: Tensor) -> Tensor:
    """Positions `(L, 3)` of text tokens whose row and column are their number."""
    number = torch.arange(len(ids), dtype=ids.dtype, device=ids.device)
    return torch.stack([torch.zeros_like(number), number, number], dim=1)


def given_modulation(call: Call) -> Tensor:
    """What the block is handed as `temb`, `(B, chunks, C)`: image chunks before text chunks."""
    modulation: Tensor = call.kwargs["temb"]
    return modulation


def text_only(config: Any) -> PromptShape:
    """Text tokens for the joint attention; the modulation knows the time alone."""
    return PromptShape(config.joint_attention_dim)


_LONGCAT_TOKENS = 512  # that its pipeline pads a prompt to
_FLUX_BLOCKS = (adaln_zero_blocks("norm2"), parallel_blocks("text_first"))
_TINY_FLUX = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 24,
    "axes_dims_rope": [4, 6, 6],
}

JOINT_PACKED: dict[str, Family] = {
    # All blocks of one kind share one modulation, computed before the first of them.
    "Flux2Transformer2DModel": Family(
        groups=(
            BlockGroup(
                "transformer_blocks",
                Modulation("double_stream_modulation_img", shared=True),
                attention=SubLayer("norm1", norm="norm1", shift=0, scale=1, gate=2, into="attn"),
                mlp=SubLayer("norm2", norm="norm2", shift=3, scale=4, gate=5, into="ff"),
                projections=projections_of("attn"),
            ),
            BlockGroup(
                "single_transformer_blocks",
                Modulation("single_stream_modulation", shared=True),
                attention=SubLayer("norm", norm="norm", shift=0, scale=1, gate=2, into="attn"),
                mlp=None,
                order="text_first",
                projections=fused_projections_of("attn", "to_qkv_mlp_proj"),
            ),
        ),
        call=call_flux2,
        patch=packed_patch,  # the autoencoder folds 2x2 latents before its batch norm, so a token is one latent here
        noising="flow",
        time=as_fraction,
        text=text_only,
        tiny=_TINY_FLUX | {"axes_dims_rope": [4, 4, 4, 4], "timestep_guidance_channels": 16},
        vae="AutoencoderKLFlux2",
    ),
    # One network computes the modulations of all blocks; each block is handed its slice.
    "ChromaTransformer2DModel": Family(
        groups=tuple(
            replace(group, modulation=Modulation("", at="input", read=given_modulation)) for group in _FLUX_BLOCKS
        ),
        call=call_chroma,
        patch=packed_patch,
        noising="flow",
        time=as_fraction,
        text=text_only,
        tiny=_TINY_FLUX | {"approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 2},
    ),
    "BriaTransformer2DModel": Family(
        groups=_FLUX_BLOCKS,
        call=call_bria,
        patch=packed_patch,
        noising="flow",
        time=as_it_is,  # unlike FLUX it does not multiply by 1000 itself
        text=text_only,
        tiny=_TINY_FLUX,
    ),
    "BriaFiboTransformer2DModel": Family(
        groups=_FLUX_BLOCKS,
        call=call_bria_fibo,
        patch=packed_patch,
        noising="flow",
        time=as_it_is,
        text=lambda config: PromptShape(config.joint_attention_dim, second=config.text_encoder_dim, second_layers=True),
        tiny=_TINY_FLUX | {"in_channels": 4, "text_encoder_dim": 12},
        vae="AutoencoderKLWan",
    ),
    "OvisImageTransformer2DModel": Family(
        groups=_FLUX_BLOCKS,
        call=call_ovis,
        patch=packed_patch,
        noising="flow",
        time=as_fraction,
        text=text_only,
        tiny=_TINY_FLUX,
    ),
    "LongCatImageTransformer2DModel": Family(
        groups=_FLUX_BLOCKS,
        call=call_longcat,
        patch=packed_patch,
        noising="flow",
        time=as_fraction,
        text=text_only,
        tiny=_TINY_FLUX,
    ),
    "QwenImageTransformer2DModel": Family(
        groups=(
            BlockGroup(
                "transformer_blocks",
                Modulation("img_mod"),
                attention=SubLayer("img_norm1", norm="img_norm1", shift=0, scale=1, gate=2, into="attn"),
                mlp=SubLayer("img_norm2", norm="img_norm2", shift=3, scale=4, gate=5, into="img_mlp"),
                projections=projections_of("attn"),
            ),
        ),
        call=call_qwen,
        patch=packed_patch,
        noising="flow",
        time=as_fraction,
        text=text_only,
        tiny={
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 6, 6),
        },
        vae="AutoencoderKLQwenImage",
    ),
}
