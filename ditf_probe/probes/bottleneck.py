"""A residual head that sees the neighbours of a token."""

from collections.abc import Sequence

from torch import Tensor, nn

from ditf_probe.probes.base import checked_count
from ditf_probe.probes.blockwise import BlockwiseProbe
from ditf_probe.probes.layers import Bottleneck


class BottleneckProbe(BlockwiseProbe):
    """Adds a residual bottleneck, 1x1, 3x3, 1x1, to the features of each block.

    Its last convolution starts at zero, so that training departs from the zero-shot features. Maps of several blocks
    are joined as in `probes.layers.joined`.

    Args:
        channels: Width C of the features.
        blocks: Blocks whose features are used.
        width: Width of the 3x3 convolution.

    Raises:
        InputError: A width below 1.
    """

    def __init__(self, channels: int, blocks: Sequence[int], width: int = 64) -> None:
        super().__init__(channels, blocks)
        self.width = checked_count("width", width)
        self.branches = nn.ModuleDict({str(block): Bottleneck(channels, width, channels) for block in self.blocks})

    def adapted(self, block: int, layer: Tensor) -> Tensor:
        """As in `BlockwiseProbe`."""
        change: Tensor = self.branches[str(block)](layer)
        return layer + change
