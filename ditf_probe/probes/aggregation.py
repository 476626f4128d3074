"""A learned mixture of layers."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditf_probe.errors import InputError
from ditf_probe.probes.layers import checked_blocks, projection, select_layers


class LayerAggregation(nn.Module):
    """A softmax-weighted sum over layers, each first normalised and projected.

    Follows the aggregation network of Diffusion Hyperfeatures (Luo et al., NeurIPS 2023, section 3.2) with a linear
    projection in place of its bottleneck blocks, and without timesteps.

    Args:
        channels: Width C of the features.
        blocks: Blocks whose features are mixed.
        width: Width D of the descriptor.
        normalisation: "layer_norm" (zero mean, unit variance over the channels of a token) or "l2" (unit length).
    """

    def __init__(
        self,
        channels: int,
        blocks: Sequence[int],
        width: int = 128,
        normalisation: Literal["layer_norm", "l2"] = "layer_norm",
    ) -> None:
        super().__init__()
        if normalisation not in ("layer_norm", "l2"):
            raise InputError("normalisation", normalisation, "choose layer_norm or l2")
        self.channels = channels
        self.blocks = checked_blocks(blocks)
        self.width = width
        self.normalisation = normalisation
        self.projections = nn.ModuleDict({str(block): projection(channels, width) for block in self.blocks})
        self.mixture = nn.Parameter(torch.zeros(len(self.blocks)))

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
        weights = self.mixture.softmax(dim=0)
        total = torch.zeros((), dtype=weights.dtype, device=weights.device)
        for weight, block, layer in zip(weights, self.blocks, layers, strict=True):
            total = total + weight * self.projections[str(block)](self._normalise(layer))
        return total

    def layer_weights(self) -> dict[int, float]:
        """Block index to its weight in the mixture; they sum to 1."""
        return dict(zip(self.blocks, self.mixture.detach().softmax(dim=0).tolist(), strict=True))

    def _normalise(self, layer: Tensor) -> Tensor:
        if self.normalisation == "l2":
            return F.normalize(layer, dim=1)
        centred = layer - layer.mean(dim=1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + 1e-6)
