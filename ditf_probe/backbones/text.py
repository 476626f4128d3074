"""The text encoders of the models, run through `encode_prompt` of the very pipelines of diffusers.

Not run with real weights yet, for want of them: tests build tiny ones.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.text_sides import TextSide, installed, pipeline_class, read_index
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.errors import InputError

TEXT_PARTS = ("text_encoder", "tokenizer")
"""How the names of those components of a pipeline start that a prompt passes through."""


def text_files(folder: Path) -> list[Path]:
    """The files of tokenizers and text encoders of a pipeline folder; empty where it has no text encoder."""
    parts = [part for part in folder.glob("*") if part.is_dir() and _is_text(part.name)]
    if not any(part.name.startswith("text_encoder") for part in parts):
        return []
    return sorted(file for part in parts for file in part.rglob("*") if file.is_file() and file.name[0] != ".")


def load_text_pipeline(folder: Path, side: TextSide, device: torch.device, dtype: torch.dtype) -> Any:
    """Loads the tokenizers and text encoders of a pipeline folder.

    Args:
        folder: The folder; nothing but these parts is read.
        side: Its entry.
        device: Where to run the encoders.
        dtype: Their dtype.

    Returns:
        The pipeline, without transformer, autoencoder and scheduler, or with very small ones in their place.

    Raises:
        InputError: A package is missing, or the folder is damaged.
    """
    pipeline = pipeline_class(side.pipeline)
    for package in side.needs:
        if not installed(package):
            raise InputError("prompts", side.pipeline, f"needs {package}, run `pip install {package}`")
    taken = inspect.signature(pipeline.__init__).parameters
    parts = {name for name, value in read_index(folder).items() if _is_part(value)}
    parts |= {name for name, parameter in taken.items() if parameter.default is parameter.empty and name != "self"}
    options: dict[str, Any] = {name: None for name in parts if not _is_text(name)}
    options |= {name: _stand_in(kind, dtype) for name, kind in side.stand_ins.items()}
    if "requires_safety_checker" in taken:
        options["requires_safety_checker"] = False
    try:
        loaded = pipeline.from_pretrained(str(folder), dtype=dtype, local_files_only=True, **options)
        return loaded.to(device)
    except Exception as error:  # whatever a damaged folder makes of diffusers, transformers and tokenizers
        reason = " ".join(str(error).split())[:200]
        remedy = f"its text encoders cannot be loaded, copy or download it again ({reason})"
        raise InputError("prompts", str(folder), remedy) from error


@torch.no_grad()
def encode_prompt(pipeline: Any, side: TextSide, prompt: str, arguments: Mapping[str, Any]) -> PromptEmbeddings:
    """Encodes one prompt.

    Args:
        pipeline: From `load_text_pipeline`.
        side: Its entry.
        prompt: The text.
        arguments: Of the pipeline's `encode_prompt`, from `TextSide.all_arguments`.

    Returns:
        One row, in the dtype of the encoders, on the CPU.
    """
    values: list[Any] = []
    takes_device = "device" in inspect.signature(pipeline.encode_prompt).parameters
    device = {"device": pipeline.device} if takes_device else {}
    for further in side.calls:
        returned = pipeline.encode_prompt(prompt=prompt, **device, **arguments, **further)
        values += returned if isinstance(returned, tuple) else (returned,)
    found = {part: _row(values[index]) for part, index in side.parts.items()}
    embeds, mask, second_mask = found["embeds"], found.get("mask"), found.get("second_mask")
    assert embeds is not None
    if mask is None and side.masked:
        mask = torch.ones(embeds.shape[:2])
    second = found.get("second") if side.second is None else side.second(values).cpu()
    masks = [None if x is None else x.bool() for x in (mask, second_mask)]
    return PromptEmbeddings(embeds.flatten(2), found.get("pooled"), masks[0], second, masks[1])


def _stand_in(kind: str, dtype: torch.dtype) -> nn.Module:
    """A very small model of a diffusers class; the global generator is left as it was."""
    import diffusers  # slow to import

    tiny = FAMILIES[kind].tiny if kind in FAMILIES else AUTOENCODERS[kind].tiny
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = getattr(diffusers, kind)(**tiny)
    return nn.Module.to(model, dtype)  # that of diffusers warns for nothing


def _row(value: Tensor | list[Tensor] | None) -> Tensor | None:
    """`(1, ...)` on the CPU, also of a pipeline that returns a list with one tensor per prompt."""
    tensor = value[0][None] if isinstance(value, list) else value
    return None if tensor is None else tensor.cpu()


def _is_text(name: str) -> bool:
    return name.startswith(TEXT_PARTS)


def _is_part(value: object) -> bool:
    """Whether an entry of `model_index.json` names a component, as [library, class], and no setting."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(x, str | None) for x in value)
