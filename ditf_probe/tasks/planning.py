"""From the rows that were asked for to matchers: which models run, at which blocks, and who shares a pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.checks import check_blocks
from ditf_probe.data.pairs import PairDataset
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.matching import Rounding
from ditf_probe.probes import ProbeFacts, load_probe
from ditf_probe.tasks.controls import ColourPatches
from ditf_probe.tasks.matchers import Matcher
from ditf_probe.tasks.rows import Row, Source
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.streams import Stream

# What a probe keeps from its training. Sizes, prompts, noise draws and their seed are those of the evaluation.
PROBE_SETTINGS = (
    *("timestep", "tap", "modulation", "discard", "massive_channels", "massive_ratio", "modulation_condition"),
    *("position_debias", "debias_components", "debias_images"),
)


@dataclass(frozen=True)
class HeldProbe:
    """A trained probe and the features that it was trained on.

    Attributes:
        name: Name of its row.
        module: The probe, in eval mode.
        features: Settings of its features, its blocks among them.
        facts: What its folder says, or would say.
    """

    name: str
    module: nn.Module
    features: BackboneFeatures
    facts: ProbeFacts

    @property
    def row(self) -> Row:
        """Its row in the table."""
        settings = self.features
        return Row(
            self.name,
            "probe",
            modulation=settings.modulation,
            discard=settings.discard,
            position_debias=settings.position_debias,
        )


def held_probes(folders: Mapping[str, Path], features: BackboneFeatures) -> list[HeldProbe]:
    """Loads probes by row name; their blocks, timestep, tap and modulation replace those of the evaluation.

    Raises:
        InputError: A folder is not a probe.
    """
    held = []
    for name, folder in folders.items():
        module, facts = load_probe(folder)
        kept = {key: facts.features[key] for key in PROBE_SETTINGS if key in facts.features}
        settings = replace(features, blocks=list(facts.features["blocks"]), **kept)
        held.append(HeldProbe(name, module, settings, facts))
    return held


def check_backbone(name: str, facts: ProbeFacts, backbone: Backbone) -> None:
    """Refuses a probe that was trained on another backbone.

    Raises:
        InputError: Its width or the weights differ.
    """
    here, there = backbone.settings(), facts.backbone
    width = facts.init_args.get("channels")
    for block in facts.features["blocks"]:
        found = backbone.channels_at(block) if block < backbone.num_blocks else 0
        if width != found:
            remedy = f"it takes {width} channels and {backbone.name} has {found}, use the backbone it was trained on"
            raise InputError("probe_folders", name, remedy)
    differing = [key for key in ("class", "weights_sha256") if here.get(key) != there.get(key)]
    if differing:
        remedy = (
            f"it was trained on another backbone ({there.get('name')}: {', '.join(differing)} differ), train it again"
        )
        raise InputError("probe_folders", name, remedy)


def plan(
    backbone: Backbone,
    features: BackboneFeatures,
    rows: Sequence[Row],
    probes: Sequence[HeldProbe] = (),
    rounding: Rounding = "subpixel",
) -> list[Matcher]:
    """A matcher per row; one pass of the backbone serves all rows with one timestep and tap.

    Args:
        backbone: The frozen backbone.
        features: Settings of the zero-shot rows; one block.
        rows: Zero-shot rows and controls.
        probes: Trained probes; they come after the zero-shot rows, before the first control.
        rounding: As in `match_keypoints`.

    Raises:
        InputError: A setting that the backbone does not have, or several blocks for the zero-shot rows.
    """
    (block,) = _zero_shot_block(backbone, features)
    streams = _backbone_streams(backbone, features, [probe.features for probe in probes])
    models = _Models(backbone, features, block, streams)
    found = {source: models.stream(source) for source in dict.fromkeys(row.source for row in rows)}
    learnt = [
        Matcher(
            probe.row,
            streams[_pass_of(probe.features)],
            check_blocks(probe.features.blocks, backbone.num_blocks),
            rounding,
            probe.module.to(backbone.device),
        )
        for probe in probes
    ]
    given = [Matcher(row, found[row.source], [0 if row.source == "rgb" else block], rounding) for row in rows]
    first_control = next((i for i, row in enumerate(rows) if row.kind == "control"), len(rows))
    return [*given[:first_control], *learnt, *given[first_control:]]


@dataclass(frozen=True)
class _Models:
    """Which model stands behind the source of a row."""

    backbone: Backbone
    features: BackboneFeatures
    block: int
    streams: Mapping[tuple[object, ...], Stream]

    def stream(self, source: Source) -> Stream | None:
        if source == "backbone":
            return self.streams[_pass_of(self.features)]
        if source == "untrained":
            return _stream(self.backbone.untrained(), self.features, [self.block])
        return _colour_stream(self.backbone.stride_at(self.block), self.features) if source == "rgb" else None


def calibrate(matchers: Sequence[Matcher], dataset: PairDataset | None) -> None:
    """Calibrates every stream whose rows need it.

    Raises:
        InputError: One does, and there is no data set to calibrate on.
    """
    needy = [matcher.stream for matcher in matchers if matcher.stream is not None and matcher.row.needs_calibration]
    for stream in dict.fromkeys(needy):
        stream.calibrate(dataset)


def _zero_shot_block(backbone: Backbone, features: BackboneFeatures) -> list[int]:
    blocks = check_blocks(features.blocks, backbone.num_blocks)
    if len(blocks) != 1:
        raise InputError("features.blocks", blocks, "name the one block of the zero-shot rows")
    return blocks


def _pass_of(features: BackboneFeatures) -> tuple[object, ...]:
    """What must be equal for rows to share a pass and a calibration."""
    tapped = str(features.timestep), features.tap, features.modulation_condition
    found = str(features.massive_channels), features.massive_ratio, features.debias_components, features.debias_images
    return *tapped, *found


def _backbone_streams(
    backbone: Backbone, features: BackboneFeatures, others: Sequence[BackboneFeatures]
) -> dict[tuple[object, ...], Stream]:
    groups: dict[tuple[object, ...], list[BackboneFeatures]] = {}
    for settings in (features, *others):
        groups.setdefault(_pass_of(settings), []).append(settings)
    return {
        key: _stream(backbone, members[0], [block for member in members for block in member.blocks])
        for key, members in groups.items()
    }


def _stream(backbone: Backbone, features: BackboneFeatures, blocks: Sequence[int]) -> Stream:
    options = features.extractor_options() | {"blocks": check_blocks(blocks, backbone.num_blocks)}
    return Stream(FeatureExtractor(backbone, **options), features)


def _colour_stream(stride: int, features: BackboneFeatures) -> Stream:
    settings = replace(
        features,
        timestep=0,
        modulation="none",
        discard="none",
        position_debias="none",
        massive_channels="auto",
        ensemble=1,
        prompt=None,
        captions=None,
    )
    return _stream(ColourPatches(stride), replace(settings, bank_dtype="float32"), [0])
