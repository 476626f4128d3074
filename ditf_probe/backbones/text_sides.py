"""One entry per pipeline of diffusers: how it turns a prompt into what its transformer takes.

A new model is one entry in `TEXT_SIDES`. Checked against the source of diffusers 0.42.
"""

import importlib.util
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditf_probe.errors import InputError


@dataclass(frozen=True, slots=True)
class TextSide:
    """How one pipeline turns a prompt into what its transformer takes.

    Prompts are encoded one by one, so that an embedding depends on its prompt alone: some pipelines pad a batch to its
    longest prompt without a mask.

    Attributes:
        pipeline: Class of diffusers.
        parts: Field of `PromptEmbeddings` to its position among the values that `encode_prompt` returns.
        arguments: Keyword arguments of `encode_prompt`, beside the prompt and the device.
        from_call: Names of further arguments, taken from the defaults of the pipeline's `__call__`.
        calls: Further arguments of each call, where one encoder is run per call; the values follow one another.
        second: From the values to the tokens of a second text encoder, where they are not one of the values.
        masked: The transformer masks padding, and `encode_prompt` pads a single prompt not at all.
        needs: Packages that the pipeline needs beside transformers.
        stand_ins: Name to class of further components that the pipeline asks for a dtype or a setting. They do not run,
            so very small ones stand in for them.
    """

    pipeline: str
    parts: Mapping[str, int]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    from_call: tuple[str, ...] = ()
    calls: tuple[Mapping[str, Any], ...] = ({},)
    second: Callable[[Sequence[Any]], Tensor] | None = None
    masked: bool = False
    needs: tuple[str, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    def all_arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of `encode_prompt`, those of the user in place of the defaults.

        Raises:
            InputError: The pipeline has no such argument.
        """
        pipeline = pipeline_class(self.pipeline)
        known, call = (inspect.signature(f).parameters for f in (pipeline.encode_prompt, pipeline.__call__))
        for name, value in given.items():
            if name not in known or name in ("self", "prompt", "device", *self.calls[0]):
                raise InputError(name, value, f"is no argument of {self.pipeline}.encode_prompt of diffusers")
        return {**self.arguments, **{name: call[name].default for name in self.from_call}, **given}


def layers_side_by_side(values: Sequence[Any]) -> Tensor:
    """From `(layers, B, L, D)` of a language model to `(B, L, layers * D)`."""
    layers: Tensor = values[2]
    return layers.permute(1, 2, 0, 3).flatten(2)


def hidden_states_side_by_side(values: Sequence[Any]) -> Tensor:
    """From the hidden states of a language model, a list of `(B, L, D)`, to `(B, L, layers * D)`."""
    return torch.cat(values[5], dim=-1)


ALONE: dict[str, Any] = {"do_classifier_free_guidance": False}  # no negative prompt beside the prompt
RAW: dict[str, Any] = {**ALONE, "clean_caption": False}  # cleaning depends on packages that may be missing

TEXT_SIDES: dict[str, tuple[TextSide, ...]] = {
    "AuraFlowTransformer2DModel": (
        TextSide("AuraFlowPipeline", {"embeds": 0}, {**ALONE, "max_sequence_length": 256}),  # padding is zeroed
    ),
    "BriaTransformer2DModel": (  # padding is zeroed
        TextSide(
            "BriaPipeline",
            {"embeds": 0},
            {**ALONE, "max_sequence_length": 128},
            stand_ins={"vae": "AutoencoderKL", "transformer": "BriaTransformer2DModel"},
        ),
    ),
    "BriaFiboTransformer2DModel": (  # the last two layers of a language model side by side, and all of them for blocks
        TextSide(
            "BriaFiboPipeline",
            {"embeds": 0, "mask": 3},
            {"guidance_scale": 1.0, "max_sequence_length": 3000},  # no negative prompt beside the prompt
            second=hidden_states_side_by_side,
            stand_ins={"transformer": "BriaFiboTransformer2DModel"},
        ),
    ),
    "ChromaTransformer2DModel": (
        TextSide("ChromaPipeline", {"embeds": 0, "mask": 2}, {**ALONE, "max_sequence_length": 512}),
    ),
    "CogView3PlusTransformer2DModel": (
        TextSide("CogView3PlusPipeline", {"embeds": 0}, {**ALONE, "max_sequence_length": 224}),
    ),
    "CogView4Transformer2DModel": (  # padded on the left to a multiple of 16, without a mask
        TextSide("CogView4Pipeline", {"embeds": 0}, {**ALONE, "max_sequence_length": 1024}),
    ),
    "CogVideoXTransformer3DModel": (  # padding is seen
        TextSide("CogVideoXPipeline", {"embeds": 0}, {**ALONE, "max_sequence_length": 226}),
    ),
    "ErnieImageTransformer2DModel": (TextSide("ErnieImagePipeline", {"embeds": 0}, masked=True),),
    "Flux2Transformer2DModel": (
        TextSide("Flux2Pipeline", {"embeds": 0}, {"max_sequence_length": 512}),
        TextSide("Flux2KleinPipeline", {"embeds": 0}, {"max_sequence_length": 512}),
    ),
    "FluxTransformer2DModel": (  # FLUX.1-schnell was trained with 256 tokens
        TextSide("FluxPipeline", {"embeds": 0, "pooled": 1}, {"max_sequence_length": 512}),
    ),
    "GlmImageTransformer2DModel": (  # what stands in quotes in the prompt, the only text that the transformer sees
        TextSide("GlmImagePipeline", {"embeds": 0}, {**ALONE, "max_sequence_length": 2048}),
    ),
    "HiDreamImageTransformer2DModel": (  # T5, the layers of Llama, and the pooled vectors of two CLIPs
        TextSide(
            "HiDreamImagePipeline",
            {"embeds": 0, "pooled": 4},
            {**ALONE, "max_sequence_length": 128},
            second=layers_side_by_side,
        ),
    ),
    "HunyuanDiT2DModel": (  # BERT and T5, each with a mask
        TextSide(
            "HunyuanDiTPipeline",
            {"embeds": 0, "mask": 2, "second": 4, "second_mask": 6},
            ALONE,
            calls=(
                {"text_encoder_index": 0, "max_sequence_length": 77},
                {"text_encoder_index": 1, "max_sequence_length": 256},
            ),
        ),
    ),
    "HunyuanImageTransformer2DModel": (  # a language model, and ByT5 for text that is to be drawn
        TextSide(
            "HunyuanImagePipeline",
            {"embeds": 0, "mask": 1},
            second=lambda values: values[2] * values[3][..., None],  # padding becomes zero
        ),
    ),
    "HunyuanVideoTransformer3DModel": (  # the third last layer of Llama, behind a request to describe a video; CLIP
        TextSide("HunyuanVideoPipeline", {"embeds": 0, "pooled": 1, "mask": 2}, {"max_sequence_length": 256}),
    ),
    "Krea2Transformer2DModel": (  # several layers of the encoder side by side, `(B, L, layers * D)`
        TextSide("Krea2Pipeline", {"embeds": 0, "mask": 1}, {"max_sequence_length": 512}),
    ),
    "LTXVideoTransformer3DModel": (
        TextSide("LTXPipeline", {"embeds": 0, "mask": 1}, {**ALONE, "max_sequence_length": 128}),
    ),
    "LongCatImageTransformer2DModel": (  # always 512 tokens; the pipeline may rewrite prompts before, which is left out
        TextSide("LongCatImagePipeline", {"embeds": 0}),
    ),
    "Lumina2Transformer2DModel": (
        TextSide("Lumina2Pipeline", {"embeds": 0, "mask": 1}, {**ALONE, "max_sequence_length": 256}),
    ),
    "LuminaNextDiT2DModel": (TextSide("LuminaPipeline", {"embeds": 0, "mask": 1}, RAW),),
    "OvisImageTransformer2DModel": (
        TextSide("OvisImagePipeline", {"embeds": 0}, {**ALONE, "max_sequence_length": 256}),
    ),
    "PRXTransformer2DModel": (TextSide("PRXPipeline", {"embeds": 0, "mask": 1}, ALONE, needs=("ftfy",)),),
    "PixArtTransformer2DModel": (
        TextSide("PixArtAlphaPipeline", {"embeds": 0, "mask": 1}, {**RAW, "max_sequence_length": 120}),
        TextSide("PixArtSigmaPipeline", {"embeds": 0, "mask": 1}, {**RAW, "max_sequence_length": 300}),
    ),
    "QwenImageTransformer2DModel": (
        TextSide("QwenImagePipeline", {"embeds": 0, "mask": 1}, {"max_sequence_length": 512}, masked=True),
    ),
    "SD3Transformer2DModel": (
        TextSide(
            "StableDiffusion3Pipeline",
            {"embeds": 0, "pooled": 2},
            {**ALONE, "prompt_2": None, "prompt_3": None, "max_sequence_length": 256},
        ),
    ),
    "SanaTransformer2DModel": (
        TextSide(
            "SanaPipeline",
            {"embeds": 0, "mask": 1},
            {**RAW, "max_sequence_length": 300},
            from_call=("complex_human_instruction",),
        ),
    ),
    "UNet2DConditionModel": (
        TextSide("StableDiffusionPipeline", {"embeds": 0}, {**ALONE, "num_images_per_prompt": 1}),
        TextSide("StableDiffusionXLPipeline", {"embeds": 0, "pooled": 2}, ALONE),
    ),
    "WanTransformer3DModel": (
        TextSide("WanPipeline", {"embeds": 0}, {**ALONE, "max_sequence_length": 512}),  # padding is zeroed
    ),
    "ZImageTransformer2DModel": (
        TextSide("ZImagePipeline", {"embeds": 0}, {**ALONE, "max_sequence_length": 512}, masked=True),
    ),
}
"""Class of the transformer (or UNet) to the pipelines that it comes in."""


def installed(package: str) -> bool:
    """Whether a package could be imported."""
    return importlib.util.find_spec(package) is not None


def pipeline_class(name: str) -> Any:
    """A pipeline class of diffusers.

    Raises:
        InputError: The package transformers is missing.
    """
    if not installed("transformers"):
        raise InputError("prompts", name, "text encoders need transformers, run `pip install 'ditf_probe[text]'`")
    import diffusers  # slow to import

    return getattr(diffusers, name)


def read_index(folder: Path) -> dict[str, Any]:
    """The `model_index.json` of a pipeline folder.

    Raises:
        InputError: There is none, or it is no JSON object.
    """
    file = folder / "model_index.json"
    try:
        index = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError("prompts", str(file), "give a diffusers pipeline folder, which has this JSON file") from error
    if not isinstance(index, dict):
        raise InputError("prompts", str(file), "holds no JSON object, copy or download it again")
    return index


def find_text_side(folder: Path) -> TextSide:
    """The entry of a pipeline folder.

    Raises:
        InputError: No entry for its transformer, or several and none for its pipeline.
    """
    index = read_index(folder)
    model = next((index[key][1] for key in ("transformer", "unet") if isinstance(index.get(key), list)), None)
    name, sides = index.get("_class_name"), TEXT_SIDES.get(str(model), ())
    exact = [side for side in sides if side.pipeline == name] or sides
    if len(exact) != 1:
        known = [side.pipeline for side in sides] or list(TEXT_SIDES)
        remedy = f"prompts can be encoded for {', '.join(known)}, give ditf_probe.PromptEmbeddings"
        raise InputError("prompts", f"{folder}: {name} of {model}", remedy)
    return exact[0]
