"""A learned mixture of layers."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditf_probe.errors import InputError, check_choice
from ditf_probe.probes.base import Probe, checked_count, checked_rate
from ditf_probe.probes.layers import Bottleneck, at_least_float32, layer_norm, projection, select_layers

Normalisation = Literal["layer_norm", "l2"]
LayerProjection = Literal["linear", "bottleneck"]


class LayerAggregation(Probe):
    """A softmax-weighted sum over layers, and timesteps, each first normalised and projected.

    Follows the aggregation network of Diffusion Hyperfeatures (Luo et al., NeurIPS 2023, section 3.2): one bottleneck
    layer per block, shared by the timesteps, and one mixing weight per block and timestep. It differs in what is
    simpler by default, a linear projection, and no timesteps; in the normalisation of the features, which the paper
    leaves to the group norms in its bottleneck layers; and in that nothing clips the descriptors at zero.

    The softmax is over rate * w of weights w that start at 0: an optimiser like AdamW moves a weight by about the
    learning rate at a step, and layers have to come apart within one training.

    Args:
        channels: Width C of the features.
        blocks: Blocks whose features are mixed.
        width: Width D of the descriptor.
        normalisation: "layer_norm" (zero mean, unit variance over the channels of a token) or "l2" (unit length).
        layer_projection: "linear", or "bottleneck": beside the linear one a residual branch 1x1, 3x3, 1x1 of width
            D / 4, which starts at zero.
        num_timesteps: T, to mix the features of each timestep; None takes their mean.
        rate: How much faster than a weight a logit of the softmax moves.

    Raises:
        InputError: An unknown choice, a width below 1 (of a bottleneck: 4), or a rate that is not positive.
    """

    def __init__(
        self,
        channels: int,
        blocks: Sequence[int],
        width: int = 128,
        normalisation: Normalisation = "layer_norm",
        layer_projection: LayerProjection = "linear",
        num_timesteps: int | None = None,
        rate: float = 10.0,
    ) -> None:
        super().__init__(channels, blocks)
        check_choice("normalisation", normalisation, Normalisation)
        check_choice("layer_projection", layer_projection, LayerProjection)
        self.width, self.rate = width, checked_rate(rate)
        self.normalisation, self.layer_projection = normalisation, layer_projection
        self.num_timesteps = None if num_timesteps is None else checked_count("num_timesteps", num_timesteps)
        self.per_timestep = num_timesteps is not None
        self.pointwise = layer_projection == "linear"
        self.projections = nn.ModuleDict({str(block): projection(channels, width) for block in self.blocks})
        self.branches = nn.ModuleDict()
        if layer_projection == "bottleneck":
            if width < 4:
                raise InputError("width", width, "use at least 4 with bottleneck layers")
            for block in self.blocks:
                self.branches[str(block)] = Bottleneck(channels, width // 4, width)
        # One axis, timesteps before blocks, so that no weight decay pulls it (see `tasks.schedules`).
        self.mixture = nn.Parameter(torch.zeros((num_timesteps or 1) * len(self.blocks)))

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        """Descriptors from features.

        Args:
            features: Block index to `(B, C, h, w)`, or to `(B, T, C, h, w)` with `num_timesteps`; further blocks are
                ignored.

        Returns:
            `(B, D, h, w)`, not normalised.

        Raises:
            InputError: A block is missing, or has another width or number of timesteps.
        """
        layers = select_layers(features, self.blocks, self.channels, self.num_timesteps)
        weights = self._weights()
        total = torch.zeros((), dtype=weights.dtype, device=weights.device)
        for number, (block, layer) in enumerate(zip(self.blocks, layers, strict=True)):
            weight = weights[:, number]
            if self.num_timesteps is None:
                total = total + weight[0] * self._projected(block, layer)
            else:
                steps = self._projected(block, layer.flatten(0, 1))
                steps = steps.reshape(*layer.shape[:2], *steps.shape[1:])
                total = total + (weight[:, None, None, None] * steps).sum(1)
        return total

    def layer_weights(self) -> dict[int, float]:
        """Block index to its weight in the mixture, over all timesteps; they sum to 1."""
        weights = self._weights().detach().sum(0)
        return dict(zip(self.blocks, weights.tolist(), strict=True))

    def timestep_weights(self) -> list[float]:
        """The weight of each timestep, in the order of the features, over all blocks; `[1.0]` of their mean."""
        found: list[float] = self._weights().detach().sum(1).tolist()
        return found

    def _weights(self) -> Tensor:
        return (self.rate * self.mixture).softmax(dim=0).reshape(-1, len(self.blocks))

    def _projected(self, block: int, layer: Tensor) -> Tensor:
        layer = F.normalize(at_least_float32(layer), dim=1) if self.normalisation == "l2" else layer_norm(layer)
        found: Tensor = self.projections[str(block)](layer)
        return found + self.branches[str(block)](layer) if self.branches else found
