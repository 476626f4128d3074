"""What several timesteps add to their mean."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditf_probe.errors import InputError, check_choice
from ditf_probe.probes.base import checked_count
from ditf_probe.probes.blockwise import BlockwiseProbe
from ditf_probe.probes.layers import layer_norm, spread, zero_projection

TimestepMode = Literal["convolution", "attention", "softmax"]


class TimestepAggregation(BlockwiseProbe):
    """Adds to the mean over timesteps what a small network makes of their course, token by token.

    "convolution" and "attention" know the order of the timesteps: the first convolves along them and weights each of
    them by channel, the second lets the mean attend to timesteps that carry a learned position. "softmax" is a learned
    weighted mean, one weight per timestep, whatever the token holds. All three start exactly at the mean over
    timesteps, which is what zero-shot rows have. Maps of several blocks are joined as in `probes.layers.joined`.

    The mean of features whose position mean is subtracted differs from zero-shot rows by rounding: they subtract it
    from the mean.

    Args:
        channels: Width C of the features.
        blocks: Blocks whose features are used.
        num_timesteps: T, the number of timesteps of the features, in their order.
        mode: "convolution", "attention" or "softmax".
        width: Width of the network; "softmax" has none.
        kernel_size: Timesteps that a convolution looks at, an odd number.

    Raises:
        InputError: An unknown mode, an even kernel, or a number below 1.
    """

    per_timestep = True
    pointwise = True
    num_timesteps: int

    def __init__(
        self,
        channels: int,
        blocks: Sequence[int],
        num_timesteps: int,
        mode: TimestepMode = "convolution",
        width: int = 32,
        kernel_size: int = 3,
    ) -> None:
        super().__init__(channels, blocks)
        check_choice("mode", mode, TimestepMode)
        if checked_count("kernel_size", kernel_size) % 2 == 0:
            raise InputError("kernel_size", kernel_size, "use an odd number of timesteps")
        self.num_timesteps = checked_count("num_timesteps", num_timesteps)
        self.mode = mode
        self.width, self.kernel_size = checked_count("width", width), kernel_size
        self.residuals = nn.ModuleDict({str(block): self._residual() for block in self.blocks})

    def adapted(self, block: int, layer: Tensor) -> Tensor:
        """As in `BlockwiseProbe`, of `(B, T, C, h, w)`."""
        change: Tensor = self.residuals[str(block)](layer)
        return layer.mean(1) + change

    def timestep_weights(self) -> dict[int, list[float]]:
        """Block index to the weight of each timestep, in the order of the features; they sum to 1.

        Raises:
            InputError: The weights of another mode than "softmax" differ from token to token.
        """
        found = {}
        for block in self.blocks:
            residual = self.residuals[str(block)]
            if not isinstance(residual, _Weights):
                raise InputError("mode", self.mode, "weights of timesteps are those of softmax")
            found[block] = residual.logits.detach().softmax(0).tolist()
        return found

    def _residual(self) -> nn.Module:
        if self.mode == "softmax":
            return _Weights(self.num_timesteps)
        if self.mode == "attention":
            return _Attention(self.channels, self.width, self.num_timesteps)
        return _Convolution(self.channels, self.width, self.num_timesteps, self.kernel_size)


class _Weights(nn.Module):
    """The weighted mean less the mean: `(B, T, C, h, w)` to `(B, C, h, w)`."""

    def __init__(self, num_timesteps: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_timesteps))

    def forward(self, layer: Tensor) -> Tensor:
        # Equal weights are computed the same way, so that the difference starts at zero without rounding.
        change = self.logits.softmax(0) - torch.zeros_like(self.logits).softmax(0)
        return (change[:, None, None, None] * layer).sum(1)


class _Convolution(nn.Module):
    """1x1 to a small width, a convolution along the timesteps, a weight per channel and timestep, and 1x1 back."""

    def __init__(self, channels: int, width: int, num_timesteps: int, kernel_size: int) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(channels, width, kernel_size=1)
        padding = (kernel_size // 2, 0, 0)
        self.convolve = nn.Conv3d(width, width, kernel_size=(kernel_size, 1, 1), padding=padding)
        self.readout = nn.Parameter(torch.full((width, num_timesteps), 1 / num_timesteps))
        self.expand = zero_projection(width, channels)

    def forward(self, layer: Tensor) -> Tensor:
        steps = F.gelu(self.reduce(layer_norm(layer).transpose(1, 2)))  # (B, width, T, h, w)
        steps = F.gelu(self.convolve(steps))
        found: Tensor = self.expand((steps * self.readout[:, :, None, None]).sum(2)) * spread(layer.mean(1))
        return found


class _Attention(nn.Module):
    """1x1 to a small width and positions; the mean over timesteps asks, every timestep answers; and 1x1 back."""

    def __init__(self, channels: int, width: int, num_timesteps: int) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(channels, width, kernel_size=1)
        self.positions = nn.Parameter(torch.randn(width, num_timesteps) * 0.02)
        self.query = nn.Conv2d(width, width, kernel_size=1)
        self.key = nn.Conv3d(width, width, kernel_size=1, bias=False)  # a bias would add the same to all timesteps
        self.value = nn.Conv3d(width, width, kernel_size=1)
        self.expand = zero_projection(width, channels)

    def forward(self, layer: Tensor) -> Tensor:
        steps = self.reduce(layer_norm(layer).transpose(1, 2)) + self.positions[:, :, None, None]  # (B, width, T, h, w)
        asked = self.query(steps.mean(2)).unsqueeze(2)
        scores = (asked * self.key(steps)).sum(1, keepdim=True) * steps.shape[1] ** -0.5
        answer = (scores.softmax(dim=2) * self.value(steps)).sum(2)
        found: Tensor = self.expand(F.gelu(answer)) * spread(layer.mean(1))
        return found
