"""FLUX written out from its weights up to single block k: embedders, rotary attention, blocks, and the AdaLN of k."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditf_probe.backbones.base import Backbone
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.features.extractor import FeatureExtractor

TIMESTEP, GUIDANCE, HEADS, AXES = 260, 3.5, 2, (4, 6, 6)


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sinusoid(value: Tensor) -> Tensor:
    """256 channels, cosines first."""
    rates = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    angles = value[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


def two_layers(embedder: nn.Module, x: Tensor) -> Tensor:
    return linear(embedder.linear_2, F.silu(linear(embedder.linear_1, x)))


def embedding(model: nn.Module, pooled: Tensor) -> Tensor:
    """Time, guidance and pooled prompt; both numbers are multiplied by 1000."""
    embed, rows = model.time_text_embed, len(pooled)
    time = two_layers(embed.timestep_embedder, sinusoid(torch.full((rows,), float(TIMESTEP))))
    guidance = two_layers(embed.guidance_embedder, sinusoid(torch.full((rows,), GUIDANCE * 1000)))
    return time + guidance + two_layers(embed.text_embedder, pooled)


def rotate(x: Tensor, ids: Tensor) -> Tensor:
    """Turns neighbouring channels of `(B, T, heads, 16)` by angles that grow with the position."""
    angles = torch.cat(
        [ids[:, axis, None] * 10_000 ** (-torch.arange(0, size, 2) / size) for axis, size in enumerate(AXES)], -1
    )
    turned = (
        torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    return torch.view_as_real(turned).flatten(-2)


def heads(layer: nn.Module, x: Tensor) -> Tensor:
    return linear(layer, x).reshape(*x.shape[:2], HEADS, -1)


def rms(norm: nn.Module, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


def attend(query: Tensor, key: Tensor, value: Tensor, ids: Tensor) -> Tensor:
    """Softmax attention of `(B, T, heads, 16)`, heads side by side in the result."""
    query, key = rotate(query, ids), rotate(key, ids)
    weights = torch.einsum("bqhc,bkhc->bhqk", query, key) / math.sqrt(query.shape[-1])
    return torch.einsum("bhqk,bkhc->bqhc", weights.softmax(-1), value).flatten(2)


def double_block(block: nn.Module, image: Tensor, text: Tensor, emb: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    attn, length = block.attn, text.shape[1]
    image_mod = linear(block.norm1.linear, F.silu(emb))[:, None].chunk(6, -1)
    text_mod = linear(block.norm1_context.linear, F.silu(emb))[:, None].chunk(6, -1)
    x, y = layer_norm(image) * (1 + image_mod[1]) + image_mod[0], layer_norm(text) * (1 + text_mod[1]) + text_mod[0]
    query = torch.cat([rms(attn.norm_added_q, heads(attn.add_q_proj, y)), rms(attn.norm_q, heads(attn.to_q, x))], 1)
    key = torch.cat([rms(attn.norm_added_k, heads(attn.add_k_proj, y)), rms(attn.norm_k, heads(attn.to_k, x))], 1)
    value = torch.cat([heads(attn.add_v_proj, y), heads(attn.to_v, x)], 1)
    mixed = attend(query, key, value, ids)
    image = image + image_mod[2] * linear(attn.to_out[0], mixed[:, length:])
    text = text + text_mod[2] * linear(attn.to_add_out, mixed[:, :length])
    for_image, for_text = block.ff.net, block.ff_context.net
    x, y = layer_norm(image) * (1 + image_mod[4]) + image_mod[3], layer_norm(text) * (1 + text_mod[4]) + text_mod[3]
    image = image + image_mod[5] * linear(for_image[2], gelu(linear(for_image[0].proj, x)))
    text = text + text_mod[5] * linear(for_text[2], gelu(linear(for_text[0].proj, y)))
    return image, text


def single_block(block: nn.Module, stream: Tensor, emb: Tensor, ids: Tensor) -> Tensor:
    shift, scale, gate = linear(block.norm.linear, F.silu(emb))[:, None].chunk(3, -1)
    x, attn = layer_norm(stream) * (1 + scale) + shift, block.attn
    query, key = rms(attn.norm_q, heads(attn.to_q, x)), rms(attn.norm_k, heads(attn.to_k, x))
    mixed = attend(query, key, heads(attn.to_v, x), ids)
    return stream + gate * linear(block.proj_out, torch.cat([mixed, gelu(linear(block.proj_mlp, x))], -1))


def flux_until(model: nn.Module, k: int, tokens: Tensor, ids: Tensor, prompt: PromptEmbeddings) -> tuple[Tensor, ...]:
    """Stream of the image tokens before single block k, and its shift and scale."""
    emb = embedding(model, prompt.pooled)
    image, text = linear(model.x_embedder, tokens), linear(model.context_embedder, prompt.embeds)
    ids = torch.cat([torch.zeros(text.shape[1], 3), ids])
    for block in model.transformer_blocks:
        image, text = double_block(block, image, text, emb, ids)
    stream = torch.cat([text, image], 1)
    for block in model.single_transformer_blocks[:k]:
        stream = single_block(block, stream, emb, ids)
    shift, scale, _ = linear(model.single_transformer_blocks[k].norm.linear, F.silu(emb)).chunk(3, -1)
    return stream[:, text.shape[1] :], shift, scale


@pytest.mark.parametrize("k", [0, 1])
@torch.no_grad()
def test_flux_until_a_single_block_by_hand(k: int, make_flux: Any, images: Tensor) -> None:
    model = make_flux(guidance_embeds=True)
    generator = torch.Generator().manual_seed(5)
    prompt = PromptEmbeddings(
        torch.randn(2, 7, 24, generator=generator), torch.randn(2, 20, generator=generator)
    )  # as T5 and CLIP would give
    backbone = Backbone.from_model(model, guidance=GUIDANCE)
    options = {"blocks": [2 + k], "timestep": TIMESTEP, "tap": "attention"}
    found = backbone(images, image_ids=["a", "b"], conditions=prompt, **options)[2 + k]

    # Patches of 4 x 4 pixels as tokens, channel first, then row, then column; noise as the backbone draws it.
    seen: list[Tensor] = []
    handle = model.x_embedder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    backbone(images, image_ids=["a", "b"], conditions=prompt, **options)
    handle.remove()
    ids = torch.tensor([[0.0, row, column] for row in range(4) for column in range(6)])
    stream, shift, scale = flux_until(model, k, seen[0], ids, prompt)
    torch.testing.assert_close(found.hidden_states, stream, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.shift, shift, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.scale, scale, rtol=1e-5, atol=1e-6)
    feature = layer_norm(stream) * (1 + scale[:, None]) + shift[:, None]
    made = FeatureExtractor(backbone, **options)(images, ["a", "b"], prompt)[2 + k]
    torch.testing.assert_close(made, feature.mT.reshape(2, 32, 4, 6), rtol=1e-4, atol=1e-4)
