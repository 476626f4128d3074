"""From the rows that were asked for to matchers: which models run, at which blocks, and who shares a pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.checks import check_blocks
from ditf_probe.data.pairs import PairDataset
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.kept_calibration import restore
from ditf_probe.matching import MatchingRule
from ditf_probe.matching.rules import DEFAULT_RULE
from ditf_probe.probes import PROBE_SETTINGS, ProbeFacts, check_num_timesteps, load_probe, lora_of, read_facts
from ditf_probe.probes.folder import load_beside
from ditf_probe.tasks.adapted import adapted_stream
from ditf_probe.tasks.controls import ColourPatches
from ditf_probe.tasks.fused_matcher import FusedMatcher
from ditf_probe.tasks.heads import check_copies
from ditf_probe.tasks.matchers import FeatureMatcher, MapMatcher, Matcher, PositionMatcher
from ditf_probe.tasks.models import Models, make_extractor, make_stream, pass_of, shared_streams
from ditf_probe.tasks.records import Kind
from ditf_probe.tasks.rows import Fusion, Row
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.streams import Stream


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
        held.append(HeldProbe(name, module, _trained_on(facts, features), facts, load_beside(folder)))
    check_copies({probe.name: probe.facts for probe in held})
    return held


def requested(
    features: BackboneFeatures, folders: Mapping[str, Path], others: Mapping[str, BackboneFeatures]
) -> list[BackboneFeatures]:
    """Everything that a comparison asks of its backbones; see `plan` and `held_probes` for the arguments.

    Raises:
        InputError: A folder is not a probe.
    """
    return [features, *(_trained_on(read_facts(folder), features) for folder in folders.values()), *others.values()]


def _trained_on(facts: ProbeFacts, features: BackboneFeatures) -> BackboneFeatures:
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


def plan(
    models: Models,
    features: BackboneFeatures,
    rows: Sequence[Row],
    probes: Sequence[HeldProbe] = (),
    others: Mapping[str, BackboneFeatures] | None = None,
    fusions: Mapping[str, Fusion] | None = None,
    rule: MatchingRule = DEFAULT_RULE,
) -> list[Matcher]:
    """A matcher per row; one pass of a backbone serves all rows with equal settings of it.

    Args:
        models: Where the backbones are.
        features: Settings of the zero-shot rows; one block.
        rows: Zero-shot rows and controls.
        probes: Trained probes; they come last before the first control.
        others: Further zero-shot rows, by name, each with a backbone and one block of its own; they come after `rows`.
        fusions: Rows that put others together, by name; they come after `others`.
        rule: How all rows find a match.

    Raises:
        InputError: A setting that a backbone does not have, or several blocks for a zero-shot row.
    """
    others = dict(others or {})
    backbone = models[features]
    block = _zero_shot_block("features.blocks", backbone, features)
    _check_adaln(backbone, rows)
    blocks = {name: _check_other(name, models, settings) for name, settings in others.items()}
    own = [row.asked_of(features) for row in rows if row.condition is not None]
    frozen = [probe.features for probe in probes if lora_of(probe.module) is None]
    streams = shared_streams(models, [features, *own, *frozen, *others.values()])

    def given(row: Row) -> Matcher:
        if row.source == "position":
            return PositionMatcher(row, rule, streams[pass_of(features)].extractor.size_rule)
        if row.source == "rgb":
            return FeatureMatcher(row, rule, _colour_stream(backbone.stride_at(block), features), [0])
        if row.source == "untrained":
            row = row if backbone.has_adaln else replace(row, modulation="none")
            whole = replace(features, store_basis=None)  # the components are those of trained streams
            return FeatureMatcher(row, rule, make_stream(backbone.untrained(), whole, [block]), [block])
        return FeatureMatcher(row, rule, streams[pass_of(row.asked_of(features))], [block])

    def other(name: str, settings: BackboneFeatures) -> Matcher:
        remark = _whose(models[settings], blocks[name], settings)
        row = Row.of(name, "zero-shot", settings)
        return FeatureMatcher(row, rule, streams[pass_of(settings)], [blocks[name]], remarks=(remark,))

    def learnt(probe: HeldProbe) -> Matcher:
        chosen = check_blocks(probe.features.blocks, backbone.num_blocks)
        module = probe.module.to(backbone.device)
        adapted = lora_of(module) is not None
        stream = (
            adapted_stream(backbone, module, probe.features, chosen) if adapted else streams[pass_of(probe.features)]
        )
        return FeatureMatcher(probe.row, rule, stream, chosen, module, calibrated=_calibrated(backbone, probe))

    first_control = next((i for i, row in enumerate(rows) if row.kind == "control"), len(rows))
    zero_shot = [*map(given, rows[:first_control]), *(other(name, settings) for name, settings in others.items())]
    rest = [*map(learnt, probes), *map(given, rows[first_control:])]
    return [*zero_shot, *_fused(fusions or {}, [*zero_shot, *rest], rule), *rest]


def _calibrated(backbone: Backbone, probe: HeldProbe) -> FeatureExtractor | None:
    """What makes features with the calibration of a training; None where that had none."""
    if probe.facts.calibration is None:
        return None
    extractor = make_extractor(backbone, probe.features, probe.features.blocks)
    restore(extractor, probe.facts.calibration, probe.beside, "probe_folders")
    return extractor


def _fused(fusions: Mapping[str, Fusion], matchers: Sequence[Matcher], rule: MatchingRule) -> Iterator[Matcher]:
    """A fused row is what the most trained of its parts is: a probe, a control, or zero-shot."""
    parts = {matcher.row.name: matcher for matcher in matchers if isinstance(matcher, MapMatcher)}
    order: tuple[Kind, ...] = ("probe", "control", "zero-shot")
    for name, fusion in fusions.items():
        chosen = [parts[part] for part in fusion.parts]
        kind = min((part.row.kind for part in chosen), key=order.index)
        if len({(part.size_rule.whole_canvas and part.size_rule.resize) for part in chosen}) > 1:
            resizes = [part.size_rule.resize for part in chosen]
            raise InputError(f"fusions.{name}.parts", resizes, "give all parts one resize, or none a letterbox")
        yield FusedMatcher(Row(name, kind, "fusion"), rule, chosen, fusion)


def calibrate(matchers: Sequence[Matcher], dataset: PairDataset | None) -> None:
    """Calibrates every stream whose rows need it.

    Raises:
        InputError: One does, and there is no data set to calibrate on.
    """
    needy = [matcher for matcher in matchers if isinstance(matcher, FeatureMatcher) and matcher.needs_calibration]
    for stream in streams_of(needy):
        stream.calibrate(dataset, {matcher.row.modulation for matcher in needy if matcher.stream is stream})
    for matcher in matchers:
        matcher.note()  # refuses channels that are not there, before anything is matched


def streams_of(matchers: Sequence[Matcher]) -> list[Stream]:
    """The streams of all rows, each once, those of one backbone together so that it is loaded once for all of them."""
    streams = list(dict.fromkeys(stream for matcher in matchers for stream in matcher.streams))
    backbones = list(dict.fromkeys(stream.extractor.backbone for stream in streams))
    return sorted(streams, key=lambda stream: backbones.index(stream.extractor.backbone))


def _zero_shot_block(argument: str, backbone: Backbone, features: BackboneFeatures) -> int:
    blocks = check_blocks(features.blocks, backbone.num_blocks)
    if len(blocks) != 1:
        raise InputError(argument, blocks, "name the one block of the zero-shot rows")
    return blocks[0]


def _check_adaln(backbone: Backbone, rows: Sequence[Row]) -> None:
    """Refuses rows that no backbone without AdaLN can have, before anything is computed."""
    modulated = [row.name for row in rows if row.source == "backbone" and row.modulation == "adaln"]
    if modulated and not backbone.has_adaln:
        remedy = f"{backbone.name} has no AdaLN, leave these rows out; raw and layer_norm are without"
        raise InputError("rows", modulated, remedy)


def _check_other(name: str, models: Models, features: BackboneFeatures) -> int:
    """The block of a further row, once its backbone has been loaded and has all that the settings ask for."""
    try:
        backbone = models[features]
        make_stream(backbone, features, features.blocks)
        if features.modulation == "adaln" and not backbone.has_adaln:
            raise InputError("modulation", "adaln", f"{backbone.name} has no AdaLN, use none or layer_norm")
        return _zero_shot_block("blocks", backbone, features)
    except InputError as error:
        raise InputError(f"others.{name}.{error.argument}", error.value, error.remedy) from error


def _whose(backbone: Backbone, block: int, features: BackboneFeatures) -> str:
    """Whose features a further row has, for the table."""
    time = f", t = {features.timestep}" if backbone.num_timesteps else ""
    return f"{backbone.name}, block {block}{time}"


def _colour_stream(stride: int, features: BackboneFeatures) -> Stream:
    settings = replace(
        features.sized(stride),
        timestep=0,
        modulation="none",
        discard="none",
        position_debias="none",
        massive_channels="auto",
        massive_count=None,
        ensemble=1,
        prompt=None,
        captions=None,
    )
    return make_stream(ColourPatches(stride), replace(settings, bank_dtype="float32", store_basis=None), [0])
