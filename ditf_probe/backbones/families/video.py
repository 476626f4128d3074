"""Video transformers on a single frame."""

from typing import Any

from ditf_probe.backbones.families.blocks import projections_of
from ditf_probe.backbones.families.entry import BlockGroup, Family, ModelInputs, Modulation, SubLayer
from ditf_probe.backbones.families.forms import as_it_is, table_plus, video_patch, zero_padding
from ditf_probe.conditions import PromptShape


def call_wan(inputs: ModelInputs) -> dict[str, Any]:
    """Latents of one frame, time and text tokens."""
    return {
        "hidden_states": inputs.latents[:, :, None],
        "timestep": inputs.time,
        "encoder_hidden_states": zero_padding(inputs.prompt),
    }


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
}
