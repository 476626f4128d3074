"""What calibration found, as plain values and tensors that a file can hold."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.features.calibration import Calibration, Recipe
from ditf_probe.features.extractor import FeatureExtractor

_TENSOR = "tensor"
_RAW: Recipe = ("none", "none")


def keep(extractor: FeatureExtractor, blocks: Sequence[int]) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """The part of a calibration that the extractor's own features of some blocks need.

    Args:
        extractor: With its calibration, if it has one.
        blocks: Block indices from 0.

    Returns:
        facts: The fields of `Calibration` as JSON values, tensors by name; None without a calibration. Position means
            are those of the extractor's own recipe, where its features subtract them.
        tensors: By name.
    """
    found = extractor.calibration
    if found is None:
        return None, {}
    kept = {field.name: getattr(found, field.name) for field in fields(found)}
    own = (extractor.modulation, extractor.discard)
    # What has no means of its own is made from those of the raw stream.
    recipe = own if own in found.position_means else _RAW
    wanted = extractor.position_debias == "mean"
    kept["position_means"] = {recipe: found.position_means[recipe]} if wanted else {}
    tensors: dict[str, Tensor] = {}
    return {name: _apart(value, name, blocks, tensors) for name, value in kept.items()}, tensors


def restore(
    extractor: FeatureExtractor, facts: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], argument: str
) -> None:
    """Gives an extractor the calibration that `keep` made of another one with the same settings.

    Args:
        extractor: Calibrated by this; left as it is where `facts` is None.
        facts: As `keep` returns them.
        tensors: As `keep` returns them.
        argument: What they were read from, for the error.

    Raises:
        InputError: Something is missing.
    """
    if facts is None:
        return
    try:
        found: Calibration = _together(Calibration, facts, tensors)
        there = set(found.massive_channels)
        if extractor.position_debias == "mean":
            there.intersection_update(*found.position_means.values())
        lacking = [block for block in extractor.blocks if block not in there]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(argument, f"calibration without {error}", "use the version that wrote it") from error
    if lacking:
        raise InputError(argument, f"calibration without block {lacking[0]}", "save a calibrated probe again")
    extractor.calibration = found


def _apart(value: Any, name: str, blocks: Sequence[int], tensors: dict[str, Tensor]) -> Any:
    """A value as JSON: its tensors go to `tensors`, and of what is there for each block only some blocks stay."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return {key: _apart(part, f"{name}/{key}", blocks, tensors) for key, part in parts.items()}
    if isinstance(value, Mapping):
        chosen = {key: part for key, part in value.items() if not isinstance(key, int) or key in blocks}
        words = {key: "+".join(key) if isinstance(key, tuple) else str(key) for key in chosen}
        return {words[key]: _apart(part, f"{name}/{words[key]}", blocks, tensors) for key, part in chosen.items()}
    return value


def _together(kind: Any, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value of a type that `_apart` took apart."""
    arguments = get_args(kind)
    if kind is Tensor:
        return tensors[value[_TENSOR]]
    if is_dataclass(kind):
        build: Any = kind  # a class here; mypy takes it for an instance as well
        hints = get_type_hints(kind)
        return build(**{name: _together(hints[name], value[name], tensors) for name in hints})
    if get_origin(kind) is dict:
        key_of = (lambda key: tuple(key.split("+"))) if get_origin(arguments[0]) is tuple else arguments[0]
        return {key_of(key): _together(arguments[1], part, tensors) for key, part in value.items()}
    if NoneType in arguments:
        return None if value is None else _together(arguments[0], value, tensors)
    return value
