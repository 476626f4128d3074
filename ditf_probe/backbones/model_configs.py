"""The `config.json` of a diffusers model: which class it names, and that class."""

import json
from pathlib import Path
from typing import Any

from ditf_probe.backbones.checks import no_entry
from ditf_probe.backbones.families import FAMILIES, Family
from ditf_probe.errors import InputError

# What the oldest repositories call a Transformer2DModel, by the kind of its norm.
_LEGACY = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError("backbone", str(file), "is no readable JSON file") from error
    if not isinstance(values, dict):
        raise InputError("backbone", str(file), "holds no JSON object")
    return values


def named_class(config: dict[str, Any]) -> str:
    """The diffusers class that a config names, by its present name."""
    name = str(config.get("_class_name"))
    return _LEGACY.get(str(config.get("norm_type")), name) if name == "Transformer2DModel" else name


def find_entry(config: dict[str, Any], source: Path) -> Family:
    """The entry of the class that a config names.

    Args:
        config: The config.
        source: Where it was read, for the error.

    Raises:
        InputError: There is none.
    """
    name = named_class(config)
    if name not in FAMILIES:
        raise no_entry("backbone", f"{source}: {name}", name)
    return FAMILIES[name]


def model_class(config: dict[str, Any], source: Path) -> Any:
    """The diffusers class of a config.

    Args:
        config: The config.
        source: Where it was read, for the error.

    Raises:
        InputError: diffusers has no such model class.
    """
    name = named_class(config)
    import diffusers  # slow to import

    found: Any = getattr(diffusers, name, None)
    if not hasattr(found, "from_pretrained") or not hasattr(found, "from_config"):
        raise InputError("backbone", f"{source}: {name}", f"no model class of diffusers {diffusers.__version__}")
    return found


def home_of(folder: Path) -> Path:
    """Where the transformer or UNet of a pipeline folder, or of a folder of its own, is described.

    Raises:
        InputError: It is neither.
    """
    for home in (folder / "transformer", folder / "unet", folder):
        if (home / "config.json").is_file():
            return home
    raise InputError("backbone", str(folder), "the folder needs transformer/config.json, unet/ or config.json")
