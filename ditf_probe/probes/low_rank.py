"""A low-rank adapter on the features of frozen blocks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ditf_probe.errors import InputError
from ditf_probe.probes.base import Probe
from ditf_probe.probes.layers import joined, select_layers, zero_projection


class LowRankAdapter(Probe):
    """x + B A x on the features of each block, as LoRA (Hu et al., ICLR 2022, section 4.1) has it for weights.

    It acts on the feature after its modulation; no weight of the backbone changes. A starts at random (normal, of
    variance 1 / C), B at zero, so that training departs from the zero-shot features. Maps of several blocks are joined
    as in `probes.layers.joined`.

    Args:
        channels: Width C of the features.
        blocks: Blocks whose features are used.
        rank: Rank of B A.

    Raises:
        InputError: A rank outside 1 to C.
    """

    pointwise = True

    def __init__(self, channels: int, blocks: Sequence[int], rank: int = 16) -> None:
        super().__init__(channels, blocks)
        if not 1 <= rank <= channels:
            raise InputError("rank", rank, f"use 1 to {channels}, the width of the features")
        self.rank = rank
        self.starts_at_zero_shot = len(self.blocks) == 1
        self.down = nn.ModuleDict({str(block): _random_projection(channels, rank) for block in self.blocks})
        self.up = nn.ModuleDict({str(block): zero_projection(rank, channels, bias=False) for block in self.blocks})

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
        return joined([self._adapted(str(block), layer) for block, layer in zip(self.blocks, layers, strict=True)])

    def _adapted(self, block: str, layer: Tensor) -> Tensor:
        change: Tensor = self.up[block](self.down[block](layer))
        return layer + change


def _random_projection(channels: int, rank: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, rank, kernel_size=1, bias=False)
    with torch.no_grad():
        layer.weight.normal_(std=channels**-0.5)
    return layer
