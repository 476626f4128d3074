"""Names of the data sets that the command line knows, and how any data set is built from words."""

import inspect
from argparse import ArgumentError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from ditf_probe.errors import InputError


@dataclass(frozen=True, slots=True)
class Entry:
    """A data set with a short name.

    Attributes:
        class_path: The class, whose argument `root` is the folder.
        arguments: Arguments that are fixed.
        sign: A path below the folder that tells this layout from others, for suggestions.
    """

    class_path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sign: str | None = None


CATALOGUE: Final[dict[str, Entry]] = {
    "ade20k": Entry("ditf_probe.data.segmentation.ADE20K", {"check_masks": True}, sign="objectInfo150.txt"),
    "ap10k": Entry("ditf_probe.data.ap10k.AP10K", sign="annotations/ap10k-test-split1.json"),
    "ap10k-geoaware": Entry("ditf_probe.data.ap10k_geoaware.AP10KGeoAware", sign="PairAnnotation/test_cross_family"),
    "coco": Entry("ditf_probe.data.coco.COCOKeypoints"),
    "cub": Entry("ditf_probe.data.cub.CUB200", sign="parts/part_locs.txt"),
    "davis": Entry("ditf_probe.data.davis.DAVIS", sign="Annotations/480p"),
    "hpatches": Entry("ditf_probe.data.hpatches.HPatches", sign="v_abstract"),
    "keypoint-folder": Entry("ditf_probe.data.own.KeypointFolder", sign="keypoints.csv"),
    "mask-folder": Entry("ditf_probe.data.segmentation.MaskFolder", {"check_masks": True}),
    "pf-pascal": Entry("ditf_probe.data.pascal.PFPascal", sign="PF-dataset-PASCAL"),
    "pf-willow": Entry("ditf_probe.data.willow.PFWillow", sign="car(G)"),
    "photos": Entry("ditf_probe.data.warped.WarpedPhotos"),
    "spair": Entry("ditf_probe.data.spair.SPair71k", sign="Layout/large"),
    "tss": Entry("ditf_probe.data.tss.TSS", sign="FG3DCar"),
}
"""Name to data set; one line each."""


def dataset_builder(
    name: str, root: str | Path, settings: Sequence[str] = (), keep_going: bool = False
) -> Callable[[], Any]:
    """Finds a data set by its name and reads words of the command line; the folder is not looked at yet.

    Args:
        name: A name of the catalogue, or the dotted path of a class.
        root: Its folder.
        settings: Further arguments as `name=value`, values written as in a configuration file.
        keep_going: Collect damaged records, where the class can.

    Returns:
        A function that builds the data set.

    Raises:
        InputError: There is no such data set, or it has no such argument or needs another one.
    """
    entry = CATALOGUE.get(name) or _entry_of_class(name)
    built = _load(name, entry.class_path)
    accepted = list(inspect.signature(built).parameters)
    if "root" not in accepted:
        raise InputError("dataset", name, "has no folder to read; choose a data set with the argument `root`")
    given = dict(entry.arguments) | {"root": str(root)} | _parsed(built, settings, accepted)
    if "keep_going" in accepted:
        given.setdefault("keep_going", keep_going)
    missing = [
        parameter.name
        for parameter in inspect.signature(built).parameters.values()
        if parameter.default is parameter.empty and parameter.name not in given
    ]
    if missing:
        raise InputError("set", f"{missing[0]}=", f"{name} needs it; give it with --set {missing[0]}=VALUE")
    return partial(built, **given)


def recognise(root: Path) -> tuple[str, Path] | None:
    """The data set whose layout a folder or one of its sub-folders has, and that folder; None if there is none."""
    for folder in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
        for name, entry in CATALOGUE.items():
            if entry.sign is not None and (folder / entry.sign).exists():
                return name, folder
    return None


def _entry_of_class(name: str) -> Entry:
    if "." not in name:
        raise InputError("dataset", name, f"use one of {', '.join(CATALOGUE)}, or the dotted path of a class")
    return Entry(name)


def _load(name: str, class_path: str) -> Any:
    module, _, attribute = class_path.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        remedy = f"cannot be imported ({error}); correct it, or put its folder into PYTHONPATH"
        raise InputError("dataset", name, remedy) from error
    if not inspect.isclass(found):
        raise InputError("dataset", name, "is no class; give the dotted path of a data set class")
    return found


def _parsed(built: Any, settings: Sequence[str], accepted: Sequence[str]) -> dict[str, Any]:
    """Values of the settings, converted to the types that the class declares."""
    from jsonargparse import ArgumentParser

    given: dict[str, Any] = {}
    for word in settings:
        name, equals, _ = word.partition("=")
        if not equals or name not in accepted or name == "root":
            choices = ", ".join(parameter for parameter in accepted if parameter != "root")
            raise InputError("set", word, f"use NAME=VALUE with a name of {choices}")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(built, "set", skip=set(accepted) - {name})
        try:
            parsed = parser.parse_args([f"--set.{word}"], defaults=False)
        except ArgumentError as error:
            raise InputError("set", word, f"of another type than {name} has; correct the value") from error
        given[name] = parsed["set"][name]
    return given
