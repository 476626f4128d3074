"""More transformers whose stream holds image tokens only, each with something of its own around it."""

from typing import Any

import torch

from ditf_probe.backbones.families.blocks import fused_projections_of, projections_of
from ditf_probe.backbones.families.entry import (
    BlockGroup,
    Family,
    ModelInputs,
    Modulation,
    SubLayer,
    hidden_size,
    mask_or_all,
)
from ditf_probe.backbones.families.forms import as_fraction, as_it_is, centred_region, spatial_patch, table_plus
from ditf_probe.conditions import PromptShape
from ditf_probe.errors import InputError


def call_hunyuan_dit(inputs: ModelInputs) -> dict[str, Any]:
    """Latents, time, both texts with their masks, sizes, style and positions."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed  # diffusers is slow to import

    prompt, latents, config = inputs.prompt, inputs.latents, inputs.config
    assert prompt.second is not None
    base = 64 // inputs.patch  # trained on 512 pixels, 8 a latent: other sizes are stretched to these positions
    corners = centred_region(inputs.grid, (base, base))
    sizes = torch.tensor([*inputs.size, *inputs.size, 0, 0], dtype=torch.float32, device=latents.device)
    return {
        "hidden_states": latents,
        "timestep": inputs.time.to(latents.dtype),  # its embedding is computed in the dtype of the timestep
        "encoder_hidden_states": prompt.embeds,
        "text_embedding_mask": inputs.text_mask,
        "encoder_hidden_states_t5": prompt.second,
        "text_embedding_mask_t5": mask_or_all(prompt.second_mask, prompt.second),
        "image_meta_size": sizes.repeat(len(latents), 1),
        "style": torch.zeros(len(latents), dtype=torch.int64, device=latents.device),
        "image_rotary_emb": get_2d_rotary_pos_embed(
            config.attention_head_dim, corners, inputs.grid, device=latents.device
        ),
    }


def call_sana(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time, text tokens, and the guidance of a Sana-Sprint, whose time is a fraction."""
    config, guidance = inputs.config, inputs.guidance_rows()
    return {
        "hidden_states": inputs.latents,
        "encoder_hidden_states": inputs.prompt.embeds,
        "encoder_attention_mask": inputs.prompt.mask,
        "timestep": inputs.time * (config.timestep_scale if guidance is None else 1e-3),
        "guidance": None if guidance is None else guidance * config.guidance_embeds_scale,
    }


def call_prx(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time and text tokens."""
    return {
        "hidden_states": inputs.latents,
        "timestep": inputs.time,
        "encoder_hidden_states": inputs.prompt.embeds,
        "attention_mask": inputs.prompt.mask,
    }


def prx_patch(config: Any, latent_channels: int) -> int:
    """As `spatial_patch`; a PRX of pixels is refused, since it was trained on noise of another scale."""
    if config.bottleneck_size is not None:
        raise InputError("transformer", "PRX of pixels", "it needs scaled noise, use a PRX of latents")
    return spatial_patch(config, latent_channels)


IMAGE_STREAM: dict[str, Family] = {
    # The stream is read behind the long skip connections. The first AdaLN only shifts; before the MLP there is none,
    # and its features are those of the norm with its own weights. The schedule of 1.2; betas went up to 0.03 before.
    "HunyuanDiT2DModel": Family(
        groups=(
            BlockGroup(
                "blocks",
                Modulation("norm1.linear"),
                attention=SubLayer("norm1", norm="norm1.norm", shift=0, scale=None, gate=None, into="attn1"),
                mlp=SubLayer("norm3", norm="norm3", shift=None, scale=None, gate=None, into="ff"),
                projections=projections_of("attn1"),
            ),
        ),
        call=call_hunyuan_dit,
        patch=spatial_patch,
        noising="ddpm",
        time=as_it_is,
        text=lambda config: PromptShape(
            config.cross_attention_dim,
            second=config.cross_attention_dim_t5,
            tokens=config.text_len,
            second_tokens=config.text_len_t5,
        ),
        tiny={
            "in_channels": 4,
            "patch_size": 2,
            "num_layers": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "hidden_size": 32,
            "cross_attention_dim": 24,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 20,
            "text_len": 3,
            "text_len_t5": 5,
        },
        schedule={"beta_start": 0.00085, "beta_end": 0.018, "beta_schedule": "scaled_linear"},
    ),
    # Attention is linear, on the positive parts of query and key. The MLP is a convolution, channels first.
    "SanaTransformer2DModel": Family(
        groups=(
            BlockGroup(
                "transformer_blocks",
                Modulation("", at="input", read=table_plus("timestep")),
                attention=SubLayer("norm1", norm="norm1", shift=0, scale=1, gate=2, into="attn1"),
                mlp=SubLayer("norm2", norm="norm2", shift=3, scale=4, gate=5, into="ff"),
                projections=projections_of("attn1"),
            ),
        ),
        call=call_sana,
        patch=spatial_patch,
        noising="flow",
        time=as_it_is,
        text=lambda config: PromptShape(config.caption_channels),
        vae="AutoencoderDC",
        tiny={
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 24,
            "guidance_embeds": True,
        },
    ),
    # Text tokens are further keys and values of the only attention.
    "PRXTransformer2DModel": Family(
        groups=(
            BlockGroup(
                "blocks",
                Modulation("modulation.lin"),
                attention=SubLayer("img_pre_norm", norm="img_pre_norm", shift=0, scale=1, gate=2, into="attention"),
                mlp=SubLayer(
                    "post_attention_layernorm",
                    norm="post_attention_layernorm",
                    shift=3,
                    scale=4,
                    gate=5,
                    into="gate_proj",
                ),
                projections=fused_projections_of("attention", "img_qkv_proj"),
            ),
        ),
        call=call_prx,
        patch=prx_patch,
        noising="flow",
        time=as_fraction,
        text=lambda config: PromptShape(config.context_in_dim),
        width=hidden_size,
        tiny={
            "in_channels": 4,
            "context_in_dim": 24,
            "hidden_size": 32,
            "num_heads": 2,
            "depth": 3,
            "axes_dim": [8, 8],
            "resolution_embeds": True,
        },
    ),
}
