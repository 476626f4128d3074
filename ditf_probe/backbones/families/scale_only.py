"""Transformers whose AdaLN only scales; their gates pass through a tanh."""

import math
from typing import Any

from ditf_probe.backbones.families.blocks import projections_of
from ditf_probe.backbones.families.entry import (
    BlockGroup,
    Family,
    ModelInputs,
    Modulation,
    SubLayer,
    TokenOrder,
    hidden_size,
)
from ditf_probe.backbones.families.forms import (
    as_fraction,
    as_reversed_fraction,
    check_channels,
    packed_patch,
    spatial_patch,
)
from ditf_probe.backbones.packing import pack_patches
from ditf_probe.conditions import PromptShape


def lumina_blocks(attention: str, order: TokenOrder = "image_only", container: str = "layers") -> BlockGroup:
    """Blocks with scale and gate of attention, then of the MLP, after RMS norms with weights.

    Args:
        attention: Path of the attention.
        order: Where the image tokens sit.
        container: Path of the list of blocks.
    """
    return BlockGroup(
        container,
        Modulation("norm1.linear"),
        attention=SubLayer("norm1", norm="norm1.norm", shift=None, scale=0, gate=1, into=attention),
        mlp=SubLayer("ffn_norm1", norm="ffn_norm1", shift=None, scale=2, gate=3, into="feed_forward"),
        order=order,
        projections=projections_of(attention),
    )


def z_image_blocks(container: str) -> BlockGroup:
    """As those of Lumina 2; text and padding follow the image tokens."""
    return BlockGroup(
        container,
        Modulation("adaLN_modulation"),
        attention=SubLayer("attention_norm1", norm="attention_norm1", shift=None, scale=0, gate=1, into="attention"),
        mlp=SubLayer("ffn_norm1", norm="ffn_norm1", shift=None, scale=2, gate=3, into="feed_forward"),
        order="image_first",
        projections=projections_of("attention"),
    )


def call_lumina2(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time and text tokens with their mask."""
    return {
        "hidden_states": inputs.latents,
        "timestep": inputs.time,
        "encoder_hidden_states": inputs.prompt.embeds,
        "encoder_attention_mask": inputs.text_mask,
    }


def call_lumina_next(inputs: ModelInputs) -> dict[str, Any]:
    """As Lumina 2, with positions that stretch with the image, and the number of tokens that attention is scaled to."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina  # diffusers is slow to import

    config = inputs.config
    trained = config.sample_size * inputs.size[0] // inputs.latents.shape[2]  # side of the images in pixels
    stretch = math.sqrt(inputs.size[0] * inputs.size[1]) / trained
    clean = float(inputs.time[0]) >= 1
    return {
        "hidden_states": inputs.latents,
        "timestep": inputs.time,
        "encoder_hidden_states": inputs.prompt.embeds,
        "encoder_mask": inputs.text_mask,
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(
            config.hidden_size // config.num_attention_heads,
            *inputs.grid,
            linear_factor=1.0 if clean else stretch,
            ntk_factor=stretch if clean else 1.0,
        ),
        "cross_attention_kwargs": {"base_sequence_length": (trained // 16) ** 2},
    }


def call_z_image(inputs: ModelInputs) -> dict[str, Any]:
    """Lists of latents with one frame and of the text tokens that count, and time."""
    return {
        "x": list(inputs.latents[:, :, None]),
        "t": inputs.time,
        "cap_feats": [embeds[mask] for embeds, mask in zip(inputs.prompt.embeds, inputs.text_mask, strict=True)],
        "patch_size": inputs.patch,
    }


def z_image_patch(config: Any, latent_channels: int) -> int:
    """As `spatial_patch`; the first of the sizes that the model was built for."""
    check_channels(config.in_channels, latent_channels)
    return int(config.all_patch_size[0])


def call_nucleus(inputs: ModelInputs) -> dict[str, Any]:
    """Packed tokens with the shape of their grid, time and text tokens."""
    return {
        "hidden_states": pack_patches(inputs.latents, inputs.patch),
        "img_shapes": [(1, *inputs.grid)] * len(inputs.latents),
        "encoder_hidden_states": inputs.prompt.embeds,
        "encoder_hidden_states_mask": inputs.prompt.mask,
        "timestep": inputs.time,
    }


SCALE_ONLY: dict[str, Family] = {
    # Blocks are counted from the first of those that refine the image before text joins it.
    "Lumina2Transformer2DModel": Family(
        groups=(lumina_blocks("attn", container="noise_refiner"), lumina_blocks("attn", "after_text")),
        call=call_lumina2,
        patch=spatial_patch,
        noising="flow",
        time=as_reversed_fraction,
        text=lambda config: PromptShape(config.cap_feat_dim),
        width=hidden_size,
        tiny={
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "axes_dim_rope": (4, 6, 6),
            "axes_lens": (16, 16, 16),
            "cap_feat_dim": 24,
        },
    ),
    "LuminaNextDiT2DModel": Family(
        groups=(lumina_blocks("attn1"),),
        call=call_lumina_next,
        patch=spatial_patch,
        noising="flow",
        time=as_reversed_fraction,
        text=lambda config: PromptShape(config.cross_attention_dim),
        width=hidden_size,
        tiny={
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 3,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "cross_attention_dim": 24,
        },
    ),
    # Blocks are counted as in Lumina 2.
    "ZImageTransformer2DModel": Family(
        groups=(z_image_blocks("noise_refiner"), z_image_blocks("layers")),
        call=call_z_image,
        patch=z_image_patch,
        noising="flow",
        time=as_reversed_fraction,
        text=lambda config: PromptShape(config.cap_feat_dim),
        width=lambda config: int(config.dim),
        tiny={
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 24,
            "axes_dims": [4, 6, 6],
            "axes_lens": [48, 16, 16],
        },
    ),
    # Layer norms; the experts of its MLP are chosen from the norm's output before the scale.
    "NucleusMoEImageTransformer2DModel": Family(
        groups=(
            BlockGroup(
                "transformer_blocks",
                Modulation("img_mod"),
                attention=SubLayer("pre_attn_norm", norm="pre_attn_norm", shift=None, scale=0, gate=1, into="attn"),
                mlp=SubLayer("pre_mlp_norm", norm="pre_mlp_norm", shift=None, scale=2, gate=3, into="img_mlp"),
                projections=projections_of("attn"),
            ),
        ),
        call=call_nucleus,
        patch=packed_patch,
        noising="flow",
        time=as_fraction,
        text=lambda config: PromptShape(config.joint_attention_dim),
        vae="AutoencoderKLQwenImage",
        uninitialised=("gate_up_proj", "down_proj"),
        tiny={
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 6, 6),
            "mlp_ratio": 6.0,
            "dense_moe_strategy": "leave_first_block_dense",
            "num_experts": 4,
            "moe_intermediate_dim": 16,
            "capacity_factors": 2.0,
        },
    ),
}
