"""Rows at work: from a pair to predicted keypoints."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.data.pairs import Pair, Side
from ditf_probe.features.fusion import fuse, joint_pca
from ditf_probe.features.settings import SizeRule
from ditf_probe.geometry import Transform
from ditf_probe.matching import MatchingRule, match_by_rule
from ditf_probe.tasks.controls import same_position
from ditf_probe.tasks.matches import Match
from ditf_probe.tasks.rows import Fusion, Row
from ditf_probe.tasks.streams import Stream


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

    def note(self) -> tuple[str, ...]:
        """Remarks for the table."""
        return ()

    def settings(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """Every setting that changes a number, as plain JSON values; streams by their position in a list."""
        del streams
        return {**asdict(self.row), "model": None, "blocks": []}

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
        keypoints = pair.source.keypoints[pair.source.visible]
        canvas = self.size_rule.transform(pair.target.size).canvas_length
        if not len(keypoints):
            nothing = keypoints.new_zeros(0)
            return Match(nothing.reshape(0, 2), nothing, nothing.bool(), canvas=canvas)
        source, target = self.maps(pair)
        here, there = self._place(pair.source), self._place(pair.target)
        found = match_by_rule(source, target, keypoints.to(source.device), here, there, self.rule)
        points, similarity, accepted = (x.cpu() for x in found)
        grid = None if self.size_rule.whole_canvas else (target.shape[-2], target.shape[-1])
        return Match(points, similarity, accepted, grid, canvas)

    def _place(self, side: Side) -> tuple[int, int] | Transform:
        """What a map covers: the image, or a whole canvas."""
        return self.size_rule.transform(side.size) if self.size_rule.whole_canvas else side.size

    @property
    @abstractmethod
    def size_rule(self) -> SizeRule:
        """How its images are prepared."""

    @abstractmethod
    def maps(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """The maps of source and target, `(D, h, w)` and `(D, h', w')`.

        Each covers its original image, or the whole prepared one where `size_rule.whole_canvas`.
        """


@dataclass(frozen=True)
class FeatureMatcher(MapMatcher):
    """Matches the features of one stream, or those of a probe over them.

    Attributes:
        stream: Where the features come from.
        blocks: Blocks that are used; one without a probe.
        probe: Head over the features.
        remarks: Notes beside those on channels.
    """

    stream: Stream
    blocks: Sequence[int]
    probe: nn.Module | None = None
    remarks: tuple[str, ...] = ()

    @property
    def streams(self) -> Sequence[Stream]:
        """The one stream."""
        return (self.stream,)

    @property
    def size_rule(self) -> SizeRule:
        """That of the stream."""
        return self.stream.extractor.size_rule

    @property
    def needs_calibration(self) -> bool:
        """Whether its features need what only calibration images can tell."""
        row, recipes = self.row, self.stream.extractor.recipes
        return recipes.needs_calibration(row.modulation, row.discard, row.position_debias, row.pick)

    @property
    def parameters(self) -> int:
        """Those of the probe."""
        return 0 if self.probe is None else sum(parameter.numel() for parameter in self.probe.parameters())

    def note(self) -> tuple[str, ...]:
        """How many channels a discarding row found."""
        if self.row.discard == "none":
            return self.remarks
        recipes = self.stream.extractor.recipes
        counts = [len(recipes.discarded(block, self.row.pick)) for block in self.blocks]
        word = "random " if (self.row.pick or recipes.pick).kind == "random" else ""
        return (*self.remarks, f"{' + '.join(map(str, counts))} {word}channel{'' if counts == [1] else 's'}")

    def settings(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """As in `Matcher`, with the number of the stream and the blocks."""
        facts = {**super().settings(streams), "model": streams.index(self.stream), "blocks": list(self.blocks)}
        if self.row.pick is not None and self.row.discard != "none":
            recipes = self.stream.extractor.recipes
            facts["discarded"] = {str(block): recipes.discarded(block, self.row.pick) for block in self.blocks}
        return facts

    @torch.no_grad()
    def maps(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """As in `MapMatcher`."""
        return self._map(pair.source), self._map(pair.target)

    @torch.no_grad()
    def features(self, tapped: Mapping[int, TappedBlock]) -> Tensor:
        """The maps `(B, D, h, w)` of prepared images whose blocks are tapped already."""
        row = self.row
        features = self.stream.extractor.features(
            {block: tapped[block] for block in self.blocks},
            modulation=row.modulation,
            discard=row.discard,
            position_debias=row.position_debias,
            pick=row.pick,
        )
        found: Tensor = features[self.blocks[0]] if self.probe is None else self.probe(features)
        return found

    def _map(self, side: Side) -> Tensor:
        found = self.features(self.stream.bank.tapped([side.image_id]))[0]
        return found if self.size_rule.whole_canvas else self.stream.crop(found, side)


@dataclass(frozen=True)
class FusedMatcher(MapMatcher):
    """Matches the maps of several rows as one.

    Attributes:
        parts: The rows.
        fusion: How they are put together.
    """

    parts: Sequence[MapMatcher]
    fusion: Fusion

    @property
    def streams(self) -> Sequence[Stream]:
        """Those of all parts."""
        return [stream for part in self.parts for stream in part.streams]

    @property
    def size_rule(self) -> SizeRule:
        """That of the first part."""
        return self.parts[0].size_rule

    @property
    def parameters(self) -> int:
        """Those of all parts."""
        return sum(part.parameters for part in self.parts)

    def note(self) -> tuple[str, ...]:
        """Which parts are reduced, and to how many channels at most: pairs of few tokens have no more."""
        reduced = zip(self.fusion.parts, self.fusion.channels, strict=True)
        return tuple(f"{name} by joint PCA to {count} channels" for name, count in reduced if count is not None)

    def settings(self, streams: Sequence[Stream]) -> dict[str, Any]:
        """How the parts are put together; what each is made of stands in its own row."""
        facts = {"name": self.row.name, "kind": self.row.kind, "source": "fusion"}
        return {**facts, "model": None, "blocks": [], "fusion": asdict(self.fusion)}

    def maps(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """As in `MapMatcher`, each part reduced for this pair where the fusion says so."""
        sources, targets = [], []
        for part, channels in zip(self.parts, self.fusion.channels, strict=True):
            source, target = part.maps(pair)
            if channels is not None:
                source, target = joint_pca(source, target, channels)
            sources.append(source)
            targets.append(target)
        device, fusion = sources[0].device, self.fusion
        return (
            fuse([x.to(device) for x in sources], fusion.weights, fusion.grid),
            fuse([x.to(device) for x in targets], fusion.weights, fusion.grid),
        )
