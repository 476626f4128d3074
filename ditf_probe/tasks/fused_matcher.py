"""Rows that match the features of several rows together."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ditf_probe.data.pairs import Pair
from ditf_probe.features.fusion import fuse, joint_pca
from ditf_probe.features.settings import SizeRule
from ditf_probe.tasks.matchers import MapMatcher
from ditf_probe.tasks.records import FROZEN, NO_BACKBONE
from ditf_probe.tasks.rows import Fusion
from ditf_probe.tasks.streams import Stream


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

    @property
    def backbone(self) -> str:
        """What is trained in the backbone of any part."""
        words = dict.fromkeys(part.backbone for part in self.parts)
        trained = [word for word in words if word not in (FROZEN, NO_BACKBONE)]
        return ", ".join(trained) or (FROZEN if FROZEN in words else NO_BACKBONE)

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
