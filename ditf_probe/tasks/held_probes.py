"""Trained probes that a comparison holds: read from their folders, and checked against the backbone they come to."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.kept_calibration import restore
from ditf_probe.probes import PROBE_SETTINGS, ProbeFacts, check_num_timesteps, load_probe
from ditf_probe.probes.folder import load_beside
from ditf_probe.tasks.heads import check_copies
from ditf_probe.tasks.models import make_extractor
from ditf_probe.tasks.rows import Row
from ditf_probe.tasks.settings import BackboneFeatures


@dataclass(frozen=True)
class HeldProbe:
    """A trained probe and the features that it was trained on.

    Attributes:
        name: Name of its row.
        module: The probe, in eval mode.
        features: Settings of its features, its blocks among them.
        facts: What its folder says, or would say.
        beside: Tensors of its folder that are no weights: what its calibration found.
    """

    name: str
    module: nn.Module
    features: BackboneFeatures
    facts: ProbeFacts
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def row(self) -> Row:
        """Its row in the table."""
        return Row.of(self.name, "probe", self.features)


def held_probes(folders: Mapping[str, Path], features: BackboneFeatures) -> list[HeldProbe]:
    """Loads probes by row name; their blocks, timestep, tap and modulation replace those of the evaluation.

    Raises:
        InputError: A folder is not a probe, or copies of one head were not trained alike.
    """
    held = []
    for name, folder in folders.items():
        module, facts = load_probe(folder)
        held.append(HeldProbe(name, module, trained_on(facts, features), facts, load_beside(folder)))
    check_copies({probe.name: probe.facts for probe in held})
    return held


def trained_on(facts: ProbeFacts, features: BackboneFeatures) -> BackboneFeatures:
    """The features of an evaluation with the blocks, timestep, tap and modulation that a probe was trained on."""
    kept = {key: facts.features[key] for key in PROBE_SETTINGS if key in facts.features}
    return replace(features, blocks=list(facts.features["blocks"]), **kept)


def check_backbone(name: str, facts: ProbeFacts, backbone: Backbone) -> None:
    """Refuses a probe that was trained on another backbone, or whose folder does not fit together.

    Raises:
        InputError: Blocks, width, tap, number of timesteps or the weights differ.
    """
    here, there = backbone.settings(), facts.backbone
    blocks, width = facts.features["blocks"], facts.init_args.get("channels")
    own = facts.init_args.get("blocks", blocks)
    if not set(own) <= set(blocks):
        remedy = f"its head takes blocks {own} and its features are those of blocks {blocks}, train it again"
        raise InputError("probe_folders", name, remedy)
    for block in blocks:
        if not 0 <= block < backbone.num_blocks:
            remedy = f"it takes block {block} and {backbone.name} has 0 to {backbone.num_blocks - 1}"
            raise InputError("probe_folders", name, f"{remedy}, use the backbone it was trained on")
        if width not in (None, backbone.channels_at(block)):  # a head of another project may not say it
            remedy = f"it takes {width} channels and {backbone.name} has {backbone.channels_at(block)}"
            raise InputError("probe_folders", name, f"{remedy}, use the backbone it was trained on")
    differing = [key for key in ("class", "weights_sha256") if here.get(key) != there.get(key)]
    if differing:
        remedy = (
            f"it was trained on another backbone ({there.get('name')}: {', '.join(differing)} differ), train it again"
        )
        raise InputError("probe_folders", name, remedy)
    _check_recipe(name, facts, backbone)


def _check_recipe(name: str, facts: ProbeFacts, backbone: Backbone) -> None:
    """Refuses features of a probe that this backbone, or the probe itself, cannot have."""
    features = facts.features
    check_num_timesteps("probe_folders", name, facts.init_args.get("num_timesteps"), features.get("timestep", 0))
    tap = features.get("tap", "mlp")
    for block in features["blocks"]:
        if tap not in backbone.taps(block):
            known = ", ".join(backbone.taps(block))
            remedy = f"it takes the tap {tap} of block {block}, which in {backbone.name} has {known}"
            raise InputError("probe_folders", name, f"{remedy}, use the backbone it was trained on")
    if features.get("modulation") == "adaln" and not backbone.has_adaln:
        remedy = f"it takes AdaLN features, which {backbone.name} has not, use the backbone it was trained on"
        raise InputError("probe_folders", name, remedy)


def calibrated_extractor(backbone: Backbone, probe: HeldProbe) -> FeatureExtractor | None:
    """What makes features with the calibration of a training; None where that had none."""
    if probe.facts.calibration is None:
        return None
    extractor = make_extractor(backbone, probe.features, probe.features.blocks)
    restore(extractor, probe.facts.calibration, probe.beside, "probe_folders")
    return extractor
