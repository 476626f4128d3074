"""A residual head that sees the neighbours of a token."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ditf_probe.probes.base import Probe, checked_count
from ditf_probe.probes.layers import Bottleneck, joined, select_layers


class BottleneckProbe(Probe):
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
        self.starts_at_zero_shot = len(self.blocks) == 1
        self.branches = nn.ModuleDict({str(block): Bottleneck(channels, width, channels) for block in self.blocks})

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        """Descriptors from features.

        Args:
            features: Block index to `(B, C, h, w)`; further blocks are ignored.

        Returns:
            `(B, C, h, w)` of one block, not normalised; `(B, n C, h, w)` of n.

        Raises:
            InputError: A block is missing or has another width.
        """
        layers = select_layers(features, self.blocks, self.channels)
        branches = (self.branches[str(block)] for block in self.blocks)
        return joined([layer + branch(layer) for layer, branch in zip(layers, branches, strict=True)])
