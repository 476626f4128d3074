"""Rows at work: from a pair to predicted keypoints."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditf_probe.data.pairs import Pair, Side
from ditf_probe.matching import Rounding, match_keypoints
from ditf_probe.tasks.controls import same_position
from ditf_probe.tasks.rows import Row
from ditf_probe.tasks.streams import Stream


@dataclass(frozen=True)
class Matcher:
    """One row of a comparison, ready to match.

    Attributes:
        row: Which row.
        stream: Where its features come from; None where it needs none.
        blocks: Blocks whose features it uses.
        rounding: As in `match_keypoints`.
        probe: Head over the features, or None to match the features of the one block.
    """

    row: Row
    stream: Stream | None
    blocks: Sequence[int] = ()
    rounding: Rounding = "subpixel"
    probe: nn.Module | None = None

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return 0 if self.probe is None else sum(parameter.numel() for parameter in self.probe.parameters())

    @torch.no_grad()
    def match(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Finds the keypoints of a pair that are visible in both images.

        Args:
            pair: Its images must be in the bank of the stream.

        Returns:
            `(V, 2)` float32 (x, y) in pixels of the original target image, whole ones where features were matched, and
            `(V,)` cosines (NaN without features), on the CPU.
        """
        keypoints = pair.source.keypoints[pair.visible]
        if self.stream is None:
            found = same_position(keypoints, pair.source.size, pair.target.size)
            return found, torch.full((len(found),), float("nan"))
        if not len(keypoints):
            return keypoints.new_zeros(0, 2), keypoints.new_zeros(0)
        source, target = self._map(self.stream, pair.source), self._map(self.stream, pair.target)
        points = keypoints.to(source.device)
        found, similarity = match_keypoints(
            source, target, points, pair.source.size, pair.target.size, rounding=self.rounding
        )
        return found.cpu(), similarity.cpu()

    def note(self) -> tuple[str, ...]:
        """Remarks for the table: how many channels a discarding row found."""
        if self.stream is None or self.row.discard == "none":
            return ()
        counts = [len(self.stream.extractor.discarded(block)) for block in self.blocks]
        return (f"{' + '.join(map(str, counts))} channel{'' if counts == [1] else 's'}",)

    def _map(self, stream: Stream, side: Side) -> Tensor:
        """`(D, h, w)` of one image."""
        row = self.row
        features = stream.maps(
            [side],
            self.blocks,
            modulation=row.modulation,
            discard=row.discard,
            position_debias=row.position_debias,
        )
        found = features[self.blocks[0]] if self.probe is None else self.probe(features)
        return stream.crop(found[0], side)
