"""From the rows that were asked for to matchers: which models run, at which blocks, and who shares a pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.checks import check_blocks
from ditf_probe.data.pairs import PairDataset
from ditf_probe.errors import InputError
from ditf_probe.matching import MatchingRule
from ditf_probe.matching.rules import DEFAULT_RULE
from ditf_probe.probes import lora_of, read_facts
from ditf_probe.tasks.adapted import adapted_stream
from ditf_probe.tasks.controls import ColourPatches
from ditf_probe.tasks.fused_matcher import FusedMatcher
from ditf_probe.tasks.held_probes import HeldProbe, calibrated_extractor, trained_on
from ditf_probe.tasks.matchers import FeatureMatcher, MapMatcher, Matcher, PositionMatcher
from ditf_probe.tasks.models import Models, make_stream, pass_of, shared_streams
from ditf_probe.tasks.records import Kind
from ditf_probe.tasks.rows import Fusion, Row
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.streams import Stream


def requested(
    features: BackboneFeatures, folders: Mapping[str, Path], others: Mapping[str, BackboneFeatures]
) -> list[BackboneFeatures]:
    """Everything that a comparison asks of its backbones; see `plan` and `held_probes.held_probes` for the arguments.

    Raises:
        InputError: A folder is not a probe.
    """
    return [features, *(trained_on(read_facts(folder), features) for folder in folders.values()), *others.values()]


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
        return FeatureMatcher(probe.row, rule, stream, chosen, module, calibrated=calibrated_extractor(backbone, probe))

    first_control = next((i for i, row in enumerate(rows) if row.kind == "control"), len(rows))
    zero_shot = [*map(given, rows[:first_control]), *(other(name, settings) for name, settings in others.items())]
    rest = [*map(learnt, probes), *map(given, rows[first_control:])]
    return [*zero_shot, *_fused(fusions or {}, [*zero_shot, *rest], rule), *rest]


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
