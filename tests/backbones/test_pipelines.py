"""What entries call their transformers with, against what the pipelines of diffusers call them with."""

import inspect
import math
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.families import FAMILIES, ModelInputs
from ditf_probe.conditions import PromptEmbeddings

pytest.importorskip("transformers", reason="the pipelines import text encoders")

ROWS, COLUMNS = 4, 9
LENGTH = 5
GENERATOR = torch.Generator().manual_seed(0)
TEXT = torch.randn(1, LENGTH, 24, generator=GENERATOR)
POOLED = torch.randn(1, 20, generator=GENERATOR)
MASK = torch.tensor([[True, True, True, False, False]])
SHIFTED = {"use_dynamic_shifting": True}
LINEAR = SHIFTED | {"time_shift_type": "linear", "base_shift": 0.25, "max_shift": 0.75}


@dataclass(frozen=True)
class Case:
    """A pipeline, arguments of its call, the same prompt for the entry, what methods with text encoders return."""

    pipeline: str
    arguments: dict[str, Any]
    prompt: PromptEmbeddings = field(default_factory=lambda: PromptEmbeddings(TEXT))
    scheduler: dict[str, Any] = field(default_factory=lambda: SHIFTED)
    columns: int = COLUMNS
    encoded: dict[str, Any] = field(default_factory=dict)
    stride: int | None = None  # pixels per latent where the pipeline does not ask the autoencoder
    per_step: int = 1  # calls of the transformer, of which the last one counts


def hidream_case() -> Case:
    layers, pooled = torch.randn(3, 1, LENGTH, 20, generator=GENERATOR), POOLED[:, :16]
    arguments = {"prompt_embeds_t5": TEXT, "prompt_embeds_llama3": layers, "pooled_prompt_embeds": pooled}
    prompt = PromptEmbeddings(TEXT, pooled, second=torch.cat(list(layers), dim=-1))
    return Case("HiDreamImagePipeline", arguments | {"guidance_scale": 1.0}, prompt)


def hunyuan_image_case() -> Case:
    second = torch.randn(1, LENGTH, 20, generator=GENERATOR) * MASK[..., None]
    arguments = {"prompt_embeds": TEXT, "prompt_embeds_mask": MASK.long(), "distilled_guidance_scale": 3.5}
    arguments |= {"prompt_embeds_2": second, "prompt_embeds_mask_2": MASK.long()}
    return Case("HunyuanImagePipeline", arguments, PromptEmbeddings(TEXT, None, MASK, second), {"shift": 4.0})


def fibo_case() -> Case:
    layers = list(torch.randn(4, 1, LENGTH, 12, generator=GENERATOR))
    encoded = (TEXT, None, torch.zeros(LENGTH, 3), MASK.float(), None, layers, None)
    prompt = PromptEmbeddings(TEXT, None, MASK, torch.cat(layers, dim=-1))
    arguments = {"prompt": "x", "guidance_scale": 1.0}
    return Case("BriaFiboPipeline", arguments, prompt, encoded={"encode_prompt": encoded}, stride=16)


def glm_case() -> Case:
    """The pass without the tokens of a language model is the one that guidance leads away from."""
    arguments = {"prompt_embeds": TEXT, "negative_prompt_embeds": TEXT, "guidance_scale": 1.5}
    arguments |= {"prior_token_ids": torch.zeros(1, 4 * 8, dtype=torch.int64)}
    return Case("GlmImagePipeline", arguments, scheduler=LINEAR, columns=8, per_step=2)


PLAIN = {"prompt_embeds": TEXT}
UNGUIDED = PLAIN | {"guidance_scale": 1.0}
CASES = {
    "FluxTransformer2DModel": Case(
        "FluxPipeline",
        PLAIN | {"pooled_prompt_embeds": POOLED, "guidance_scale": 3.5},
        PromptEmbeddings(TEXT, POOLED),
    ),
    "SD3Transformer2DModel": Case(
        "StableDiffusion3Pipeline",
        UNGUIDED | {"pooled_prompt_embeds": POOLED},
        PromptEmbeddings(TEXT, POOLED),
        {"shift": 3.0},
    ),
    "Flux2Transformer2DModel": Case("Flux2Pipeline", PLAIN | {"guidance_scale": 3.5}),
    "ChromaTransformer2DModel": Case(
        "ChromaPipeline", UNGUIDED | {"prompt_attention_mask": MASK.float()}, PromptEmbeddings(TEXT, mask=MASK)
    ),
    "BriaTransformer2DModel": Case("BriaPipeline", UNGUIDED),
    "BriaFiboTransformer2DModel": fibo_case(),
    "OvisImageTransformer2DModel": Case("OvisImagePipeline", UNGUIDED),
    "LongCatImageTransformer2DModel": Case(
        "LongCatImagePipeline",
        {"prompt": "x", "guidance_scale": 1.0, "enable_prompt_rewrite": False},
        encoded={"_encode_prompt": TEXT},
    ),
    "QwenImageTransformer2DModel": Case(
        "QwenImagePipeline", PLAIN | {"prompt_embeds_mask": MASK.long()}, PromptEmbeddings(TEXT, mask=MASK)
    ),
    "AuraFlowTransformer2DModel": Case(
        "AuraFlowPipeline", UNGUIDED | {"prompt_attention_mask": MASK}, scheduler={"shift": 1.73}, columns=6
    ),
    "CogView3PlusTransformer2DModel": Case("CogView3PlusPipeline", UNGUIDED, columns=8),
    "CogView4Transformer2DModel": Case("CogView4Pipeline", UNGUIDED, scheduler=LINEAR, columns=8),
    "GlmImageTransformer2DModel": glm_case(),
    "HiDreamImageTransformer2DModel": hidream_case(),
    "HunyuanImageTransformer2DModel": hunyuan_image_case(),
    "HunyuanVideoTransformer3DModel": Case(
        "HunyuanVideoPipeline",
        PLAIN | {"pooled_prompt_embeds": POOLED, "prompt_attention_mask": MASK, "guidance_scale": 3.5, "num_frames": 1},
        PromptEmbeddings(TEXT, POOLED, MASK),
        {"shift": 7.0},
        columns=8,
    ),
}


def build_pipeline(name: str, case: Case) -> Any:
    """A pipeline of tiny models without text encoders."""
    family = FAMILIES[name]
    kind = getattr(diffusers, case.pipeline)
    if family.noising == "ddpm":
        scheduler = diffusers.CogVideoXDDIMScheduler(**family.schedule)
    else:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**case.scheduler)
    needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    parts = {
        "scheduler": scheduler,
        "vae": getattr(diffusers, family.vae)(**AUTOENCODERS[family.vae].tiny),
        "transformer": getattr(diffusers, name)(**family.tiny),
    }
    return kind(**(dict.fromkeys(needed) | parts))


def calls_of(pipe: Any, arguments: dict[str, Any], size: tuple[int, int]) -> list[dict[str, Any]]:
    """What a pipeline calls its transformer with, step by step; the transformer predicts zero."""
    seen: list[dict[str, Any]] = []
    signature = inspect.signature(pipe.transformer.forward)

    def record(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        seen.append(dict(signature.bind(*args, **kwargs).arguments))
        return (torch.zeros_like(seen[-1]["hidden_states"]),)

    pipe.transformer.forward = record
    pipe.set_progress_bar_config(disable=True)
    options = {"height": size[0], "width": size[1], "num_inference_steps": 3, "output_type": "latent"}
    pipe(**({"prompt": None} | arguments), **options, generator=torch.Generator().manual_seed(1))
    return seen


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_entries_call_as_the_pipelines_do(name: str) -> None:
    family, case = FAMILIES[name], CASES[name]
    pipe = build_pipeline(name, case)
    config = pipe.transformer.config
    autoencoder = AUTOENCODERS[family.vae]
    channels, stride = autoencoder.channels(pipe.vae.config), case.stride or autoencoder.stride(pipe.vae.config)
    patch = family.patch(config, channels)
    grid, size = (ROWS, case.columns), (ROWS * patch * stride, case.columns * patch * stride)
    pipe.default_sample_size = math.isqrt(size[0] * size[1]) // stride  # HiDream resizes to it
    for method, result in case.encoded.items():
        setattr(pipe, method, lambda *_, result=result, **__: result)
    calls = calls_of(pipe, case.arguments, size)[case.per_step - 1 :: case.per_step]
    times = pipe.scheduler.timesteps if family.noising == "ddpm" else 1000 * pipe.scheduler.sigmas
    drawn = torch.randn(calls[0]["hidden_states"].numel(), generator=torch.Generator().manual_seed(1))
    for step, found in enumerate(calls[:2]):
        inputs = ModelInputs(
            latents=drawn.reshape(1, -1, ROWS * patch, case.columns * patch),
            time=torch.full((1,), family.time(float(times[step]))),
            condition=case.prompt,
            grid=grid,
            patch=patch,
            guidance=3.5 if config.get("guidance_embeds") else None,
            size=size,
            config=config,
        )
        expected = family.call(inputs)
        for key, value in expected.items():
            if step == 0 or key != "hidden_states":  # the first step draws the latents
                assert_same(key, value, found.get(key))
        assert {key for key, value in found.items() if isinstance(value, Tensor)} <= expected.keys()


def assert_same(key: str, ours: Any, theirs: Any) -> None:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and theirs.ndim == ours.ndim + 1:
        theirs = theirs[0]  # position ids with a row per image
    if ours is None or theirs is None:
        assert ours is theirs, key
    else:
        torch.testing.assert_close(ours, theirs, check_dtype=False, msg=lambda text: f"{key}: {text}")
