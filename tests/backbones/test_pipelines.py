"""What entries call their transformers with, against what the pipelines of diffusers call them with."""

import inspect
import math
from collections.abc import Callable
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


def flow_times(scheduler: Any) -> Tensor:
    """Timesteps of the entries, 0 to 1000, from the noise levels of a sampler."""
    return 1000 * scheduler.sigmas


def ddpm_times(scheduler: Any) -> Tensor:
    return scheduler.timesteps


def angle_times(scheduler: Any) -> Tensor:
    """From angles of noise and image on a circle to the share of noise in their sum."""
    return 1000 * scheduler.timesteps.sin() / (scheduler.timesteps.sin() + scheduler.timesteps.cos())


@dataclass(frozen=True)
class Case:
    """A pipeline, arguments of its call, the same prompt for the entry, what methods with text encoders return."""

    pipeline: str
    arguments: dict[str, Any]
    prompt: PromptEmbeddings = field(default_factory=lambda: PromptEmbeddings(TEXT))
    scheduler: dict[str, Any] = field(default_factory=lambda: SHIFTED)
    sampler: str = "FlowMatchEulerDiscreteScheduler"
    times: Callable[[Any], Tensor] = flow_times
    columns: int = COLUMNS
    encoded: dict[str, Any] = field(default_factory=dict)
    stride: int | None = None  # pixels per latent where the pipeline does not ask the autoencoder
    per_step: int = 1  # calls of the transformer, of which the last one counts
    config: dict[str, Any] = field(default_factory=dict)  # of the transformer, beside the tiny one
    doubled: bool = False  # the transformer predicts a variance beside the noise
    seen: dict[str, Callable[[Any], Any]] = field(default_factory=dict)  # what the transformer sees of an argument


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


def hunyuan_dit_case() -> Case:
    second, mask = torch.randn(1, LENGTH, 16, generator=GENERATOR), torch.tensor([[True, True, True, True, False]])
    arguments = {"prompt_embeds": TEXT, "prompt_attention_mask": MASK.long(), "prompt_embeds_2": second}
    arguments |= {"prompt_attention_mask_2": mask.long(), "original_size": (ROWS * 16, COLUMNS * 16)}
    arguments |= {"guidance_scale": 1.0, "use_resolution_binning": False}
    prompt = PromptEmbeddings(TEXT, None, MASK, second, mask)
    return Case("HunyuanDiTPipeline", arguments, prompt, stride=8, doubled=True, **DDPM)


def krea2_case() -> Case:
    layers = torch.randn(1, LENGTH, 3, 12, generator=GENERATOR)
    arguments = {"prompt_embeds": layers, "prompt_embeds_mask": MASK, "guidance_scale": 0.0}
    return Case("Krea2Pipeline", arguments, PromptEmbeddings(layers.flatten(2), mask=MASK))


def lumina_next_case() -> Case:
    """The pipeline computes positions for 384 x 384 tokens, of which the transformer takes its own."""
    own = {"image_rotary_emb": lambda positions: positions[:ROWS, :COLUMNS]}
    return Case("LuminaPipeline", MASKED, MASKED_PROMPT, {"shift": 3.0}, stride=8, doubled=True, seen=own)


DDPM = {"sampler": "DDPMScheduler", "times": ddpm_times, "scheduler": {}}
SCM = {"sampler": "SCMScheduler", "times": angle_times, "scheduler": {}}
COGVIDEOX = DDPM | {"sampler": "CogVideoXDDIMScheduler"}
PLAIN = {"prompt_embeds": TEXT}
UNGUIDED = PLAIN | {"guidance_scale": 1.0}
MASKED = UNGUIDED | {"prompt_attention_mask": MASK}
MASKED_PROMPT = PromptEmbeddings(TEXT, mask=MASK)
UNBINNED = {"use_resolution_binning": False}
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
        "ChromaPipeline", UNGUIDED | {"prompt_attention_mask": MASK.float()}, MASKED_PROMPT
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
        "QwenImagePipeline", PLAIN | {"prompt_embeds_mask": MASK.long()}, MASKED_PROMPT
    ),
    "AuraFlowTransformer2DModel": Case(
        "AuraFlowPipeline", UNGUIDED | {"prompt_attention_mask": MASK}, scheduler={"shift": 1.73}, columns=6
    ),
    "CogView3PlusTransformer2DModel": Case("CogView3PlusPipeline", UNGUIDED, columns=8, **COGVIDEOX),
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
    "PixArtTransformer2DModel": Case(
        "PixArtAlphaPipeline", MASKED | UNBINNED, MASKED_PROMPT, stride=8, doubled=True, **DDPM
    ),
    "HunyuanDiT2DModel": hunyuan_dit_case(),
    "SanaTransformer2DModel": Case(
        "SanaPipeline", MASKED | UNBINNED, MASKED_PROMPT, {"shift": 3.0}, stride=32, config={"guidance_embeds": False}
    ),
    "SanaTransformer2DModel, Sprint": Case(
        "SanaSprintPipeline",
        MASKED | UNBINNED | {"guidance_scale": 3.5, "intermediate_timesteps": None},
        MASKED_PROMPT,
        stride=32,
        **SCM,
    ),
    "PRXTransformer2DModel": Case("PRXPipeline", MASKED | UNBINNED, MASKED_PROMPT, {"shift": 3.0}),
    "Lumina2Transformer2DModel": Case("Lumina2Pipeline", MASKED, MASKED_PROMPT, stride=8),
    "LuminaNextDiT2DModel": lumina_next_case(),
    "ZImageTransformer2DModel": Case(
        "ZImagePipeline", {"prompt_embeds": [TEXT[0, :3]], "guidance_scale": 0.0}, MASKED_PROMPT
    ),
    "NucleusMoEImageTransformer2DModel": Case(
        "NucleusMoEImagePipeline", UNGUIDED | {"prompt_embeds_mask": MASK}, MASKED_PROMPT
    ),
    "Krea2Transformer2DModel": krea2_case(),
    "ErnieImageTransformer2DModel": Case(
        "ErnieImagePipeline", {"prompt_embeds": [TEXT[0]], "guidance_scale": 1.0}, scheduler={"shift": 4.0}
    ),
    "WanTransformer3DModel": Case("WanPipeline", UNGUIDED | {"num_frames": 1}, scheduler={"shift": 5.0}, columns=8),
    "LTXVideoTransformer3DModel": Case(
        "LTXPipeline",
        MASKED | {"num_frames": 1},
        MASKED_PROMPT,
        columns=8,
        seen={"rope_interpolation_scale": lambda scale: (0.0, *scale[1:])},  # of the only frame
    ),
    "CogVideoXTransformer3DModel": Case("CogVideoXPipeline", UNGUIDED | {"num_frames": 1}, columns=8, **COGVIDEOX),
    "CogVideoXTransformer3DModel, higher than wide": Case(
        "CogVideoXPipeline", UNGUIDED | {"num_frames": 1}, columns=2, **COGVIDEOX
    ),
    "CogVideoXTransformer3DModel, 2B": Case(
        "CogVideoXPipeline",
        UNGUIDED | {"num_frames": 1},
        columns=8,
        config={"use_rotary_positional_embeddings": False},
        **COGVIDEOX,
    ),
}


def build_pipeline(name: str, case: Case) -> Any:
    """A pipeline of tiny models without text encoders."""
    family = FAMILIES[name]
    kind = getattr(diffusers, case.pipeline)
    needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    parts = {
        "scheduler": getattr(diffusers, case.sampler)(**family.schedule | case.scheduler),
        "vae": getattr(diffusers, family.vae)(**AUTOENCODERS[family.vae].tiny),
        "transformer": getattr(diffusers, name)(**family.tiny | case.config),
    }
    return kind(**(dict.fromkeys(needed) | parts))


def calls_of(pipe: Any, case: Case, size: tuple[int, int]) -> list[tuple[Any, dict[str, Any]]]:
    """The latents that a pipeline calls its transformer with, and all arguments, by step; the prediction is zero."""
    seen: list[tuple[Any, dict[str, Any]]] = []
    signature = inspect.signature(pipe.transformer.forward)

    def record(*args: Any, **kwargs: Any) -> tuple[Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        latents = next(iter(bound.arguments.values()))
        seen.append((latents, dict(bound.arguments)))
        if isinstance(latents, list):
            return ([torch.zeros_like(one) for one in latents],)
        return (torch.zeros_like(torch.cat([latents, latents], dim=1) if case.doubled else latents),)

    pipe.transformer.forward = record
    pipe.set_progress_bar_config(disable=True)
    options = {"height": size[0], "width": size[1], "num_inference_steps": 3, "output_type": "latent"}
    pipe(**({"prompt": None} | options | case.arguments), generator=torch.Generator().manual_seed(1))
    return seen[case.per_step - 1 :: case.per_step]


@pytest.mark.parametrize("label", CASES)
@torch.no_grad()
def test_entries_call_as_the_pipelines_do(label: str) -> None:
    name, case = label.split(",")[0], CASES[label]
    family, pipe = FAMILIES[name], build_pipeline(name, case)
    config = pipe.transformer.config
    autoencoder = AUTOENCODERS[family.vae]
    channels, stride = autoencoder.channels(pipe.vae.config), case.stride or autoencoder.stride(pipe.vae.config)
    patch = family.patch(config, channels)
    grid, size = (ROWS, case.columns), (ROWS * patch * stride, case.columns * patch * stride)
    if case.stride is None:
        pipe.default_sample_size = math.isqrt(size[0] * size[1]) // stride  # HiDream resizes to it
    else:
        pipe.vae_scale_factor = stride
    for method, result in case.encoded.items():
        setattr(pipe, method, lambda *_, result=result, **__: result)
    calls = calls_of(pipe, case, size)
    times = case.times(pipe.scheduler)
    first = calls[0][0]
    count = sum(latents.numel() for latents in first) if isinstance(first, list) else first.numel()
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(1))
    for step, (latents, found) in enumerate(calls[:2]):
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
            if step == 0 or found[key] is not latents:  # the first step draws the latents
                assert_same(key, value, case.seen.get(key, lambda x: x)(found[key]))
        assert {key for key, value in found.items() if isinstance(value, Tensor)} <= expected.keys()


def assert_same(key: str, ours: Any, theirs: Any) -> None:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor) and theirs.ndim == ours.ndim + 1:
        theirs = theirs[0]  # position ids with a row per image
    if ours is None or theirs is None:
        assert ours is theirs, key
    else:
        torch.testing.assert_close(ours, theirs, check_dtype=False, msg=lambda text: f"{key}: {text}")
