"""A transformer that is larger than a card: each rank holds its rows of every weight, a block is whole while it runs.

This is FSDP2 of torch, `fully_shard`, block by block. Every rank must make the same number of passes, each with images
of its own: the ranks of a mesh bring the rows of a block together before it runs.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.checkpoints import Checkpoint
from ditf_probe.backbones.diffusion import DiffusionBackbone
from ditf_probe.backbones.families import Family
from ditf_probe.backbones.hub import download
from ditf_probe.backbones.loading import PACKAGED, load_backbone
from ditf_probe.backbones.model_configs import home_of
from ditf_probe.backbones.skeletons import read_weights
from ditf_probe.backbones.taps import containers
from ditf_probe.backbones.truncation import NotLoaded
from ditf_probe.errors import InputError

_ARGUMENT = "shard_model"


def load_sharded(name_or_path: str | Path, mesh: DeviceMesh, *, device: torch.device, **options: Any) -> Backbone:
    """Loads a backbone whose transformer is divided over the ranks of a mesh; autoencoder and class table are whole.

    Each rank reads its own rows of every weight from the files, so that the whole is nowhere, not even in CPU memory.

    Args:
        name_or_path: A diffusers folder or a hub id, as in `load_backbone`.
        mesh: The ranks, in one dimension.
        device: That of this rank.
        **options: Of `load_backbone`: dtype, last_block, last_tap and so on, without quantization and offload.

    Raises:
        InputError: As in `load_backbone`; a file, or weights that are quantised or offloaded; or a torch without what
            is needed.
    """
    path = Path(name_or_path).expanduser()
    for option in ("quantization", "offload"):
        if options.get(option) not in (None, "none"):
            raise InputError(_ARGUMENT, True, f"is for weights as they are, leave {option} out")
    if str(name_or_path) in PACKAGED or path.is_file() or str(name_or_path).startswith("timm/"):
        raise InputError(_ARGUMENT, True, f"is for diffusers folders and hub ids, not for {name_or_path}")
    if not hasattr(FSDPModule, "reset_iter_state"):
        raise InputError(_ARGUMENT, True, f"needs a newer torch than {torch.__version__}: passes end early")
    try:
        backbone = load_backbone(name_or_path, device=device, loaded="autoencoder", **options)
    except InputError as error:
        if error.argument != "loaded":
            raise
        raise InputError(_ARGUMENT, True, f"those of {name_or_path} are quantised, leave it out") from None
    if not isinstance(backbone, DiffusionBackbone):
        raise InputError(_ARGUMENT, True, f"is for transformers, which {backbone.name} is not")
    checkpoint = Checkpoint.find(home_of(path if path.is_dir() else download(str(name_or_path))))
    shard_transformer(backbone.transformer, backbone.family, mesh)
    fill_shards(backbone.transformer, checkpoint, mesh, device)
    return backbone


def shard_transformer(transformer: nn.Module, family: Family, mesh: DeviceMesh) -> None:
    """Divides a transformer over the ranks of a mesh, in place: each block, and all that is around the blocks.

    Args:
        transformer: The model; its parameters may be on the device "meta".
        family: Its entry.
        mesh: The ranks, in one dimension.
    """
    for _, blocks in containers(transformer, family):
        for block in blocks:
            if not isinstance(block, NotLoaded):
                fully_shard(block, mesh=mesh)
    fully_shard(transformer, mesh=mesh)


def fill_shards(transformer: nn.Module, checkpoint: Checkpoint, mesh: DeviceMesh, device: torch.device) -> None:
    """Gives a divided transformer on the device "meta" its weights, to each rank its own rows.

    Args:
        transformer: From `shard_transformer`, its weights of the dtypes that they are to have.
        checkpoint: Where they are.
        mesh: As it was divided.
        device: That of this rank.

    Raises:
        InputError: A tensor is missing, of another shape, or cannot be read.
    """
    places = transformer.state_dict()
    values: dict[str, Tensor] = {}
    for name, tensor in read_weights(places, checkpoint, torch.device("cpu")):  # mapped, so that rows alone are read
        place = places[name]
        if isinstance(place, DTensor):
            rows = _rows(tensor, mesh).to(device, place.dtype, copy=True).contiguous()
            form: dict[str, Any] = {"shape": place.shape, "stride": place.stride(), "run_check": False}
            values[name] = DTensor.from_local(rows, mesh, place.placements, **form)
        else:
            values[name] = tensor.to(device, place.dtype, copy=True)
    transformer.load_state_dict(values, assign=True)
    transformer.requires_grad_(False)
    for buffer in transformer.buffers():
        buffer.data = buffer.data.to(device)  # those that no file holds


def _rows(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """The rows of this rank: parts of equal length, of which the last ones may be short or empty."""
    length = -(-len(tensor) // mesh.size())
    return tensor[mesh.get_local_rank() * length :][:length]
