"""A low-rank adapter on the features of frozen blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ditf_probe.errors import InputError
from ditf_probe.probes.blockwise import BlockwiseProbe
from ditf_probe.probes.layers import zero_projection


class LowRankAdapter(BlockwiseProbe):
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
        self.down = nn.ModuleDict({str(block): _random_projection(channels, rank) for block in self.blocks})
        self.up = nn.ModuleDict({str(block): zero_projection(rank, channels, bias=False) for block in self.blocks})

    def adapted(self, block: int, layer: Tensor) -> Tensor:
        """As in `BlockwiseProbe`."""
        change: Tensor = self.up[str(block)](self.down[str(block)](layer))
        return layer + change


def _random_projection(channels: int, rank: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, rank, kernel_size=1, bias=False)
    with torch.no_grad():
        layer.weight.normal_(std=channels**-0.5)
    return layer
