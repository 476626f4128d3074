"""Trained heads of dense prediction on disk, one folder per row, in the form of probes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditf_probe.errors import InputError
from ditf_probe.probes.folder import describe_probe, load_probe, save_probe
from ditf_probe.probes.segmentation import SegmentationHead


@dataclass(frozen=True)
class HeadFacts:
    """The features that a head reads.

    Attributes:
        recipe: What must be equal wherever the head is used: the row, its blocks, timestep and tap.
        settings: All settings of the features, image size among them.
        backbone: `Backbone.settings()` of their backbone.
    """

    recipe: dict[str, Any]
    settings: dict[str, Any]
    backbone: dict[str, Any]


def save_head(folder: Path, head: SegmentationHead, facts: HeadFacts, training: Mapping[str, Any]) -> None:
    """Writes a head; an older one in the same folder stays whole until the new one is.

    Args:
        folder: Where to write; created.
        head: The head.
        facts: The features that it reads.
        training: How far it was trained, for the reader.
    """
    features = {"recipe": facts.recipe, "settings": facts.settings}
    described = describe_probe(head, features=features, backbone=facts.backbone, training=training)
    save_probe(folder, head.state_dict(), described)


def load_heads(folder: Path, rows: Mapping[str, HeadFacts], num_classes: int) -> dict[str, SegmentationHead]:
    """The heads of some rows.

    Args:
        folder: Folder of heads, one folder per row.
        rows: Row name to the features that it has here.
        num_classes: Classes of the data.

    Raises:
        InputError: A head is missing, has other classes, or was trained on other features or another backbone.
    """
    heads = {}
    for name, facts in rows.items():
        if not (folder / name).is_dir():
            raise InputError("heads", str(folder / name), "no such head, run train.py fit with this row first")
        head, there = load_probe(folder / name)
        if not isinstance(head, SegmentationHead):
            raise InputError("heads", str(folder / name), "is no segmentation head, name the folder `heads` of a run")
        if head.num_classes != num_classes:
            remedy = f"it knows {head.num_classes} classes and the data have {num_classes}, train it again"
            raise InputError("heads", str(folder / name), remedy)
        differing = _differing(there.features.get("recipe", {}), facts.recipe)
        differing += [key for key in ("class", "weights_sha256") if there.backbone.get(key) != facts.backbone.get(key)]
        if differing:
            remedy = f"was trained on other features ({', '.join(differing)} differ), train it again"
            raise InputError("heads", str(folder / name), remedy)
        heads[name] = head
    return heads


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
