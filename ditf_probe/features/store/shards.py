"""One shard: the tapped blocks of a batch of images in a safetensors file that describes itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditf_probe.backbones.base import Norm, TappedBlock
from ditf_probe.errors import InputError
from ditf_probe.features.store.writing import checksum, write_safetensors
from ditf_probe.files import replacing

SUFFIX = ".safetensors"
_KEY = "ditf_probe_features"
_PARTS = ("hidden_states", "shift", "scale", "gate")


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What the header of a shard says.

    Attributes:
        address: Hash of the definition that its features have.
        keys: Its entries, in the order of their rows.
        sizes: (height, width) of the original image of each entry.
        blocks: Block index to norm and token grid.
        checksums: Tensor name to `writing.checksum`.
    """

    address: str
    keys: list[str]
    sizes: list[tuple[int, int]]
    blocks: dict[int, tuple[Norm, tuple[int, int]]]
    checksums: dict[str, str]


class Shard:
    """A shard in mapped memory: its tensors are views, read from disk as far as they are looked at.

    Args:
        path: Its file.

    Raises:
        InputError: It cannot be opened, is cut short, or is no shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blocks: dict[int, TappedBlock] = {}
        try:
            self._file = _mapped(path)
            self.facts = _parse((self._file.metadata() or {})[_KEY])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                "store", str(path), "is cut short or no shard, remove it with ditf-probe store gc"
            ) from error

    def entry(self, row: int, blocks: Sequence[int]) -> dict[int, TappedBlock]:
        """Some blocks of one image, with a batch axis of one; the file is mapped privately, so a write stays here."""
        return {index: self.block(index).map(partial(_row, row=row)) for index in blocks}

    def block(self, index: int) -> TappedBlock:
        """One block of all its images."""
        if index in self._blocks:
            return self._blocks[index]
        norm, grid = self.facts.blocks[index]
        parts = {name: self.tensor(f"{index}.{name}") for name in _PARTS if f"{index}.{name}" in self.facts.checksums}
        shift, scale, gate = (parts.get(name) for name in _PARTS[1:])
        self._blocks[index] = TappedBlock(parts[_PARTS[0]], shift, scale, gate, norm, grid)
        return self._blocks[index]

    def tensor(self, name: str) -> Tensor:
        """One tensor of the file."""
        try:
            found: Tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise InputError("store", str(self.path), f"lacks {name}, remove it with ditf-probe store gc") from error
        return found


def write_shard(
    path: Path,
    address: str,
    keys: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    tapped: Mapping[int, TappedBlock],
) -> None:
    """Writes a shard whole or not at all.

    Args:
        path: Its file, which no other writer uses.
        address: Hash of the definition.
        keys: Its entries.
        sizes: (height, width) of their original images.
        tapped: Block index to tensors in CPU memory, one row per entry.

    Raises:
        InputError: The disk is full, or the folder cannot be written to.
    """
    tensors = {
        f"{index}.{name}": part.contiguous()
        for index, block in tapped.items()
        for name in _PARTS
        if (part := getattr(block, name)) is not None
    }
    facts = {
        "address": address,
        "keys": list(keys),
        "sizes": [list(size) for size in sizes],
        "blocks": {str(i): [b.norm.kind, b.norm.eps, list(b.grid)] for i, b in tapped.items()},
    }
    try:
        with replacing(path) as temporary:
            write_safetensors(temporary, tensors, lambda sums: {_KEY: json.dumps({**facts, "checksums": dict(sums)})})
    except OSError as error:
        reason = error.strerror or type(error).__name__
        remedy = f"cannot be written to ({reason}), free some space or name another folder"
        raise InputError("store", str(path.parent), remedy) from error


def problem_of(path: Path, address: str) -> str | None:
    """What is wrong with a shard, all of its bytes read; None where nothing is."""
    try:
        shard = Shard(path)
        if shard.facts.address != address:
            return "holds features of another definition"
        for name, expected in shard.facts.checksums.items():
            tensor = shard.tensor(name)
            if len(tensor) != len(shard.facts.keys):
                return f"{name} has {len(tensor)} rows for {len(shard.facts.keys)} entries"
            if checksum(tensor) != expected:
                return f"{name} has another checksum than when it was written"
            if not is_finite(tensor):
                return f"{name} has numbers that are NaN or infinite"
    except InputError:
        return "is cut short or no shard"
    return None


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; of a tensor without numbers, true. One fast pass."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in torch.aminmax(tensor))


def _mapped(path: Path) -> Any:
    return safe_open(path, framework="pt")


def _row(values: Tensor, row: int) -> Tensor:
    return values[row : row + 1]


def _parse(text: str) -> ShardFacts:
    header: dict[str, Any] = json.loads(text)
    blocks = {
        int(index): (Norm(kind, float(eps)), (int(grid[0]), int(grid[1])))
        for index, (kind, eps, grid) in header["blocks"].items()
    }
    sizes = [(int(height), int(width)) for height, width in header["sizes"]]
    return ShardFacts(header["address"], list(header["keys"]), sizes, blocks, dict(header["checksums"]))
