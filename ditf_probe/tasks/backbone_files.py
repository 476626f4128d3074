"""Backbones of further rows, from files as in `configs/backbone/`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from ditf_probe.errors import InputError
from ditf_probe.tasks.settings import BackboneFeatures


def read_backbones(files: Sequence[str], others: Mapping[str, BackboneFeatures]) -> dict[str, BackboneFeatures]:
    """Further backbones by name of their rows: those given, then those of files.

    Args:
        files: YAML files; each row is called like its file, without the ending.
        others: What is given without a file.

    Raises:
        InputError: A file that is missing or no YAML of `BackboneFeatures`, or a name that comes twice.
    """
    found = dict(others)
    for file in files:
        name = Path(file).stem
        if name in found:
            raise InputError("backbone", file, f"another row is called {name!r}, rename the file")
        found[name] = read_features(file)
    return found


def read_features(file: str | Path) -> BackboneFeatures:
    """Reads a backbone and how features are made with it.

    Raises:
        InputError: The file is missing, or is no YAML of `BackboneFeatures`.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(BackboneFeatures)
    try:
        return BackboneFeatures(**parser.parse_path(str(file)).as_dict())
    except (ArgumentError, OSError, TypeError, UnicodeDecodeError) as error:
        remedy = f"give a file such as configs/backbone/ditf_tiny.yaml ({error})"
        raise InputError("backbone", str(file), remedy) from error
