"""What a store holds: the definition of its features, the address that follows from it, and its readable manifest."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.files import ensure_writable, write_text

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the files on disk."""
CODE = 1
"""Version of what the code makes of a definition; to be raised with every change that moves a number."""

# What is made from a stream. Every other setting, also one that is yet to come, makes another store.
_MADE_LATER = frozenset({
    *("backbone", "blocks", "modulation", "discard", "massive_channels", "massive_ratio", "calibration_images"),
    *("massive_count", "channel_choice", "channel_seed", "whiten_shrinkage"),
    *("position_debias", "debias_components", "debias_images"),
})  # fmt: skip


def definition_of(
    extractor: FeatureExtractor, dtype: str, conditions: object = "null", basis: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything that decides about a stored stream, as plain JSON values.

    Blocks are not part of it: a store holds any of them, each under its own index. Neither are modulation, discard and
    debias, which are made from what is stored; nor the name of the backbone, unless nothing else tells it apart.

    Args:
        extractor: Whose streams are kept.
        dtype: Dtype in which they are kept.
        conditions: What images are conditioned on, as plain values; the text of each image is part of its entry.
        basis: What streams are reduced to, from `Basis.facts`; None keeps all channels.
    """
    facts = extractor.settings()
    backbone = {key: value for key, value in facts["backbone"].items() if key != "name"}
    if "weights_sha256" not in backbone:
        backbone["name"] = facts["backbone"]["name"]
    chosen = {key: value for key, value in facts.items() if key not in _MADE_LATER}
    definition = {"code": CODE, "backbone": backbone, **chosen, "conditions": conditions, "dtype": dtype}
    if basis is not None:
        definition["basis"] = dict(basis)
    plain: dict[str, Any] = json.loads(json.dumps(definition))
    return plain


def address_of(definition: Mapping[str, Any]) -> str:
    """SHA-256 of a definition, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()


def folder_name(definition: Mapping[str, Any]) -> str:
    """Name of the folder of a store: the class of the model, and as much of the address as tells stores apart."""
    backbone = definition["backbone"]
    name = re.sub(r"[^\w.]+", "-", str(backbone.get("class") or backbone.get("name") or "features"))
    return f"{name}-{address_of(definition)[:16]}"


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Where two definitions differ: dotted keys, each with its value there and here."""
    first, second = dict(_flat(there)), dict(_flat(here))
    keys = [key for key in dict.fromkeys((*first, *second)) if first.get(key) != second.get(key)]
    return [f"{key} ({_short(first.get(key))} there, {_short(second.get(key))} here)" for key in keys]


def claim_folder(root: str | Path, definition: Mapping[str, Any], label: str, create: bool = True) -> Path:
    """The folder of a definition, with its manifest.

    Args:
        root: Folder of any number of stores, or that of one store alone.
        definition: From `definition_of`.
        label: Name of the backbone, for the reader.
        create: Make the folder and its manifest where they are missing.

    Raises:
        InputError: The folder holds other features; a manifest is damaged; it cannot be written to; or, without
            `create`, nothing with this definition is there.
    """
    given = Path(root).expanduser()
    folder = given if (given / MANIFEST).is_file() else given / folder_name(definition)
    if (folder / MANIFEST).is_file():
        found = differences(read_manifest(folder)["definition"], definition)
        if found:
            raise InputError("store", str(folder), f"holds other features: {_listed(found)}; name another folder")
        return ensure_writable(folder, "store") if create else folder
    if not create:
        raise InputError("store", str(root), _nearest(given, definition))
    ensure_writable(folder, "store")
    manifest = {
        "format": FORMAT,
        "sha256": address_of(definition),
        "label": label,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "written_with": {name: _version(name) for name in ("ditf_probe", "torch", "diffusers")},
        "definition": definition,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
        InputError: It is missing, damaged, of another format, or its definition was changed by hand.
    """
    file = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        form, address, definition = manifest["format"], manifest["sha256"], dict(manifest["definition"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("store", str(file), "is no readable manifest; restore it, or remove its folder") from error
    if form != FORMAT:
        raise InputError("store", str(file), f"has format {form} and this version reads {FORMAT}, name another folder")
    if address_of(definition) != address:
        raise InputError("store", str(file), "was changed: its definition has another hash; restore it")
    return manifest


def store_folders(root: str | Path) -> list[Path]:
    """Folders of stores below a root, by name; the root alone where it is one.

    Raises:
        InputError: There is no such folder.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        raise InputError("store", str(root), "no such folder, name the folder of a store or of several")
    if (path / MANIFEST).is_file():
        return [path]
    return sorted(file.parent for file in path.glob(f"*/{MANIFEST}"))


def _nearest(root: Path, definition: Mapping[str, Any]) -> str:
    """Which of the stores that are there comes closest, and what differs."""
    found = []
    for folder in store_folders(root) if root.is_dir() else []:
        differing = differences(read_manifest(folder)["definition"], definition)
        found.append((len(differing), folder.name, differing))
    if not found:
        return "holds no store, fill it first (eval.py predict --config configs/extract.yaml)"
    _, name, differing = min(found)
    return f"holds no such features, the closest are {name}: {_listed(differing)}"


def _listed(found: list[str]) -> str:
    return ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
