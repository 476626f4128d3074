"""Video transformers on a single frame."""

from typing import Any

from ditf_probe.backbones.families.blocks import projections_of
from ditf_probe.backbones.families.entry import BlockGroup, Family, ModelInputs, Modulation, SubLayer
from ditf_probe.backbones.families.forms import (
    as_it_is,
    centred_region,
    every_token,
    spatial_patch,
    table_plus,
    video_patch,
    zero_padding,
)
from ditf_probe.backbones.packing import pack_patches
from ditf_probe.conditions import PromptShape
from ditf_probe.errors import InputError


def call_wan(inputs: ModelInputs) -> dict[str, Any]:
    """Latents of one frame, time and text tokens."""
    return {
        "hidden_states": inputs.latents[:, :, None],
        "timestep": inputs.time,
        "encoder_hidden_states": zero_padding(inputs.prompt),
    }


def call_ltx(inputs: ModelInputs) -> dict[str, Any]:
    """Packed tokens of one frame and their grid, time and text tokens with their mask; positions count in pixels."""
    pixels = inputs.size[0] // inputs.latents.shape[2]
    return {
        "hidden_states": pack_patches(inputs.latents, inputs.patch),
        "encoder_hidden_states": inputs.prompt.embeds,
        "encoder_attention_mask": inputs.text_mask,
        "timestep": inputs.time,
        "num_frames": 1,
        "height": inputs.grid[0],
        "width": inputs.grid[1],
        "rope_interpolation_scale": (0.0, pixels, pixels),  # the first frame is at time zero
    }


def call_cogvideox(inputs: ModelInputs) -> dict[str, Any]:
    """Latents of one frame, time, text tokens, and positions where the model does not compute them itself."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed  # diffusers is slow to import

    config = inputs.config
    rotary = None
    if config.use_rotary_positional_embeddings:
        base = (config.sample_height // inputs.patch, config.sample_width // inputs.patch)
        region = centred_region(inputs.grid, base)
        rotary = get_3d_rotary_pos_embed(
            config.attention_head_dim, region, inputs.grid, 1, device=inputs.latents.device
        )
    return {
        "hidden_states": inputs.latents[:, None],
        "encoder_hidden_states": every_token(inputs.prompt),
        "timestep": inputs.time,
        "image_rotary_emb": rotary,
    }


def cogvideox_patch(config: Any, latent_channels: int) -> int:
    """As `spatial_patch`; a token of CogVideoX 1.5 is two frames, which an image has not."""
    if config.patch_size_t is not None:
        raise InputError(
            "transformer", f"patch_size_t={config.patch_size_t}", "use CogVideoX 1.0, whose tokens are still"
        )
    return spatial_patch(config, latent_channels)


VIDEO: dict[str, Family] = {
    # Prompts are padded with zero vectors to the length of training, and attention sees the padding. The larger Wan 2.2
    # has two transformers, for much and for little noise; `transformer_2` is the one for small timesteps.
    "WanTransformer3DModel": Family(
        groups=(
            BlockGroup(
                "blocks",
                Modulation("", at="input", read=table_plus("temb")),
                attention=SubLayer("norm1", norm="norm1", shift=0, scale=1, gate=2, into="attn1"),
                mlp=SubLayer("norm3", norm="norm3", shift=3, scale=4, gate=5, into="ffn"),
                projections=projections_of("attn1"),
            ),
        ),
        call=call_wan,
        patch=video_patch,
        noising="flow",
        time=as_it_is,
        text=lambda config: PromptShape(config.text_dim, tokens=512),
        vae="AutoencoderKLWan",
        tiny={
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "text_dim": 24,
            "freq_dim": 16,
            "ffn_dim": 48,
            "rope_max_seq_len": 16,
        },
    ),
    "LTXVideoTransformer3DModel": Family(
        groups=(
            BlockGroup(
                "transformer_blocks",
                Modulation("", at="input", read=table_plus("temb")),
                attention=SubLayer("norm1", norm="norm1", shift=0, scale=1, gate=2, into="attn1"),
                mlp=SubLayer("norm2", norm="norm2", shift=3, scale=4, gate=5, into="ff"),
                projections=projections_of("attn1"),
            ),
        ),
        call=call_ltx,
        patch=spatial_patch,
        noising="flow",
        time=as_it_is,
        text=lambda config: PromptShape(config.caption_channels),
        vae="AutoencoderKLLTXVideo",
        tiny={
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 24,
        },
    ),
    # Both AdaLN compute their own chunks. Image and text are separate but where attention and MLP take both in one
    # sequence: hence the order. Prompts always have the length of training. The schedule of 2B; 5B shifts no SNR.
    "CogVideoXTransformer3DModel": Family(
        groups=(
            BlockGroup(
                "transformer_blocks",
                Modulation("norm1.linear"),
                attention=SubLayer("norm1", norm="norm1.norm", shift=0, scale=1, gate=2, into="attn1"),
                mlp=SubLayer(
                    "norm2",
                    norm="norm2.norm",
                    shift=0,
                    scale=1,
                    gate=2,
                    into="ff",
                    modulation=Modulation("norm2.linear"),
                ),
                order="text_first",
                projections=projections_of("attn1"),
            ),
        ),
        call=call_cogvideox,
        patch=cogvideox_patch,
        noising="ddpm",
        time=as_it_is,
        text=lambda config: PromptShape(config.text_embed_dim, tokens=config.max_text_seq_length),
        vae="AutoencoderKLCogVideoX",
        tiny={
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "time_embed_dim": 16,
            "text_embed_dim": 24,
            "sample_width": 12,
            "sample_height": 8,
            "max_text_seq_length": 6,
            "use_rotary_positional_embeddings": True,
        },
        schedule={
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "rescale_betas_zero_snr": True,
            "snr_shift_scale": 3.0,
        },
    ),
}
