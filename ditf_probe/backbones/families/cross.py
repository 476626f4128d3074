"""Transformers whose stream holds image tokens only; text enters by cross-attention, a class by the modulation."""

from typing import Any

from ditf_probe.backbones.families.blocks import TIME_ONLY, adaln_zero_blocks, projections_of
from ditf_probe.backbones.families.entry import BlockGroup, EmbeddingParts, Family, ModelInputs, Modulation, SubLayer
from ditf_probe.backbones.families.forms import as_it_is, spatial_patch, table_plus
from ditf_probe.conditions import PromptShape


def call_dit(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time and class label."""
    return {"hidden_states": inputs.latents, "timestep": inputs.time, "class_labels": inputs.condition}


def call_pixart(inputs: ModelInputs) -> dict[str, Any]:
    """Whole latents, time and text tokens; the size of the image where the model was trained on several."""
    prompt, added = inputs.prompt, {"resolution": None, "aspect_ratio": None}
    if inputs.config.sample_size == 128 and inputs.config.use_additional_conditions is not False:
        height, width = inputs.size
        rows = len(inputs.latents)
        added = {
            "resolution": inputs.latents.new_tensor([[height, width]]).repeat(rows, 1),
            "aspect_ratio": inputs.latents.new_tensor([[height / width]]).repeat(rows, 1),
        }
    return {
        "hidden_states": inputs.latents,
        "encoder_hidden_states": prompt.embeds,
        "encoder_attention_mask": prompt.mask,
        "timestep": inputs.time,
        "added_cond_kwargs": added,
    }


CROSS: dict[str, Family] = {
    "DiTTransformer2DModel": Family(
        groups=(adaln_zero_blocks("norm3", "attn1"),),
        parts=EmbeddingParts(("norm1.emb.timestep_embedder",), ("norm1.emb.class_embedder",), shared=False),
        call=call_dit,
        patch=spatial_patch,
        noising="ddpm",
        time=as_it_is,
        text=None,
        tiny={
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "sample_size": 8,
            "num_embeds_ada_norm": 5,
        },
    ),
    "PixArtTransformer2DModel": Family(
        groups=(
            BlockGroup(
                "transformer_blocks",
                Modulation("", at="input", read=table_plus("timestep")),
                attention=SubLayer("norm1", norm="norm1", shift=0, scale=1, gate=2, into="attn1"),
                mlp=SubLayer("norm2", norm="norm2", shift=3, scale=4, gate=5, into="ff"),
                projections=projections_of("attn1"),
            ),
        ),
        parts=TIME_ONLY,
        call=call_pixart,
        patch=spatial_patch,
        noising="ddpm",
        time=as_it_is,
        text=lambda config: PromptShape(config.caption_channels),
        tiny={
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "sample_size": 128,
            "cross_attention_dim": 24,
            "caption_channels": 20,
        },
    ),
}
