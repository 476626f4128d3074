"""What a backbone refuses, in words for its user."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ditf_probe.backbones.base import ModulationCondition
from ditf_probe.backbones.families import FAMILIES, WITHOUT_ADALN, Family
from ditf_probe.errors import InputError, check_choice


def check_images(images: Tensor, stride: int) -> None:
    """Prepared images are `(B, 3, H, W)` floating point in [0, 1], sides multiples of the stride.

    Raises:
        InputError: They are not.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or not len(images):
        found = f"{tuple(images.shape)} {images.dtype}"
        raise InputError("images", found, "give floating-point (B, 3, H, W) in [0, 1], B at least 1")
    height, width = images.shape[2:]
    if not height or not width or height % stride or width % stride:
        remedy = f"sides must be multiples of {stride} pixels; `extractor.prepare` makes them so"
        raise InputError("images", f"{height} x {width}", remedy)
    low, high = images.aminmax()
    if not (float(low) >= -0.01 and float(high) <= 1.01):  # filters overshoot a little; NaN fails both comparisons
        raise InputError("images", f"values {float(low):g} to {float(high):g}", "give finite values in [0, 1]")


def check_blocks(blocks: Sequence[int], num_blocks: int) -> list[int]:
    """Block indices from 0, each once, in the order given; negative ones count from the end.

    Raises:
        InputError: None at all, or one out of range.
    """
    if not blocks:
        raise InputError("blocks", list(blocks), "name at least one block")
    for block in blocks:
        if not -num_blocks <= block < num_blocks:
            raise InputError("blocks", block, f"the backbone has blocks 0 to {num_blocks - 1}")
    return list(dict.fromkeys(block % num_blocks for block in blocks))


def check_timestep(timestep: int, last: int) -> None:
    """Timesteps are whole numbers from 0 to the last.

    Raises:
        InputError: It is not.
    """
    if isinstance(timestep, bool) or not isinstance(timestep, int) or not 0 <= timestep <= last:
        remedy = f"use a whole number from 0 to {last}" if last else "this backbone adds no noise, use 0"
        raise InputError("timestep", timestep, remedy)


def check_options(options: Mapping[str, Any], *accepting: Callable[..., Any], without: Collection[str] = ()) -> None:
    """Options are keyword-only parameters of what is called with them, but those that it is called `without`.

    Raises:
        InputError: One is not.
    """
    parameters = [p for function in accepting for p in inspect.signature(function).parameters.values()]
    names = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in without]
    for option in options:
        if option not in names:
            raise InputError(option, options[option], f"is no option of this backbone, use {', '.join(names)}")


def check_timesteps(timestep: Any, last: int) -> tuple[int, ...]:
    """One timestep, or several different ones.

    Raises:
        InputError: There is none, one is out of range, or one comes twice.
    """
    several = isinstance(timestep, Sequence) and not isinstance(timestep, str)
    values: tuple[Any, ...] = tuple(timestep) if several else (timestep,)
    for value in values:
        check_timestep(value, last)
    if not values or len(set(values)) < len(values):
        raise InputError("timestep", list(values), "give at least one timestep, each once")
    return values


def check_condition(condition: str, known: Sequence[str], backbone: str) -> None:
    """A modulation can only be computed from what enters it.

    Raises:
        InputError: It cannot.
    """
    check_choice("modulation_condition", condition, ModulationCondition)
    if condition not in known:
        remedy = f"the modulation of {backbone} can be computed from {', '.join(known)}"
        raise InputError("modulation_condition", condition, remedy)


def check_ids(image_ids: Sequence[str], count: int) -> list[str]:
    """One id per image.

    Raises:
        InputError: There are more or fewer, or they are no strings.
    """
    if isinstance(image_ids, str) or len(image_ids) != count or not all(isinstance(i, str) for i in image_ids):
        raise InputError("image_ids", image_ids, f"give {count} strings, one per image")
    return list(image_ids)


def check_uncompiled(argument: str, model: nn.Module) -> None:
    """Models are hooked, so they must not be compiled.

    Raises:
        InputError: One is.
    """
    in_place = any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
    if in_place or hasattr(model, "_orig_mod"):
        remedy = "hooks do not fire reliably in compiled code, give the model without torch.compile"
        raise InputError(argument, "a compiled model", remedy)


def find_family(transformer: nn.Module) -> Family:
    """The entry of a transformer.

    Raises:
        InputError: A class without an entry, or a compiled model.
    """
    check_uncompiled("transformer", transformer)
    name = diffusers_class(transformer).__name__
    if name not in FAMILIES:
        raise no_entry("transformer", name, name)
    return FAMILIES[name]


def diffusers_class(transformer: nn.Module) -> Any:
    """The class of a model; one that FSDP divides over ranks is of a subclass of its own."""
    kind = type(transformer)
    return kind.__bases__[-1] if hasattr(kind, "unshard") else kind


def no_entry(argument: str, found: str, name: str) -> InputError:
    """The error for a diffusers class that no entry describes.

    Args:
        argument: What named it.
        found: What is shown as its value.
        name: The class.
    """
    if name in WITHOUT_ADALN:
        remedy = f"{name} has no AdaLN to read; models without go with modulation: none, as timm/NAME or a UNet"
    else:
        remedy = f"use a diffusers model of one of the classes {', '.join(FAMILIES)}"
    return InputError(argument, found, remedy)


def check_embedding(embedding: nn.Embedding, family: Family, config: Any) -> None:
    """A class embedding replaces text tokens and pooled prompt, so it needs the width of both.

    Raises:
        InputError: It has another one, or the model takes no prompts.
    """
    shape = None if family.text is None else family.text(config)
    widths = set() if shape is None else {width for width in (shape.width, shape.pooled) if width is not None}
    if widths != {embedding.embedding_dim}:
        remedy = f"the transformer takes vectors of width {sorted(widths)}" if widths else "it embeds labels itself"
        raise InputError("class_embedding", f"width {embedding.embedding_dim}", remedy)
