"""One learned scale per channel: channel discard, learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditf_probe.errors import InputError
from ditf_probe.probes.base import checked_rate
from ditf_probe.probes.blockwise import BlockwiseProbe


@dataclass(frozen=True)
class ClosedChannels:
    """What a gate did with the channels of one block.

    Attributes:
        closed: Channels that it closed, in ascending order.
        massive: The massive channels of the block, in ascending order.
    """

    closed: list[int]
    massive: list[int]

    @property
    def both(self) -> list[int]:
        """Massive channels that it closed."""
        return sorted(set(self.closed) & set(self.massive))


class ChannelGate(BlockwiseProbe):
    """Scales every channel of a block by one learned number, which starts at 1.

    Channel discard sets the scale of the massive channels to 0 and leaves the others; here the pairs decide. Maps of
    several blocks are joined as in `probes.layers.joined`.

    Cosines do not see the overall scale of a block. So `penalty` is the L1 norm of the scales relative to their L2 norm
    (Hoyer, JMLR 2004, section 3.1) and not the L1 norm itself, which would shrink all of them alike; and a channel
    counts as closed relative to the root mean square of the scales of its block.

    A scale is 1 + rate * w of a weight w that starts at 0: an optimiser like AdamW moves a weight by about the learning
    rate at a step, and a scale has to come from 1 to 0 within one training.

    Args:
        channels: Width C of the features.
        blocks: Blocks whose channels are scaled.
        l1: Weight of the penalty; 0 for none.
        threshold: A channel is closed where its scale is smaller than this part of the root mean square.
        rate: How much faster than a weight a scale moves.

    Raises:
        InputError: A negative weight, a threshold outside 0 to 1, or a rate that is not positive.
    """

    pointwise = True

    def __init__(
        self, channels: int, blocks: Sequence[int], l1: float = 0.0, threshold: float = 0.1, rate: float = 10.0
    ) -> None:
        super().__init__(channels, blocks)
        if not 0 <= l1 < float("inf"):
            raise InputError("l1", l1, "give a number, 0 or more")
        if not 0 < threshold < 1:
            raise InputError("threshold", threshold, "give a part of the root mean square, above 0 and below 1")
        self.l1, self.threshold, self.rate = l1, threshold, checked_rate(rate)
        self.weights = nn.ParameterDict({str(block): torch.zeros(channels) for block in self.blocks})

    def adapted(self, block: int, layer: Tensor) -> Tensor:
        """As in `BlockwiseProbe`."""
        return layer * self.scale(block)[:, None, None]

    def scale(self, block: int) -> Tensor:
        """The scales of the channels of one block, `(C,)`."""
        weights: Tensor = self.weights[str(block)]
        return 1 + self.rate * weights

    def penalty(self) -> Tensor | None:
        """`l1` times the mean magnitude of the scales over their root mean square, from 1 / sqrt(C) to 1.

        The mean over blocks; None where `l1` is 0.
        """
        if not self.l1:
            return None
        scales = [self.scale(block) for block in self.blocks]
        ratios = [scale.abs().mean() / _root_mean_square(scale) for scale in scales]
        return self.l1 * torch.stack(ratios).mean()

    def closed(self, massive: Mapping[int, Sequence[int]] | None = None) -> dict[int, ClosedChannels]:
        """Which channels of each block are closed.

        Args:
            massive: Block to its massive channels, for example `FeatureExtractor.discarded`; None for none.
        """
        found = {}
        for block in self.blocks:
            scale = self.scale(block).detach()
            closed = (scale.abs() < self.threshold * _root_mean_square(scale)).nonzero()[:, 0].tolist()
            found[block] = ClosedChannels(closed, sorted(set((massive or {}).get(block, ()))))
        return found

    def remarks(self, massive: Mapping[int, Sequence[int]] | None = None) -> tuple[str, ...]:
        """How many channels are closed, and how many of the massive ones where these are known."""
        words = []
        for block, found in self.closed(massive).items():
            closed = f"block {block}: {len(found.closed)} of {self.channels} channels closed"
            of_massive = f", {len(found.both)} of {len(found.massive)} massive" if block in (massive or {}) else ""
            words.append(closed + of_massive)
        return tuple(words)


def _root_mean_square(scale: Tensor) -> Tensor:
    return scale.square().mean().sqrt()
