"""What a backbone is made of, from its configuration alone: blocks, taps, widths, parameters and bytes."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditf_probe.backbones.base import Tap
from ditf_probe.backbones.block_taps import group_taps
from ditf_probe.backbones.families import FAMILIES, Family
from ditf_probe.backbones.hub import download_configs
from ditf_probe.backbones.latents import LatentSpace
from ditf_probe.backbones.loading import PACKAGED
from ditf_probe.backbones.model_configs import find_entry, home_of, model_class, read_json
from ditf_probe.backbones.single_file import is_tiny
from ditf_probe.backbones.skeletons import build_skeleton, kept_in_float32, weight_dtype
from ditf_probe.backbones.taps import containers
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.backbones.tiny_outline import tiny_taps
from ditf_probe.backbones.truncation import truncate
from ditf_probe.errors import InputError


@dataclass(frozen=True, slots=True)
class Amount:
    """Weights.

    Attributes:
        parameters: How many numbers.
        size: In bytes.
    """

    parameters: int
    size: int


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of one kind.

    Attributes:
        container: Path of their list in the transformer.
        first: Flat index of the first.
        last: Flat index of the last.
        taps: Where they can be read.
        each: The weights of one of them, on average.
    """

    container: str
    first: int
    last: int
    taps: tuple[Tap, ...]
    each: Amount


@dataclass(frozen=True, slots=True)
class Description:
    """A backbone in numbers.

    Attributes:
        name: As it was asked for.
        transformer: Its diffusers class.
        groups: Its blocks, in order of execution.
        channels: Width of the residual stream.
        stride: Pixels of the prepared image per token side; None where the folder has no autoencoder to tell.
        total: The weights of the whole transformer.
        last_block: The last block that is asked for.
        last_tap: The only tap that is asked of it, None for any.
        loaded: The weights of the transformer that are loaded for it.
        vae: The weights of the autoencoder, None where there is none.
    """

    name: str
    transformer: str
    groups: tuple[Blocks, ...]
    channels: int
    stride: int | None
    total: Amount
    last_block: int
    last_tap: Tap | None
    loaded: Amount
    vae: Amount | None


def describe_backbone(
    name_or_path: str | Path,
    *,
    last_block: int | None = None,
    last_tap: Tap | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Description:
    """Describes a backbone without loading its weights; of a hub id only the configs are downloaded.

    Args:
        name_or_path: As in `load_backbone`, but a single file must be one of `TinyDenoiser.save`, and models without
            AdaLN (UNets, timm) are not described.
        last_block: The last block that will be asked for, from 0; None is the last of the model.
        last_tap: The only tap that will be asked of that block; None counts all of it.
        dtype: In which bytes are counted.

    Raises:
        InputError: Nothing of that name, no such block, or a class without an entry.
    """
    name, path = str(name_or_path), PACKAGED.get(str(name_or_path), Path(name_or_path).expanduser())
    asked: Any = {"last_block": last_block, "last_tap": last_tap, "dtype": dtype}
    if path.is_file():
        if path.suffix != ".safetensors" or not is_tiny(path):
            remedy = "the file does not describe its model, give the folder of the transformer's config.json"
            raise InputError("backbone", name, remedy)
        return describe(name, TinyDenoiser.outline(path).transformer, LatentSpace(), **asked)
    if name.startswith("timm/"):
        raise InputError("backbone", name, "models of timm are not described, give a diffusers transformer")
    if not path.is_dir():
        if name.count("/") != 1 or not all(name.split("/")) or path.suffix == ".safetensors":
            remedy = f"give {', '.join(PACKAGED)}, a file, a diffusers folder or a hub id owner/name"
            raise InputError("backbone", name, remedy)
        path = download_configs(name)
    home = home_of(path)
    config = read_json(home / "config.json")
    find_entry(config, home)
    transformer = build_skeleton(model_class(config, home), config)
    space = None
    if home != path and (path / "vae" / "config.json").is_file():
        vae_config = read_json(path / "vae" / "config.json")
        space = LatentSpace(build_skeleton(model_class(vae_config, path / "vae"), vae_config))
    return describe(name, transformer, space, **asked)


def taps_of_blocks(name_or_path: str | Path) -> list[tuple[Tap, ...]]:
    """The taps of every block of a backbone, in order.

    Args:
        name_or_path: As in `describe_backbone`.

    Raises:
        InputError: As `describe_backbone`.
    """
    path = PACKAGED.get(str(name_or_path), Path(name_or_path).expanduser())
    if path.suffix == ".safetensors" and path.is_file() and is_tiny(path) and (found := tiny_taps(path)) is not None:
        return found
    groups = describe_backbone(name_or_path).groups
    return [group.taps for group in groups for _ in range(group.first, group.last + 1)]


def describe(
    name: str,
    transformer: nn.Module,
    space: LatentSpace | None = None,
    *,
    last_block: int | None = None,
    last_tap: Tap | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Description:
    """Describes a transformer, whose parameters may be on the device "meta"; it is truncated at the last block.

    Args:
        name: Its name.
        transformer: A diffusers model of a known class.
        space: The space in which it denoises, None where that is not known.
        last_block: As in `describe_backbone`.
        last_tap: As in `describe_backbone`.
        dtype: As in `describe_backbone`.

    Raises:
        InputError: The model has no such block.
    """
    family = FAMILIES[type(transformer).__name__]
    groups, total = _groups(transformer, family, dtype), _amount(transformer, dtype)
    last = groups[-1].last if last_block is None else last_block
    if last_block is not None or last_tap is not None:
        truncate(transformer, family, last, last_tap)
    return Description(
        name=name,
        transformer=type(transformer).__name__,
        groups=groups,
        channels=family.width(transformer.config),
        stride=None if space is None else space.stride * family.patch(transformer.config, space.channels),
        total=total,
        last_block=last,
        last_tap=last_tap,
        loaded=_amount(transformer, dtype),
        vae=None if space is None or space.vae is None else _amount(space.vae, dtype),
    )


def _groups(transformer: nn.Module, family: Family, dtype: torch.dtype) -> tuple[Blocks, ...]:
    found, first = [], 0
    for group, blocks in containers(transformer, family):
        if len(blocks):
            whole = _amount(blocks, dtype, kept_in_float32(transformer))
            each = Amount(whole.parameters // len(blocks), whole.size // len(blocks))
            found.append(Blocks(group.container, first, first + len(blocks) - 1, group_taps(group), each))
            first += len(blocks)
    return tuple(found)


def _amount(module: nn.Module, dtype: torch.dtype, precise: Collection[str] | None = None) -> Amount:
    kept = kept_in_float32(module) if precise is None else precise
    counts = [(weight.numel(), weight_dtype(name, kept, dtype)) for name, weight in module.named_parameters()]
    return Amount(sum(count for count, _ in counts), sum(count * kind.itemsize for count, kind in counts))
