"""A diffusers model without its weights, and filling it from a checkpoint straight onto the device."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ditf_probe.backbones.base import Tap
from ditf_probe.backbones.checkpoints import Checkpoint
from ditf_probe.backbones.model_configs import find_entry, model_class, read_json
from ditf_probe.backbones.truncation import truncate
from ditf_probe.errors import InputError

# How autoencoders named the layers of their attention before diffusers 0.13.
_FORMER = ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn."))


def load_model(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device | None = None,
    last_block: int | None = None,
    last_tap: Tap | None = None,
) -> nn.Module:
    """Loads one diffusers model straight onto a device, tensor by tensor.

    Args:
        folder: With `config.json` and the weights, as `save_pretrained` writes them.
        dtype: Of floating-point weights, except those that the class keeps in float32.
        device: Where to put it; the CPU by default.
        last_block: The last block to load, for a transformer of a known class; None loads everything.
        last_tap: The only tap of that block that will be asked for; None loads all of the block.

    Raises:
        InputError: Unknown class, missing or damaged files, or missing tensors.
    """
    model = _skeleton_of(folder, last_block, last_tap)
    fill(model, Checkpoint.find(folder), device or torch.device("cpu"), dtype)
    return model


def outline_model(
    folder: Path, dtype: torch.dtype, last_block: int | None = None, last_tap: Tap | None = None
) -> nn.Module:
    """What `load_model` makes, without the weights: they have their dtypes and shapes, on the device "meta".

    Args:
        folder: As in `load_model`, as are the other arguments.
        dtype: Of floating-point weights.
        last_block: The last block.
        last_tap: Its only tap.

    Raises:
        InputError: Unknown class, missing files, or missing tensors. Tensors are not read.
    """
    model = _skeleton_of(folder, last_block, last_tap)
    checkpoint, precise = Checkpoint.find(folder), kept_in_float32(model)
    values = {}
    for name, place in model.state_dict().items():
        _stored_name(name, checkpoint)
        values[name] = place.to("meta", weight_dtype(name, precise, dtype) if place.is_floating_point() else None)
    model.load_state_dict(values, assign=True)
    return model


def _skeleton_of(folder: Path, last_block: int | None, last_tap: Tap | None) -> nn.Module:
    config = read_json(folder / "config.json")
    model = build_skeleton(model_class(config, folder), config)
    if last_block is not None:
        truncate(model, find_entry(config, folder), last_block, last_tap)
    return model


def build_skeleton(cls: Any, config: dict[str, Any]) -> nn.Module:
    """Builds a model whose parameters take no memory, on the device "meta".

    Everything else is real: position tables and other buffers are computed as always, on the CPU.

    Args:
        cls: A diffusers model class.
        config: Its config.

    Raises:
        InputError: The class refuses the config.
    """
    from diffusers.models.modeling_utils import no_init_weights  # slow to import

    try:
        with parameters_on_meta(), no_init_weights(), torch.random.fork_rng(devices=[]):
            model: nn.Module = cls.from_config(config)
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError("backbone", cls.__name__, f"its config.json does not fit the class ({reason})") from error
    return model.requires_grad_(False).eval()


def is_outline(model: nn.Module) -> bool:
    """Whether a model has no weights, but only their dtypes and shapes."""
    return any(weight.is_meta for weight in model.parameters())


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that are built in the body have their parameters on the device "meta".

    Each is moved there at the moment a module gets it, before it is initialised.
    """

    def leave(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(leave)  # type: ignore[arg-type]  # typed as without result
    try:
        yield
    finally:
        handle.remove()


def fill(model: nn.Module, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
    """Gives a skeleton its weights; only those that it has places for are read.

    Args:
        model: The skeleton, changed in place.
        checkpoint: Where the weights are.
        device: Where to put them, and the buffers.
        dtype: Of floating-point weights, except those that the class keeps in float32.

    Raises:
        InputError: A tensor is missing, of another shape, or cannot be read.
    """
    precise = kept_in_float32(model)
    values: dict[str, Tensor] = {}
    for name, tensor in read_weights(model.state_dict(), checkpoint, device):
        if tensor.is_floating_point():
            tensor = tensor.to(weight_dtype(name, precise, dtype))
        if tensor.device.type == "cpu":
            # A mapped tensor lies in memory as it does in the file, and matrix products round by its alignment.
            tensor = tensor.clone()
        values[name] = tensor
    model.load_state_dict(values, assign=True)
    model.requires_grad_(False)
    nn.Module.to(model, device)  # the buffers that no file holds


def read_weights(
    places: Mapping[str, Tensor], checkpoint: Checkpoint, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Reads the weights of a model one at a time, in the order of the files.

    Args:
        places: Names and shapes of what is read.
        checkpoint: Where the weights are.
        device: As in `Checkpoint.read`.

    Yields:
        Name in the model and tensor.

    Raises:
        InputError: A tensor is missing, of another shape, or cannot be read.
    """
    sources = {_stored_name(name, checkpoint): name for name in places}
    for stored, tensor in checkpoint.read(sources, device):
        _check_shape(sources[stored], tensor, places[sources[stored]], checkpoint)
        yield sources[stored], tensor


def kept_in_float32(model: nn.Module) -> Collection[str]:
    """Names of the modules and weights that a diffusers class keeps in float32."""
    names: Collection[str] = getattr(model, "_keep_in_fp32_modules", None) or ()
    return names


def weight_dtype(name: str, precise: Collection[str], dtype: torch.dtype) -> torch.dtype:
    """The dtype of a floating-point weight.

    Args:
        name: Its path in the model.
        precise: As `kept_in_float32` gives it.
        dtype: The one that was asked for.
    """
    return dtype if set(precise).isdisjoint(name.split(".")) else torch.float32


def _stored_name(name: str, checkpoint: Checkpoint) -> str:
    """The name that a tensor has in the checkpoint."""
    if name in checkpoint.names:
        return name
    former = name
    for now, then in _FORMER:
        former = former.replace(now, then)
    if former in checkpoint.names:
        return former
    found = f"{checkpoint.files[0].parent}: no tensor {name}"
    raise InputError("backbone", found, "the weights are incomplete, copy or download them again")


def _check_shape(name: str, tensor: Tensor, place: Tensor, checkpoint: Checkpoint) -> None:
    if tensor.shape != place.shape:
        found = f"{checkpoint.files[0].parent}: {name} {tuple(tensor.shape)}"
        raise InputError("backbone", found, f"config.json says {tuple(place.shape)}, both must be of one model")
