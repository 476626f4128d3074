"""Heads that treat every block alone and hand out what they made of each, side by side."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from ditf_probe.probes.base import Probe
from ditf_probe.probes.layers import joined, select_layers


class BlockwiseProbe(Probe):
    """A head that departs from the features of each block; maps of several are joined as in `probes.layers.joined`.

    A subclass fills `adapted`, which gives back the very features until it is trained.

    Args:
        channels: Width C of the features.
        blocks: Blocks whose features are used.

    Attributes:
        num_timesteps: T, for a head that takes the features of each timestep.
    """

    num_timesteps: int | None = None

    def __init__(self, channels: int, blocks: Sequence[int]) -> None:
        super().__init__(channels, blocks)
        self.starts_at_zero_shot = len(self.blocks) == 1

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        """Descriptors from features.

        Args:
            features: Block index to `(B, C, h, w)`, or to `(B, T, C, h, w)`; further blocks are ignored.

        Returns:
            `(B, C, h, w)` of one block, not normalised; `(B, n C, h, w)` of n.

        Raises:
            InputError: A block is missing, or has another width or number of timesteps.
        """
        layers = select_layers(features, self.blocks, self.channels, self.num_timesteps)
        return joined([self.adapted(block, layer) for block, layer in zip(self.blocks, layers, strict=True)])

    @abstractmethod
    def adapted(self, block: int, layer: Tensor) -> Tensor:
        """What the head makes of the features of one block, `(B, C, h, w)`."""
