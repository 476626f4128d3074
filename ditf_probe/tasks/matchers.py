"""Rows at work: from a pair to predicted keypoints."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.data.pairs import Pair, Side
from ditf_probe.features.channels import MASSIVE
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.settings import SizeRule
from ditf_probe.matching import MatchingRule, PreparedMap, match_prepared
from ditf_probe.probes import lora_of, remarks_of, takes_timesteps
from ditf_probe.tasks.controls import same_position
from ditf_probe.tasks.map_cache import MapCache
from ditf_probe.tasks.matches import Match
from ditf_probe.tasks.records import FROZEN, NO_BACKBONE
from ditf_probe.tasks.rows import Row
from ditf_probe.tasks.streams import Stream

TOGETHER = 2**26
"""Bytes of maps from which on waiting pairs are matched."""


@dataclass(frozen=True)
class Matcher(ABC):
    """One row of a comparison, ready to match.

    Attributes:
        row: Which row.
        rule: How it finds a match.
    """

    row: Row
    rule: MatchingRule

    @property
    def streams(self) -> Sequence[Stream]:
        """Where its features come from."""
        return ()

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return 0

    @property
    def backbone(self) -> str:
        """What of its backbone is trained, as in `RowResult`."""
        return NO_BACKBONE

    def note(self) -> tuple[str, ...]:
        """Remarks for the table."""
        return ()

    def settings(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Every setting that changes a number, as plain JSON values; streams by their position in a list."""
        del streams
        return {**asdict(self.row), "model": None, "blocks": []}

    def forget(self) -> None:  # noqa: B027  # not abstract: most rows keep nothing
        """Lets go of the maps of images."""

    @abstractmethod
    def match(self, pair: Pair) -> Match:
        """Finds the keypoints of a pair that are visible in the source image.

        Args:
            pair: Its images must be in the bank of every stream.
        """


@dataclass(frozen=True)
class PositionMatcher(Matcher):
    """Keeps the relative position; there are no features.

    Attributes:
        size_rule: How the other rows prepare images.
    """

    size_rule: SizeRule

    def match(self, pair: Pair) -> Match:
        """As in `Matcher`; looks at no pixel."""
        found = same_position(pair.source.keypoints[pair.source.visible], pair.source.size, pair.target.size)
        canvas = self.size_rule.transform(pair.target.size).canvas_length
        nowhere, accepted = torch.full((len(found),), float("nan")), torch.ones(len(found), dtype=torch.bool)
        return Match(found, nowhere, accepted, canvas=canvas)


@dataclass(frozen=True)
class MapMatcher(Matcher):
    """Matches a feature map of the source with one of the target, by the cosine at every pixel or cell."""

    def match(self, pair: Pair) -> Match:
        """As in `Matcher`."""
        source, target, keypoints = self.prepared(pair)
        return self.found(pair, target, match_prepared([(source, target, keypoints)])[0])

    def prepared(self, pair: Pair) -> tuple[PreparedMap, PreparedMap, Tensor]:
        """What `match_prepared` takes: both maps, and the keypoints that are visible in the source image."""
        source, target = self.maps(pair)
        keypoints = pair.source.keypoints[pair.source.visible].to(source.device)
        return self.prepare(source, pair.source), self.prepare(target, pair.target), keypoints

    def prepare(self, features: Tensor, side: Side) -> PreparedMap:
        """A map with what it covers: the image, or a whole canvas."""
        place = self.size_rule.transform(side.size) if self.size_rule.whole_canvas else side.size
        return PreparedMap.of(features, place, self.rule)

    def found(self, pair: Pair, target: PreparedMap, matches: tuple[Tensor, Tensor, Tensor]) -> Match:
        """What `match_prepared` found, with what scores need to know of the target."""
        points, similarity, accepted = (x.cpu() for x in matches)
        grid = None if self.size_rule.whole_canvas else target.grid
        return Match(points, similarity, accepted, grid, self.size_rule.transform(pair.target.size).canvas_length)

    @property
    @abstractmethod
    def size_rule(self) -> SizeRule:
        """How its images are prepared."""

    @abstractmethod
    def maps(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """The maps of source and target, `(D, h, w)` and `(D, h', w')`.

        Each covers its original image, or the whole prepared one where `size_rule.whole_canvas`.
        """


def match_all(matchers: Sequence[Matcher], pairs: Sequence[Pair]) -> list[list[Match]]:
    """Matches a batch of pairs with several rows; maps of equal size are searched together.

    Args:
        matchers: The rows, of one matching rule.
        pairs: Their images must be in the banks.

    Returns:
        Per row and pair what was found.
    """
    found: dict[tuple[int, int], Match] = {}
    waiting: dict[tuple[int, int], tuple[PreparedMap, PreparedMap, Tensor]] = {}
    keypoints: dict[tuple[int, torch.device], Tensor] = {}

    def flush() -> None:
        for (row, column), matches in zip(waiting, match_prepared(list(waiting.values())), strict=True):
            matcher, target = matchers[row], waiting[row, column][1]
            assert isinstance(matcher, MapMatcher)
            found[row, column] = matcher.found(pairs[column], target, matches)
        waiting.clear()

    for column, pair in enumerate(pairs):
        for row, matcher in enumerate(matchers):
            if isinstance(matcher, MapMatcher):
                source, target, points = matcher.prepared(pair)
                # The very same keypoints for all rows, so that what they share is computed once.
                waiting[row, column] = source, target, keypoints.setdefault((column, points.device), points)
            else:
                found[row, column] = matcher.match(pair)
        if sum(one.features.nbytes for pair in waiting.values() for one in pair[:2]) > TOGETHER:
            flush()
    flush()
    return [[found[row, column] for column in range(len(pairs))] for row in range(len(matchers))]


@dataclass(frozen=True)
class FeatureMatcher(MapMatcher):
    """Matches the features of one stream, or those of a probe over them.

    Attributes:
        stream: Where the features come from.
        blocks: Blocks that are used; one without a probe.
        probe: Head over the features.
        remarks: Notes beside those on channels.
        calibrated: Makes the features with the calibration that the head was trained with; None makes them with that of
            the stream.
    """

    stream: Stream
    blocks: Sequence[int]
    probe: nn.Module | None = None
    remarks: tuple[str, ...] = ()
    calibrated: FeatureExtractor | None = None
    _kept: MapCache = field(default_factory=MapCache, repr=False, compare=False)

    @property
    def streams(self) -> Sequence[Stream]:
        """The one stream."""
        return (self.stream,)

    @property
    def size_rule(self) -> SizeRule:
        """That of the stream."""
        return self.stream.extractor.size_rule

    @property
    def extractor(self) -> FeatureExtractor:
        """What makes its features."""
        return self.stream.extractor if self.calibrated is None else self.calibrated

    @property
    def needs_calibration(self) -> bool:
        """Whether its features need what only calibration images can tell, and nothing has told yet."""
        row, recipes = self.row, self.extractor.recipes
        asked = row.modulation, row.discard, row.position_debias, row.pick
        return self.calibrated is None and recipes.needs_calibration(*asked)

    @property
    def parameters(self) -> int:
        """Those of the probe, with its adapters in the backbone."""
        return 0 if self.probe is None else sum(parameter.numel() for parameter in self.probe.parameters())

    @property
    def backbone(self) -> str:
        """As in `Matcher`."""
        lora = lora_of(self.probe)
        return lora.words if lora else NO_BACKBONE if self.row.source == "rgb" else FROZEN

    def note(self) -> tuple[str, ...]:
        """How many channels a discarding row found, and what a probe has to say of itself."""
        recipes, words = self.extractor.recipes, list(self.remarks)
        if self.row.discard != "none":
            counts = [len(recipes.discarded(block, self.row.pick)) for block in self.blocks]
            kind = "random " if (self.row.pick or recipes.pick).kind == "random" else ""
            words.append(f"{' + '.join(map(str, counts))} {kind}channel{'' if counts == [1] else 's'}")
        if self.probe is not None:
            known = self.blocks if recipes.knows_massive_channels else []
            words += remarks_of(self.probe, {block: recipes.discarded(block, MASSIVE) for block in known})
        return tuple(words)

    def settings(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """As in `Matcher`, with the number of the stream and the blocks."""
        facts = {**super().settings(streams), "model": streams.index(self.stream), "blocks": list(self.blocks)}
        if self.row.pick is not None and self.row.discard != "none":
            recipes = self.extractor.recipes
            facts["discarded"] = {str(block): recipes.discarded(block, self.row.pick) for block in self.blocks}
        return facts

    def prepared(self, pair: Pair) -> tuple[PreparedMap, PreparedMap, Tensor]:
        """As in `MapMatcher`; images that came lately are not prepared again."""
        source, target = self._prepared(pair.source), self._prepared(pair.target)
        return source, target, pair.source.keypoints[pair.source.visible].to(source.features.device)

    def forget(self) -> None:
        """As in `Matcher`."""
        self._kept.clear()

    def limit(self, nbytes: int) -> None:
        """Bounds the memory of prepared maps, for comparisons of many rows."""
        self._kept.budget = min(self._kept.budget, nbytes)

    def maps(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """As in `MapMatcher`."""
        return self._map(pair.source), self._map(pair.target)

    @torch.no_grad()
    def features(self, tapped: Mapping[int, TappedBlock]) -> Tensor:
        """The maps `(B, D, h, w)` of prepared images whose blocks are tapped already."""
        row = self.row
        features = self.extractor.features(
            {block: tapped[block] for block in self.blocks},
            modulation=row.modulation,
            discard=row.discard,
            position_debias=row.position_debias,
            pick=row.pick,
            per_timestep=takes_timesteps(self.probe),
        )
        found: Tensor = features[self.blocks[0]] if self.probe is None else self.probe(features)
        return found

    def _prepared(self, side: Side) -> PreparedMap:
        return self._kept.get((side.image_id, side.size), lambda: self.prepare(self._map(side), side))

    @torch.no_grad()
    def _map(self, side: Side) -> Tensor:
        found = self.features(self.stream.bank.tapped([side.image_id]))[0]
        return found if self.size_rule.whole_canvas else self.stream.crop(found, side)
