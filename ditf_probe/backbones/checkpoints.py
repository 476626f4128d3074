"""The weights of one model on disk, read tensor by tensor: safetensors or, failing that, `.bin`; one file or shards."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from torch import Tensor

from ditf_probe.backbones.model_configs import read_json
from ditf_probe.errors import InputError

_STEM = "diffusion_pytorch_model"
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Names of tensors and the files that hold them.

    Attributes:
        files: In order.
        names: Each tensor's file.
    """

    files: tuple[Path, ...]
    names: Mapping[str, Path]

    @classmethod
    def find(cls, folder: Path) -> "Checkpoint":
        """The weights of a model folder of diffusers; safetensors before `.bin`, shards before one file.

        Raises:
            InputError: There are none, a shard is missing, or a file cannot be read.
        """
        for suffix in (".safetensors", ".bin"):
            index, whole = folder / f"{_STEM}{suffix}.index.json", folder / f"{_STEM}{suffix}"
            if index.is_file():
                return cls._of_shards(index)
            if whole.is_file():
                with _opened(whole) as source:
                    return cls((whole,), dict.fromkeys(source.keys(), whole))
        remedy = f"the folder needs {_STEM}.safetensors, or {_STEM}.safetensors.index.json and its shards"
        raise InputError("backbone", str(folder), remedy)

    @classmethod
    def _of_shards(cls, index: Path) -> "Checkpoint":
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise InputError("backbone", str(index), "has no weight_map, copy or download it again")
        names = {name: index.parent / Path(shard).name for name, shard in shards.items()}
        files = tuple(sorted(set(names.values())))
        for file in files:
            if not file.is_file():
                raise InputError("backbone", str(file), f"{index.name} names this shard, copy or download it")
        return cls(files, names)

    def read(self, names: Collection[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Reads some of the tensors, one at a time; the files that hold none of them stay closed.

        Args:
            names: Which.
            device: Where to put them. On the CPU they may stay mapped to the file, aligned as they are there.

        Yields:
            Name and tensor, file by file.

        Raises:
            InputError: A file is damaged, or lacks a tensor that the index promises.
        """
        for file in self.files:
            wanted = [name for name in names if self.names[name] == file]
            if wanted:
                with _opened(file, device) as source:
                    for name in wanted:
                        yield name, source.get_tensor(name)


class _Pickled:
    """A `.bin` file with the interface of `safe_open`."""

    def __init__(self, file: Path, device: torch.device) -> None:
        self.device = device
        self.tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))

    def keys(self) -> list[str]:
        return list(self.tensors)

    def get_tensor(self, name: str) -> Tensor:
        return self.tensors[name].to(self.device)


@contextmanager
def _opened(file: Path, device: torch.device = _CPU) -> Iterator[Any]:
    """An open weights file; whatever a damaged one makes of safetensors and torch becomes one line."""
    try:
        if file.suffix == ".bin":
            yield _Pickled(file, device)
        else:
            with safe_open(file, framework="pt", device=str(device)) as source:
                yield source
    except InputError:
        raise
    except torch.OutOfMemoryError as error:
        raise InputError("device", str(device), "the weights do not fit, see last_block, dtype and offload") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError("backbone", str(file), f"cannot be read, copy or download it again ({reason})") from error
