"""Transformers in which text and image tokens attend to each other."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from ditf_probe.backbones.families.blocks import TIME_AND_TEXT, adaln_zero_blocks, parallel_blocks
from ditf_probe.backbones.families.entry import Family, ModelInputs
from ditf_probe.backbones.families.forms import as_fraction, as_it_is, every_token, packed_patch, spatial_patch
from ditf_probe.backbones.packing import pack_patches, position_ids
from ditf_probe.conditions import PromptShape


def call_flux(inputs: ModelInputs) -> dict[str, Any]:
    """Packed tokens with their positions, time, guidance, text tokens and the pooled prompt."""
    return positioned_tokens(inputs, every_token(inputs.prompt)) | {
        "pooled_projections": inputs.prompt.pooled,
        "guidance": inputs.guidance_rows(),
    }


def positioned_tokens(inputs: ModelInputs, text: Tensor) -> dict[str, Any]:
    """Packed tokens, text tokens and time; positions are row and column of an image token, zeros for text."""
    ids = position_ids(inputs.grid, inputs.latents.device)
    return {
        "hidden_states": pack_patches(inputs.latents, inputs.patch),
        "encoder_hidden_states": text,
        "timestep": inputs.time,
        "img_ids": ids,
        "txt_ids": ids.new_zeros(text.shape[1], 3),
    }


def call_sd3(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time, text tokens and the pooled prompt."""
    return {
        "hidden_states": inputs.latents,
        "encoder_hidden_states": every_token(inputs.prompt),
        "pooled_projections": inputs.prompt.pooled,
        "timestep": inputs.time,
    }


def joint_and_pooled(config: Any) -> PromptShape:
    """Text tokens for the joint attention and a pooled prompt for the modulation."""
    return PromptShape(config.joint_attention_dim, config.pooled_projection_dim)


JOINT: dict[str, Family] = {
    "FluxTransformer2DModel": Family(
        groups=(adaln_zero_blocks("norm2"), parallel_blocks("text_first")),
        parts=replace(TIME_AND_TEXT, time=(*TIME_AND_TEXT.time, "time_text_embed.guidance_embedder")),
        call=call_flux,
        patch=packed_patch,
        noising="flow",
        time=as_fraction,
        text=joint_and_pooled,
        tiny={
            "in_channels": 16,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "joint_attention_dim": 24,
            "pooled_projection_dim": 20,
            "guidance_embeds": True,
            "axes_dims_rope": [4, 6, 6],
        },
    ),
    "SD3Transformer2DModel": Family(
        groups=(adaln_zero_blocks("norm2"),),  # SD3.5 medium appends a third AdaLN, chunks 6 to 8
        parts=TIME_AND_TEXT,
        call=call_sd3,
        patch=spatial_patch,
        noising="flow",
        time=as_it_is,
        text=joint_and_pooled,
        tiny={
            "sample_size": 16,
            "in_channels": 4,
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 20,
            "out_channels": 4,
            "pos_embed_max_size": 16,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
    ),
}
