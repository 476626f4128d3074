"""A trained probe on disk: `probe.safetensors`, and `probe.yaml` for people.

The weights file carries everything in its metadata, so that one rename makes a probe whole; the YAML file repeats it.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ditf_probe.errors import InputError
from ditf_probe.files import replacing, write_text
from ditf_probe.probes.lora import LoraWeights, attach, lora_of

WEIGHTS, FACTS, METADATA_KEY = "probe.safetensors", "probe.yaml", "ditf_probe"


# What features a probe is of: it works on these alone. Sizes, prompts, noise draws and their seed may change.
PROBE_SETTINGS = (
    *("timestep", "tap", "modulation", "discard", "massive_channels", "massive_ratio", "modulation_condition"),
    *("massive_count", "channel_choice", "channel_seed", "whiten_shrinkage"),
    *("position_debias", "debias_components", "debias_images"),
)
# What those settings are without which others mean nothing.
_NEEDS = {
    **dict.fromkeys(("massive_count", "channel_choice", "channel_seed"), ("discard", ("pre_norm", "post_adaln"))),
    "whiten_shrinkage": ("modulation", ("whiten",)),
    **dict.fromkeys(("massive_channels", "massive_ratio"), ("discard", ("pre_norm", "post_adaln"))),
    **dict.fromkeys(("debias_components", "debias_images"), ("position_debias", ("svd",))),
}


@dataclass(frozen=True)
class ProbeFacts:
    """What must be known to use a probe again.

    Attributes:
        class_path: Where its class is imported from.
        init_args: Arguments of its class.
        features: Settings of the features it was trained on.
        backbone: `Backbone.settings()` of the backbone it was trained on.
        training: How it was trained and how far, for the reader.
        calibration: What was found on calibration images, as in `features.kept_calibration`; None for nothing.
        lora: Arguments of `LoraWeights`, where the head was trained with adapters inside the backbone; None where the
            backbone was frozen.
    """

    class_path: str
    init_args: dict[str, Any]
    features: dict[str, Any]
    backbone: dict[str, Any]
    training: dict[str, Any]
    calibration: dict[str, Any] | None = None
    lora: dict[str, Any] | None = None


def init_args(probe: nn.Module) -> dict[str, Any]:
    """The arguments that build a probe again: each must be kept as an attribute of the same name, a plain value.

    Raises:
        InputError: An argument is not kept, or not as a plain value.
    """
    names = [name for name in inspect.signature(type(probe)).parameters if name != "self"]
    missing = [name for name in names if not hasattr(probe, name)]
    if missing:
        kind = f"{type(probe).__module__}.{type(probe).__qualname__}"
        raise InputError("probes", kind, f"keep its arguments {missing} as attributes, so that it can be rebuilt")
    arguments = {name: getattr(probe, name) for name in names}
    try:
        plain: dict[str, Any] = json.loads(json.dumps(arguments))
    except TypeError as error:
        raise InputError("probes", arguments, "its arguments must be numbers, words or lists of them") from error
    return plain


def describe_probe(
    probe: nn.Module,
    *,
    features: Mapping[str, Any],
    backbone: Mapping[str, Any],
    training: Mapping[str, Any],
    calibration: Mapping[str, Any] | None = None,
) -> ProbeFacts:
    """The facts of a probe; see `ProbeFacts` for the arguments."""
    class_path = f"{type(probe).__module__}.{type(probe).__qualname__}"
    found, lora = None if calibration is None else dict(calibration), lora_of(probe)
    facts = dict(features), dict(backbone), dict(training), found, None if lora is None else lora.facts()
    return ProbeFacts(class_path, init_args(probe), *facts)


_BESIDE = "beside/"  # begins the names of tensors that are no weights; those of modules have no slash


def save_probe(
    folder: Path, weights: Mapping[str, Tensor], facts: ProbeFacts, beside: Mapping[str, Tensor] | None = None
) -> None:
    """Writes a probe; an older one in the same folder stays whole until the new one is.

    Args:
        folder: Where to write; created.
        weights: `state_dict` of the probe.
        facts: See `describe_probe`.
        beside: Tensors that belong to it and are no weights, such as position means.
    """
    named = {**weights, **{f"{_BESIDE}{name}": tensor for name, tensor in (beside or {}).items()}}
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in named.items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(asdict(facts))})
    note = f"# Repeats what {WEIGHTS} carries; editing it changes nothing.\n"
    write_text(folder / FACTS, note + yaml.safe_dump(json.loads(json.dumps(asdict(facts))), sort_keys=False))


def read_facts(folder: str | Path) -> ProbeFacts:
    """The facts of a probe folder, without its weights.

    Raises:
        InputError: No such folder, or not one that `save_probe` wrote.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise InputError("probe", str(folder), f"has no {WEIGHTS}, name a folder that train.py wrote")
    try:
        with safe_open(path, framework="pt") as file:
            return ProbeFacts(**json.loads((file.metadata() or {})[METADATA_KEY]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            "probe", str(path), "is not a probe of this project, name a folder that train.py wrote"
        ) from error


def load_probe(folder: str | Path) -> tuple[nn.Module, ProbeFacts]:
    """A trained probe, in eval mode on the CPU, with the adapters it was trained with, and its facts.

    Raises:
        InputError: Not a probe folder, or its class is gone or does not take its weights.
    """
    facts = read_facts(folder)
    kind = _class_of(folder, facts.class_path)
    try:
        probe = kind(**facts.init_args)
    except TypeError as error:
        remedy = f"its class {facts.class_path} cannot be built ({error}), use the version that wrote it"
        raise InputError("probe", str(folder), remedy) from error
    if facts.lora is not None:
        attach(probe, LoraWeights(**facts.lora))
    load_weights(probe, folder)
    return probe.eval(), facts


def _class_of(folder: str | Path, path: str) -> type[nn.Module]:
    """The class of a head; what else a file might name is refused, since it would be called with arguments from there.

    Raises:
        InputError: There is no such class, or it is not one of modules.
    """
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        remedy = f"its class {path} is not here ({error}), install what it comes from"
        raise InputError("probe", str(folder), remedy) from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise InputError("probe", str(folder), f"{path} is no torch module, name a folder that train.py wrote")
    return kind


def check_features(argument: str, name: str, facts: ProbeFacts, features: Mapping[str, Any]) -> None:
    """Refuses features that a probe was not trained on.

    Args:
        argument: Who asked for the probe.
        name: What it is called there.
        facts: Facts of the probe.
        features: Settings of the features, as in `ProbeFacts`; what either side does not say is not compared.

    Raises:
        InputError: Blocks, timestep, tap, modulation, discard or debias differ.
    """
    there, here = (json.loads(json.dumps(dict(x))) for x in (facts.features, features))
    for key in ("blocks", *PROBE_SETTINGS):
        governing, values = _NEEDS.get(key, ("", ()))
        if governing and there.get(governing) not in values:
            continue
        if key in there and key in here and there[key] != here[key]:
            remedy = f"it was trained with {key} {there[key]!r} and these features have {here[key]!r}, use the same"
            raise InputError(argument, name, remedy)


def load_weights(probe: nn.Module, folder: str | Path, features: Mapping[str, Any] | None = None) -> None:
    """Copies the weights of a probe folder into a probe of the same class and widths.

    Args:
        probe: Where to.
        folder: Where from.
        features: Settings of the features that the probe is for; None to take those of the folder on trust.

    Raises:
        InputError: The folder is not a probe, or one of other features, or its tensors have other names or widths.
    """
    facts = read_facts(folder)
    if features is not None:
        check_features("probe", str(folder), facts, features)
    weights = load_file(Path(folder) / WEIGHTS)
    own = probe.state_dict()
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith(_BESIDE)}
    if own.keys() != weights.keys():
        differing = sorted(own.keys() ^ weights.keys())
        raise InputError(
            "probe", str(folder), f"has other parts ({', '.join(differing)}), use the same class and blocks"
        )
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                "probe",
                str(folder),
                f"{name} is {tuple(tensor.shape)} there and {tuple(own[name].shape)} here, use the same widths",
            )
        if not torch.isfinite(tensor).all():
            raise InputError("probe", str(folder), f"{name} holds NaN or infinity, train it again")
    probe.load_state_dict(weights)


def load_beside(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a probe folder that are no weights, by the names that `save_probe` was given.

    Raises:
        InputError: The folder is not a probe.
    """
    read_facts(folder)
    named = load_file(Path(folder) / WEIGHTS)
    return {name.removeprefix(_BESIDE): tensor for name, tensor in named.items() if name.startswith(_BESIDE)}
