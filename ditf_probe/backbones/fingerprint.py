"""What a result names its backbone by: the SHA-256 of its weights and its configuration as plain values."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditf_probe.backbones.known_hashes import file_sha256

__all__ = [
    "file_sha256",
    "files_sha256",
    "initialised_facts",
    "initialised_sha256",
    "known_sha256",
    "module_sha256",
    "plain",
]


def files_sha256(paths: Iterable[Path], root: Path) -> str:
    """One SHA-256 for several files: of the lines "hash  path", as `sha256sum` prints them in `root`.

    A file outside of `root` counts by its name alone.
    """
    named = [(path, path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name) for path in paths]
    lines = (f"{file_sha256(path)}  {name}\n" for path, name in sorted(named))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def module_sha256(module: nn.Module) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def known_sha256(known: str | Callable[[], str] | None, module: nn.Module) -> str:
    """SHA-256 of weights: the one that is known or can be computed, otherwise of the tensors in memory."""
    if known is None:
        return module_sha256(module)
    return known if isinstance(known, str) else known()


def initialised_facts(model_class: str, config: Any, seed: int, labels: int | None) -> dict[str, Any]:
    """What weights follow from that were initialised anew, as JSON values.

    Args:
        model_class: Name of the diffusers class.
        config: Its config.
        seed: Of the initialisation.
        labels: How many labels are embedded beside the transformer; None for none.
    """
    return {"class": model_class, "config": plain(config), "seed": seed, "labels": labels}


def initialised_sha256(facts: Mapping[str, Any], trained: nn.Module) -> str:
    """SHA-256 for weights that were initialised anew, of which not all need to be in memory.

    Args:
        facts: What the weights follow from, as JSON values: class, configuration and seed.
        trained: Modules beside them that were not initialised anew.
    """
    text = f"{json.dumps(facts, sort_keys=True)} {module_sha256(trained)}"
    return hashlib.sha256(text.encode()).hexdigest()


def plain(config: Any) -> dict[str, Any]:
    """A diffusers config as JSON values, without its private keys (versions and paths)."""
    public = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    values: dict[str, Any] = json.loads(json.dumps(public, default=str))
    return values
