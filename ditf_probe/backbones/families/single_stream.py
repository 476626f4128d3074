"""Transformers that run text and image tokens as one sequence through every block."""

from typing import Any

import torch
from torch import Tensor

from ditf_probe.backbones.families.blocks import projections_of
from ditf_probe.backbones.families.entry import (
    BlockGroup,
    Call,
    Family,
    ModelInputs,
    Modulation,
    SubLayer,
    first_input,
    hidden_size,
)
from ditf_probe.backbones.families.forms import as_fraction, as_it_is, packed_patch, spatial_patch, table_plus
from ditf_probe.backbones.packing import pack_patches, position_ids
from ditf_probe.conditions import PromptShape


def call_krea2(inputs: ModelInputs) -> dict[str, Any]:
    """Packed tokens, time, stacked text tokens, and the positions of text and image."""
    prompt, layers = inputs.prompt, inputs.config.num_text_layers
    ids = position_ids(inputs.grid, inputs.latents.device)
    return {
        "hidden_states": pack_patches(inputs.latents, inputs.patch),
        "encoder_hidden_states": prompt.embeds.reshape(*prompt.embeds.shape[:2], layers, -1),
        "encoder_attention_mask": prompt.mask,
        "timestep": inputs.time,
        "position_ids": torch.cat([ids.new_zeros(prompt.embeds.shape[1], 3), ids]),
    }


def call_ernie(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time, text tokens and how many of them count."""
    return {
        "hidden_states": inputs.latents,
        "timestep": inputs.time,
        "text_bth": inputs.prompt.embeds,
        "text_lens": inputs.text_lengths,
    }


def tokens_before_batch(call: Call) -> Tensor:
    """The stream of a model that keeps it as `(tokens, B, C)`."""
    return first_input(call).transpose(0, 1)


SINGLE_STREAM: dict[str, Family] = {
    # Scale comes before shift, and the weights of the norms count from zero. A text token is the vectors of several
    # layers of the text encoder, layer after layer.
    "Krea2Transformer2DModel": Family(
        groups=(
            BlockGroup(
                "transformer_blocks",
                Modulation("", at="input", read=table_plus("temb")),
                attention=SubLayer("norm1", norm="norm1", scale=0, shift=1, gate=2, into="attn", weight_offset=1.0),
                mlp=SubLayer("norm2", norm="norm2", scale=3, shift=4, gate=5, into="ff", weight_offset=1.0),
                order="text_first",
                projections=projections_of("attn"),
            ),
        ),
        call=call_krea2,
        patch=packed_patch,
        noising="flow",
        time=as_fraction,
        text=lambda config: PromptShape(config.num_text_layers * config.text_hidden_dim),
        vae="AutoencoderKLQwenImage",
        tiny={
            "in_channels": 16,
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_key_value_heads": 1,
            "intermediate_size": 48,
            "timestep_embed_dim": 16,
            "text_hidden_dim": 12,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 24,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 6, 6),
        },
    ),
    # One modulation for all blocks.
    "ErnieImageTransformer2DModel": Family(
        groups=(
            BlockGroup(
                "layers",
                Modulation("adaLN_modulation", shared=True),
                attention=SubLayer(
                    "adaLN_sa_ln",
                    norm="adaLN_sa_ln",
                    shift=0,
                    scale=1,
                    gate=2,
                    into="self_attention",
                    read=tokens_before_batch,
                ),
                mlp=SubLayer(
                    "adaLN_mlp_ln",
                    norm="adaLN_mlp_ln",
                    shift=3,
                    scale=4,
                    gate=5,
                    into="mlp",
                    read=tokens_before_batch,
                ),
                order="image_first",
                projections=projections_of("self_attention"),
            ),
        ),
        call=call_ernie,
        patch=spatial_patch,
        noising="flow",
        time=as_it_is,
        text=lambda config: PromptShape(config.text_in_dim),
        vae="AutoencoderKLFlux2",
        width=hidden_size,
        tiny={
            "in_channels": 16,
            "out_channels": 16,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_layers": 3,
            "ffn_hidden_size": 48,
            "text_in_dim": 24,
            "rope_axes_dim": (4, 6, 6),
        },
    ),
}
