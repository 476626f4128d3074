"""What entries work out for themselves, and what they refuse."""

from typing import Any

import diffusers
import pytest
import torch

from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.families import FAMILIES, ModelInputs
from ditf_probe.backbones.families.cogview import time_before_shift
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.errors import InputError


def build(name: str, **changes: Any) -> Backbone:
    family = FAMILIES[name]
    transformer = getattr(diffusers, name)(**(dict(family.tiny) | changes))
    return Backbone.from_model(transformer, getattr(diffusers, family.vae)(**AUTOENCODERS[family.vae].tiny))


def run(backbone: Backbone, rows: int = 2, columns: int = 3, conditions: Any = None) -> torch.Tensor:
    images = torch.rand(1, 3, rows * backbone.stride, columns * backbone.stride)
    return backbone(images, blocks=[0], timestep=5, tap="attention", conditions=conditions)[0].hidden_states


@pytest.mark.parametrize(
    ("side", "timestep", "expected"), [(16, 260.0, 260.0), (64, 500.0, 235.2941), (64, 0.0, 0.0), (64, 1000.0, 1000.0)]
)
def test_cogview4_is_told_the_time_before_the_shift(side: int, timestep: float, expected: float) -> None:
    """16 x 16 tokens shift by 0.25 + 0.75 = 1, that is not at all; 64 x 64 by 3.25: 0.5 / (0.5 + 3.25 * 0.5)."""
    prompt = PromptEmbeddings(torch.zeros(1, 1, 1))
    latents, time = torch.zeros(1, 1, 1, 1), torch.tensor([timestep])
    inputs = ModelInputs(latents, time, prompt, (side, side), 1, None, (side, side), None)
    assert float(time_before_shift(inputs)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "largest", "too_large"),
    [
        ("AuraFlowTransformer2DModel", (6, 6), (3, 7)),
        ("CogView3PlusTransformer2DModel", (8, 8), (9, 2)),
        ("HiDreamImageTransformer2DModel", (4, 9), (4, 10)),
        ("HiDreamImageTransformer2DModel", (7, 7), (37, 1)),
    ],
)
def test_images_with_more_tokens_than_positions(
    name: str, largest: tuple[int, int], too_large: tuple[int, int]
) -> None:
    backbone = build(name)
    assert run(backbone, *largest).shape[1] == largest[0] * largest[1]
    with pytest.raises(InputError, match="images"):
        run(backbone, *too_large)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("QwenImageTransformer2DModel", {"zero_cond_t": True}),
        ("QwenImageTransformer2DModel", {"use_layer3d_rope": True}),
        ("HunyuanVideoTransformer3DModel", {"image_condition_type": "token_replace"}),
    ],
)
def test_variants_that_need_another_image(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        run(build(name, **changes))


def test_an_autoencoder_with_other_channels() -> None:
    with pytest.raises(InputError, match="latent channels"):
        build("HunyuanImageTransformer2DModel", in_channels=8)


def test_a_mask_where_every_token_counts() -> None:
    prompt = PromptEmbeddings(torch.zeros(1, 2, 24), mask=torch.tensor([[True, False]]))
    with pytest.raises(InputError, match=r"conditions\.mask"):
        run(build("Flux2Transformer2DModel"), conditions=prompt)


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("ChromaTransformer2DModel", None),
        ("QwenImageTransformer2DModel", None),
        ("HunyuanImageTransformer2DModel", 20),
        ("BriaFiboTransformer2DModel", 48),
    ],
)
def test_masked_text_tokens_change_nothing(name: str, second: int | None) -> None:
    backbone = build(name)
    images = torch.rand(1, 3, 2 * backbone.stride, 3 * backbone.stride)
    mask = torch.tensor([[True, True, True, False, False]])  # the first padding token is one that Chroma sees
    text = torch.randn(1, 5, 24)
    extra = None if second is None else torch.randn(1, 5, second)

    def after_one_block(embeds: torch.Tensor) -> torch.Tensor:
        prompt = PromptEmbeddings(embeds, None, mask, extra)
        return backbone(images, blocks=[1], timestep=260, tap="attention", conditions=prompt)[1].hidden_states

    plain, word, padding = text, text.clone(), text.clone()
    word[:, 0] += 1.0
    padding[:, 4] += 1.0
    assert torch.equal(after_one_block(padding), after_one_block(plain))
    assert not torch.allclose(after_one_block(word), after_one_block(plain))


@pytest.mark.parametrize(("given", "expected"), [(4, [0, 1, 2, 3]), (6, [2, 3, 4, 5]), (2, [0, 1, 1, 1])])
def test_the_last_layers_of_a_language_model_go_to_the_blocks(given: int, expected: list[int]) -> None:
    backbone = build("BriaFiboTransformer2DModel")  # four blocks, layers of 12 channels
    seen = []
    backbone.transformer.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    second = torch.arange(given).repeat_interleave(12).expand(1, 3, -1).float()
    run(backbone, conditions=PromptEmbeddings(torch.zeros(1, 3, 24), second=second))
    assert [layer.unique().tolist() for layer in seen[0]["text_encoder_layers"]] == [[x] for x in expected]


def test_layers_for_every_text_token() -> None:
    prompt = PromptEmbeddings(torch.zeros(1, 3, 24), second=torch.zeros(1, 2, 48))
    with pytest.raises(InputError, match=r"conditions\.second"):
        run(build("BriaFiboTransformer2DModel"), conditions=prompt)


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("CogVideoXTransformer3DModel", {"patch_size_t": 2}, "CogVideoX 1.0"),
        ("PRXTransformer2DModel", {"bottleneck_size": 8}, "PRX of latents"),
    ],
)
def test_variants_that_do_not_fit_an_image(name: str, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        build(name, **changes)
