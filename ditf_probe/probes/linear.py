"""The simplest learned head: one linear map per layer."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ditf_probe.probes.base import Probe
from ditf_probe.probes.layers import projection, select_layers


class LinearProbe(Probe):
    """A 1x1 projection per chosen layer; their sum is the descriptor.

    The projections start semi-orthogonal, so that training departs from (nearly) the zero-shot similarities.

    Args:
        channels: Width C of the features.
        blocks: Blocks whose features are used.
        width: Width D of the descriptor.

    Raises:
        InputError: A width below 1.
    """

    pointwise = True

    def __init__(self, channels: int, blocks: Sequence[int], width: int = 128) -> None:
        super().__init__(channels, blocks)
        self.width = width
        self.projections = nn.ModuleDict({str(block): projection(channels, width) for block in self.blocks})

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        """Descriptors from features.

        Args:
            features: Block index to `(B, C, h, w)`; further blocks are ignored.

        Returns:
            `(B, D, h, w)`, not normalised.

        Raises:
            InputError: A block is missing or has another width.
        """
        layers = select_layers(features, self.blocks, self.channels)
        total: Tensor = self.projections[str(self.blocks[0])](layers[0])
        for block, layer in zip(self.blocks[1:], layers[1:], strict=True):
            total = total + self.projections[str(block)](layer)
        return total
