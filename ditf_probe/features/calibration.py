"""What calibration images say: which channels are massive, and what a position looks like on average."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.errors import InputError
from ditf_probe.features.modulation import discard_channels, find_massive_channels, modulate
from ditf_probe.features.settings import Discard, Modulate

Recipe = tuple[Modulate, Discard]
_RECIPES: tuple[Recipe, ...] = tuple(
    (modulation, discard)
    for modulation in ("none", "layer_norm", "adaln")
    for discard in ("none", "pre_norm", "post_adaln")
)


@dataclass(frozen=True)
class Calibration:
    """Result of `FeatureExtractor.calibrate`.

    Attributes:
        num_images: Number of calibration images.
        massive_channels: Block to its massive channels; may be empty.
        position_means: (modulation, discard) to block to the mean feature `(C, h, w)` at each position.
    """

    num_images: int
    massive_channels: dict[int, list[int]]
    position_means: dict[Recipe, dict[int, Tensor]]


def make_features(
    tapped: TappedBlock, modulation: Modulate, discard: Discard, channels: Sequence[int], per_timestep: bool = False
) -> Tensor:
    """From a tapped block to its feature map, float32 throughout.

    Args:
        tapped: Stream and modulation of a batch; features of several timesteps are averaged.
        modulation: "none", "layer_norm" or "adaln".
        discard: "none", "pre_norm" or "post_adaln".
        channels: The massive channels.
        per_timestep: Give the features of each timestep in place of their mean.

    Returns:
        `(B, C, h, w)` float32, or `(B, T, C, h, w)` per timestep, T = 1 where there is one.

    Raises:
        InputError: "adaln" where the model has neither shift nor scale.
    """
    if tapped.hidden_states.ndim == 4:
        steps = tapped.hidden_states.shape[1]
        maps = make_features(tapped.map(lambda x: x.flatten(0, 1)), modulation, discard, channels)
        maps = maps.reshape(-1, steps, *maps.shape[1:])
        return maps if per_timestep else maps.mean(1)
    x = tapped.hidden_states.float()
    if discard == "pre_norm":
        x = discard_channels(x, channels)
    if modulation == "layer_norm":
        x = modulate(x, None, None, norm=tapped.norm.kind, eps=tapped.norm.eps)
    elif modulation == "adaln":
        if tapped.shift is None and tapped.scale is None:
            raise InputError("modulation", modulation, "this backbone has no AdaLN here, use none or layer_norm")
        x = modulate(x, tapped.shift, tapped.scale, norm=tapped.norm.kind, eps=tapped.norm.eps)
    if discard == "post_adaln":
        x = discard_channels(x, channels)
    maps = x.transpose(1, 2).reshape(len(x), -1, *tapped.grid)
    return maps[:, None] if per_timestep else maps


def fit_mean(mean: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map of position means `(C, h, w)` on another grid (bilinear over the whole image)."""
    if tuple(mean.shape[1:]) == grid:
        return mean
    return F.interpolate(mean[None], size=grid, mode="bilinear", align_corners=False)[0]


def calibrate(
    batches: Iterable[dict[int, TappedBlock]],
    massive_channels: Sequence[int] | None,
    ratio: float,
) -> Calibration:
    """Massive channels and position means from the tapped blocks of calibration images.

    The streams are held in CPU memory meanwhile, because the median of the rule needs all of them.

    Args:
        batches: Tapped blocks per batch of images; grids may differ between batches.
        massive_channels: The channels where they are given, None to look for them in each block.
        ratio: As in `find_massive_channels`.

    Raises:
        InputError: There are no images.
    """
    held = [{index: block.map(lambda x: x.to("cpu", copy=True)) for index, block in batch.items()} for batch in batches]
    if not held:
        raise InputError("images", "no batches", "give at least one calibration image")
    channels: dict[int, list[int]] = {}
    means: dict[Recipe, dict[int, Tensor]] = {recipe: {} for recipe in _RECIPES}
    for index in held[0]:
        blocks = [batch[index] for batch in held]
        channels[index] = _massive(blocks, ratio) if massive_channels is None else list(massive_channels)
        for recipe in _recipes(blocks[0]):
            means[recipe][index] = _position_mean(blocks, recipe, channels[index])
    return Calibration(sum(len(next(iter(batch.values())).hidden_states) for batch in held), channels, means)


def _massive(blocks: Sequence[TappedBlock], ratio: float) -> list[int]:
    return find_massive_channels(torch.cat([block.hidden_states.flatten(0, -2) for block in blocks])[None], ratio)


def _recipes(block: TappedBlock) -> list[Recipe]:
    plain = block.shift is None and block.scale is None
    return [recipe for recipe in _RECIPES if not (plain and recipe[0] == "adaln")]


def _position_mean(blocks: Sequence[TappedBlock], recipe: Recipe, channels: Sequence[int]) -> Tensor:
    """Mean over images on the grid of the first batch, summed in float64."""
    grid = blocks[0].grid
    total = torch.zeros(blocks[0].hidden_states.shape[-1], *grid, dtype=torch.float64)
    for block in blocks:
        total += fit_mean(make_features(block, *recipe, channels).double().sum(0), grid)
    return (total / sum(len(block.hidden_states) for block in blocks)).float()
