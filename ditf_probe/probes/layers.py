"""What heads are made of: how they read their input, how they join blocks, and the parts that several of them share."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditf_probe.errors import InputError
from ditf_probe.probes.base import checked_count

EPS = 1e-6


def select_layers(
    features: Mapping[int, Tensor], blocks: Sequence[int], channels: int, num_timesteps: int | None = None
) -> list[Tensor]:
    """The features of the given blocks, in their order, on one grid.

    Where the grids of blocks differ, all are brought to the finest (bilinear, corners not aligned), as in
    `features.fusion`.

    Args:
        features: Block index to `(B, C, h, w)`, or to `(B, T, C, h, w)` with `num_timesteps`.
        blocks: Which of them.
        channels: C.
        num_timesteps: T, for heads that take the features of each timestep.

    Raises:
        InputError: A block is missing, or has another width, other axes or another number of timesteps.
    """
    for block in blocks:
        if block not in features:
            raise InputError("features", sorted(features), f"the probe needs block {block}, ask the extractor for it")
        _check_layer(block, features[block], channels, num_timesteps)
    return _on_one_grid([features[block] for block in blocks])


def joined(layers: Sequence[Tensor]) -> Tensor:
    """One descriptor map of the maps of several blocks.

    One map stays as it is. Several are scaled to unit length at every position and concatenated, so that the cosine of
    two descriptors is the mean of the cosines of the blocks: what a zero-shot row that fuses these blocks has.

    Args:
        layers: `(B, C, h, w)` each.

    Returns:
        `(B, C, h, w)` of one, `(B, n C, h, w)` of n.
    """
    if len(layers) == 1:
        return layers[0]
    return torch.cat([F.normalize(at_least_float32(layer), dim=1) for layer in layers], dim=1)


def layer_norm(layer: Tensor) -> Tensor:
    """Zero mean and unit variance over the channels of each token, `(..., C, h, w)`."""
    layer = at_least_float32(layer)
    centred = layer - layer.mean(dim=-3, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=-3, keepdim=True) + EPS)


def spread(layer: Tensor) -> Tensor:
    """Standard deviation over the channels of each token, `(..., C, h, w)` to `(..., 1, h, w)`.

    Branches over normed tokens are multiplied by it, so that they are as large as the features that they are added to,
    and a learning rate means the same whatever the scale of a stream.
    """
    layer = at_least_float32(layer)
    centred = layer - layer.mean(dim=-3, keepdim=True)
    return (centred.square().mean(dim=-3, keepdim=True) + EPS).sqrt()


def at_least_float32(layer: Tensor) -> Tensor:
    """The same in float32 where it is less precise; norms and means are taken in that."""
    return layer if layer.dtype in (torch.float32, torch.float64) else layer.float()


def projection(channels: int, width: int) -> nn.Conv2d:
    """A 1x1 convolution `(B, channels, h, w) -> (B, width, h, w)` with semi-orthogonal weights and zero bias.

    Raises:
        InputError: A width below 1.
    """
    layer = nn.Conv2d(checked_count("channels", channels), checked_count("width", width), kernel_size=1)
    nn.init.orthogonal_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def zero_projection(channels: int, width: int, bias: bool = True) -> nn.Conv2d:
    """A 1x1 convolution whose output is zero until it is trained."""
    layer = nn.Conv2d(channels, width, kernel_size=1, bias=bias)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Bottleneck(nn.Module):
    """The branch of a residual bottleneck, 1x1, 3x3, 1x1 (He et al., CVPR 2016, figure 5), zero until it is trained.

    Tokens pass a layer norm first, and the branch gets their spread back at its end (see `spread`); GELU stands between
    the convolutions. The map is continued beyond its border by its outermost tokens: zeros there would tell the head
    where the border is.

    Args:
        channels: Width of the input.
        hidden: Width of the 3x3 convolution.
        width: Width of the output.
    """

    def __init__(self, channels: int, hidden: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, kernel_size=1)
        self.mix = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, padding_mode="replicate")
        self.expand = zero_projection(hidden, width)

    def forward(self, layer: Tensor) -> Tensor:
        """From `(B, channels, h, w)` to `(B, width, h, w)`."""
        hidden = F.gelu(self.mix(F.gelu(self.reduce(layer_norm(layer)))))
        found: Tensor = self.expand(hidden) * spread(layer)
        return found


def _check_layer(block: int, layer: Tensor, channels: int, num_timesteps: int | None) -> None:
    axes = "(B, C, h, w)" if num_timesteps is None else "(B, T, C, h, w)"
    if layer.ndim != (4 if num_timesteps is None else 5):
        remedy = f"the probe takes {axes}, ask for features with per_timestep={num_timesteps is not None}"
        raise InputError("features", f"{tuple(layer.shape)} at block {block}", remedy)
    if layer.shape[-3] != channels:
        found = f"{layer.shape[-3]} channels at block {block}"
        raise InputError("features", found, f"the probe was made for {channels}, use its backbone")
    if num_timesteps is not None and layer.shape[1] != num_timesteps:
        found = f"{layer.shape[1]} timesteps at block {block}"
        raise InputError("features", found, f"the probe was made for {num_timesteps} (num_timesteps), name as many")


def _on_one_grid(layers: list[Tensor]) -> list[Tensor]:
    grids = [(layer.shape[-2], layer.shape[-1]) for layer in layers]
    if all(grid == grids[0] for grid in grids):
        return layers
    finest = max(grids, key=lambda grid: grid[0] * grid[1])
    return [layer if grid == finest else _resized(layer, finest) for layer, grid in zip(layers, grids, strict=True)]


def _resized(layer: Tensor, grid: tuple[int, int]) -> Tensor:
    maps = layer.flatten(0, -4)
    found = F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
    return found.reshape(*layer.shape[:-2], *grid)
