"""The CogView transformers and GLM-Image: joint attention over whole latents, told the size of the image."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ditf_probe.backbones.families.blocks import projections_of
from ditf_probe.backbones.families.entry import BlockGroup, Family, ModelInputs, Modulation, SubLayer
from ditf_probe.backbones.families.forms import as_it_is, every_token, spatial_patch
from ditf_probe.backbones.families.joint_latents import check_grid
from ditf_probe.conditions import PromptShape


def call_cogview3(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time and text tokens, with the sizes of an image that was neither resized nor cropped."""
    check_grid(inputs, inputs.config.pos_embed_max_size)
    return sized_latents(inputs)


def call_cogview4(inputs: ModelInputs) -> dict[str, Any]:
    """As CogView3 with another time."""
    return sized_latents(inputs) | {"timestep": time_before_shift(inputs)}


def call_glm(inputs: ModelInputs) -> dict[str, Any]:
    """As CogView4 with a time less one and without the tokens of an image to come, as the model knows it from guidance.

    Those tokens are what a language model drafts before any image is there.
    """
    arguments = sized_latents(inputs)
    del arguments["original_size"]
    drafted = torch.zeros(len(inputs.latents), math.prod(inputs.grid), dtype=torch.int64, device=inputs.latents.device)
    return arguments | {
        "timestep": time_before_shift(replace(inputs, time=inputs.time + 1)) - 1,
        "prior_token_id": drafted,
        "prior_token_drop": torch.ones_like(drafted, dtype=torch.bool),
    }


def sized_latents(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time, text tokens and the size of the image before and after cropping nothing."""
    sizes = inputs.latents.new_tensor([inputs.size]).repeat(len(inputs.latents), 1)
    return {
        "hidden_states": inputs.latents,
        "encoder_hidden_states": every_token(inputs.prompt),
        "timestep": inputs.time,
        "original_size": sizes,
        "target_size": sizes,
        "crop_coords": torch.zeros_like(sizes),
    }


def time_before_shift(inputs: ModelInputs) -> Tensor:
    """The time that CogView4 is told at a noise level.

    Its pipeline raises the noise level s of a time t with the number of tokens n, and embeds the time all the same:
    s = m / (m + 1 / t - 1), m = 0.25 + 0.75 sqrt(n / 256). This is the inverse; other models embed the level itself.
    """
    shift = 0.25 + 0.75 * math.sqrt(math.prod(inputs.grid) / 256)
    level = inputs.time / 1000
    return 1000 * level / (level + shift * (1 - level))


def one_less(timestep: float) -> float:
    """Time from -1 to 999."""
    return timestep - 1


_TINY_COGVIEW = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_embed_dim": 24,
    "time_embed_dim": 16,
    "condition_dim": 8,
}

# Chunks alternate between image and text; the MLP runs on the image, then on the text.
_ALTERNATING = BlockGroup(
    "transformer_blocks",
    Modulation("norm1.linear"),
    attention=SubLayer("norm1", norm="norm1.norm", shift=0, scale=2, gate=4, into="attn1"),
    mlp=SubLayer("norm2", norm="norm2", shift=6, scale=8, gate=10, into="ff"),
    projections=replace(projections_of("attn1"), order="text_first"),
)

COGVIEW: dict[str, Family] = {
    # Image and text are separate except in the MLP, which takes both in one sequence: hence the order.
    "CogView3PlusTransformer2DModel": Family(
        groups=(
            BlockGroup(
                "transformer_blocks",
                Modulation("norm1.linear"),
                attention=SubLayer("norm1", norm="norm1.norm_x", shift=0, scale=1, gate=2, into="attn1"),
                mlp=SubLayer("norm2", norm="norm2", shift=3, scale=4, gate=5, into="ff"),
                order="text_first",
                projections=projections_of("attn1"),
            ),
        ),
        call=call_cogview3,
        patch=spatial_patch,
        noising="ddpm",
        time=as_it_is,
        text=lambda config: PromptShape(config.text_embed_dim),
        tiny=_TINY_COGVIEW | {"pos_embed_max_size": 8},
        schedule={
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "rescale_betas_zero_snr": True,
            "snr_shift_scale": 4.0,
        },
    ),
    "CogView4Transformer2DModel": Family(
        groups=(_ALTERNATING,),
        call=call_cogview4,
        patch=spatial_patch,
        noising="flow",
        time=as_it_is,
        text=lambda config: PromptShape(config.text_embed_dim),
        tiny=_TINY_COGVIEW,
    ),
    # Text is what is to be written in the image.
    "GlmImageTransformer2DModel": Family(
        groups=(_ALTERNATING,),
        call=call_glm,
        patch=spatial_patch,
        noising="flow",
        time=one_less,
        text=lambda config: PromptShape(config.text_embed_dim),
        tiny=_TINY_COGVIEW | {"prior_vq_quantizer_codebook_size": 5},
        scaled=False,
    ),
}
