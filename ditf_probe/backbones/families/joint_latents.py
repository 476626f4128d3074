"""Joint text and image attention in transformers that take whole latents and cut the patches themselves."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from ditf_probe.backbones.families.blocks import adaln_zero_blocks, parallel_blocks
from ditf_probe.backbones.families.entry import BlockGroup, Family, ModelInputs, Modulation, Projections, SubLayer
from ditf_probe.backbones.families.forms import as_fraction, as_it_is, every_token, spatial_patch, zero_padding
from ditf_probe.conditions import PromptShape
from ditf_probe.errors import InputError


def call_auraflow(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time and text tokens; padding becomes zero vectors, which the attention sees."""
    check_grid(inputs, math.isqrt(inputs.config.pos_embed_max_size))
    return {
        "hidden_states": inputs.latents,
        "encoder_hidden_states": zero_padding(inputs.prompt),
        "timestep": inputs.time,
    }


def call_hidream(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time, T5 tokens, the layers of a language model (`second`) and a pooled prompt."""
    prompt, config = inputs.prompt, inputs.config
    height, width = config.max_resolution
    if inputs.grid[0] != inputs.grid[1] and math.prod(inputs.grid) > height * width // config.patch_size**2:
        remedy = f"an image that is not square needs no more tokens than {height} x {width} latents have"
        raise InputError("images", f"{inputs.size[0]} x {inputs.size[1]}", remedy)
    assert prompt.second is not None
    layers = prompt.second.reshape(*prompt.second.shape[:2], language_layers(config), -1)
    return {
        "hidden_states": inputs.latents,
        "encoder_hidden_states_t5": every_token(prompt),
        "encoder_hidden_states_llama3": layers.permute(2, 0, 1, 3),
        "pooled_embeds": prompt.pooled,
        "timesteps": inputs.time,
    }


def call_hunyuan_image(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time, guidance and text tokens; `second` is text to be drawn, zero vectors in it are padding."""
    prompt, time = inputs.prompt, inputs.time.to(inputs.latents.dtype)
    return {
        "hidden_states": inputs.latents,
        "encoder_hidden_states": prompt.embeds,
        "encoder_attention_mask": inputs.text_mask,
        "encoder_hidden_states_2": prompt.second,
        "encoder_attention_mask_2": None if prompt.second is None else prompt.second.ne(0).any(-1),
        "timestep": time,
        # A distilled model predicts the mean velocity down to a second time; at the same time it is the velocity.
        "timestep_r": time if inputs.config.use_meanflow else None,
        "guidance": thousandfold(inputs.guidance_rows()),
    }


def call_hunyuan_video(inputs: ModelInputs) -> dict[str, Any]:
    """One frame of latents, time, guidance, text tokens and a pooled prompt; padding follows the prompt."""
    if inputs.config.image_condition_type is not None:
        remedy = "this variant continues a given image, use the text-to-video model"
        raise InputError("transformer", f"image_condition_type={inputs.config.image_condition_type}", remedy)
    return {
        "hidden_states": inputs.latents[:, :, None],
        "encoder_hidden_states": inputs.prompt.embeds,
        "encoder_attention_mask": inputs.text_mask,
        "pooled_projections": inputs.prompt.pooled,
        "timestep": inputs.time.to(inputs.latents.dtype),
        "guidance": thousandfold(inputs.guidance_rows()),
    }


def thousandfold(guidance: Tensor | None) -> Tensor | None:
    """Guidance for models that embed it as it is, where FLUX multiplies by 1000 itself."""
    return None if guidance is None else 1000 * guidance


def check_grid(inputs: ModelInputs, limit: int) -> None:
    """Refuses images with more tokens on a side than the model has learnt positions for.

    Raises:
        InputError: The image is too large.
    """
    if max(inputs.grid) > limit:
        remedy = f"the transformer has positions for {limit} x {limit} tokens, resize to less"
        raise InputError("images", f"{inputs.size[0]} x {inputs.size[1]}", remedy)


def language_layers(config: Any) -> int:
    """Layers of the language model that HiDream chooses from, counted from the first."""
    return 1 + int(max(config.llama_layers))


def hidream_prompt(config: Any) -> PromptShape:
    """T5 tokens; tokens of the language model, its layers side by side in the channels; both pooled CLIP vectors."""
    t5, language = config.caption_channels
    return PromptShape(t5, config.text_emb_dim, second=language * language_layers(config))


def square_patch(config: Any, latent_channels: int) -> int:
    """As `spatial_patch` where the config gives both sides."""
    sides = set(config.patch_size)
    if config.in_channels != latent_channels or len(config.patch_size) != 2 or len(sides) != 1:
        remedy = f"the transformer takes {config.in_channels} channels in patches of {config.patch_size}"
        raise InputError("vae", f"{latent_channels} latent channels", remedy)
    return int(sides.pop())


_TINY_HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "text_embed_dim": 24,
    "guidance_embeds": True,
}

JOINT_LATENTS: dict[str, Family] = {
    # The MLP branch is added to the stream from before the attention, so the stream before the MLP goes no further.
    "AuraFlowTransformer2DModel": Family(
        groups=(
            adaln_zero_blocks("norm2", container="joint_transformer_blocks"),
            replace(  # eight registers, text, image
                adaln_zero_blocks("norm2", container="single_transformer_blocks"), order="text_first"
            ),
        ),
        call=call_auraflow,
        patch=spatial_patch,
        noising="flow",
        time=as_fraction,
        text=lambda config: PromptShape(config.joint_attention_dim),
        tiny={
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 36,
        },
    ),
    # An image that is not square is padded to the largest number of tokens, hence image_first in the first blocks too.
    "HiDreamImageTransformer2DModel": Family(
        groups=tuple(
            BlockGroup(
                container,
                Modulation("block.adaLN_modulation"),
                attention=SubLayer("block.norm1_i", norm="block.norm1_i", shift=0, scale=1, gate=2, into="block.attn1"),
                mlp=SubLayer("block.norm3_i", norm="block.norm3_i", shift=3, scale=4, gate=5, into="block.ff_i"),
                order="image_first",
                projections=Projections(
                    *("block.attn1.to_q", "block.attn1.to_k", "block.attn1.to_v"),
                    *("block.attn1.q_rms_norm", "block.attn1.k_rms_norm"),
                ),
            )
            for container in ("double_stream_blocks", "single_stream_blocks")
        ),
        call=call_hidream,
        patch=spatial_patch,
        noising="flow",
        time=as_it_is,
        text=hidream_prompt,
        tiny={
            "patch_size": 2,
            "in_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "caption_channels": [24, 20],
            "text_emb_dim": 16,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "axes_dims_rope": [8, 4, 4],
            "max_resolution": [12, 12],
            "llama_layers": [0, 1, 2, 2],
        },
    ),
    "HunyuanImageTransformer2DModel": Family(
        groups=(adaln_zero_blocks("norm2"), parallel_blocks("image_first")),
        call=call_hunyuan_image,
        patch=square_patch,
        noising="flow",
        time=as_it_is,
        text=lambda config: PromptShape(config.text_embed_dim, second=config.text_embed_2_dim),
        tiny=_TINY_HUNYUAN | {"text_embed_2_dim": 20, "rope_axes_dim": (8, 8)},
        vae="AutoencoderKLHunyuanImage",
    ),
    "HunyuanVideoTransformer3DModel": Family(
        groups=(adaln_zero_blocks("norm2"), parallel_blocks("image_first")),
        call=call_hunyuan_video,
        patch=spatial_patch,
        noising="flow",
        time=as_it_is,
        text=lambda config: PromptShape(config.text_embed_dim, config.pooled_projection_dim),
        tiny=_TINY_HUNYUAN | {"pooled_projection_dim": 20, "rope_axes_dim": (4, 6, 6)},
        vae="AutoencoderKLHunyuanVideo",
    ),
}
