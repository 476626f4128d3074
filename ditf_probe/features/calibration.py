"""What calibration images say: which channels are massive, and what a position looks like on average."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.errors import InputError
from ditf_probe.features.channels import MASSIVE, ChannelPick, mean_magnitudes, picked_channels
from ditf_probe.features.modulation import discard_channels, find_massive_channels, modulate
from ditf_probe.features.normalisation import FittedNorm, Moments, moments
from ditf_probe.features.settings import FITTED, Discard, Modulate

Recipe = tuple[Modulate, Discard]
# Those of fitted normalisations follow from the means of the raw stream, because they are affine.
_RECIPES: tuple[Recipe, ...] = tuple(
    (modulation, discard)
    for modulation in ("none", "layer_norm", "rms_norm", "adaln")
    for discard in ("none", "pre_norm", "post_adaln")
)


@dataclass(frozen=True)
class Calibration:
    """Result of `FeatureExtractor.calibrate`.

    Attributes:
        num_images: Number of calibration images.
        massive_channels: Block to its massive channels; may be empty.
        magnitudes: Block to the mean magnitude of each channel, `(C,)` float64.
        position_means: (modulation, discard) to block to the mean feature `(C, h, w)` at each position, with the
            channels discarded that the extractor picks.
        moments: Block to what fitted normalisations are made from; empty where none was asked for.
    """

    num_images: int
    massive_channels: dict[int, list[int]]
    magnitudes: dict[int, Tensor]
    position_means: dict[Recipe, dict[int, Tensor]]
    moments: dict[int, Moments]


def make_features(
    tapped: TappedBlock,
    modulation: Modulate,
    discard: Discard,
    channels: Sequence[int],
    fitted: FittedNorm | None = None,
    per_timestep: bool = False,
) -> Tensor:
    """From a tapped block to its feature map, float32 throughout.

    Args:
        tapped: Stream and modulation of a batch; features of several timesteps are averaged.
        modulation: As in `FeatureSettings`.
        discard: "none", "pre_norm" or "post_adaln": before or after the modulation, whichever it is.
        channels: The channels to discard.
        fitted: The normalisation of "standardise" and "whiten", made without `channels` where those go before it.
        per_timestep: Give the features of each timestep in place of their mean.

    Returns:
        `(B, C, h, w)` float32, or `(B, T, C, h, w)` per timestep, T = 1 where there is one.

    Raises:
        InputError: "adaln" where the model has neither shift nor scale, or a fitted modulation without `fitted`.
    """
    if tapped.hidden_states.ndim == 4:
        steps = tapped.hidden_states.shape[1]
        maps = make_features(tapped.map(lambda x: x.flatten(0, 1)), modulation, discard, channels, fitted)
        maps = maps.reshape(-1, steps, *maps.shape[1:])
        return maps if per_timestep else maps.mean(1)
    x = tapped.hidden_states.float()
    if discard == "pre_norm":
        x = discard_channels(x, channels)
    x = _normalised(x, tapped, modulation, fitted)
    if discard == "post_adaln":
        x = discard_channels(x, channels)
    maps = x.transpose(1, 2).reshape(len(x), -1, *tapped.grid)
    return maps[:, None] if per_timestep else maps


def _normalised(x: Tensor, tapped: TappedBlock, modulation: Modulate, fitted: FittedNorm | None) -> Tensor:
    norm = tapped.norm
    if modulation == "none":
        return x
    if modulation in FITTED:
        if fitted is None:
            raise InputError("modulation", modulation, "call extractor.calibrate(images) first")
        return fitted(x)
    if modulation != "adaln":
        return modulate(x, None, None, norm=norm.kind if modulation == "layer_norm" else "rms_norm", eps=norm.eps)
    if tapped.shift is None and tapped.scale is None:
        raise InputError("modulation", modulation, "this backbone has no AdaLN here, use none or layer_norm")
    return modulate(x, tapped.shift, tapped.scale, norm=norm.kind, eps=norm.eps)


def fit_mean(mean: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map of position means `(C, h, w)` on another grid (bilinear over the whole image)."""
    if tuple(mean.shape[1:]) == grid:
        return mean
    return F.interpolate(mean[None], size=grid, mode="bilinear", align_corners=False)[0]


def calibrate(
    batches: Iterable[dict[int, TappedBlock]],
    massive_channels: Sequence[int] | None,
    ratio: float,
    pick: ChannelPick = MASSIVE,
    modulations: Collection[Modulate] = (),
) -> Calibration:
    """Massive channels, position means and what fitted normalisations need, from the blocks of calibration images.

    The streams are held in CPU memory meanwhile, because the median of the rule needs all of them. Statistics are over
    all tokens, those of several timesteps alike.

    Args:
        batches: Tapped blocks per batch of images; grids may differ between batches.
        massive_channels: The channels where they are given, None to look for them in each block.
        ratio: As in `find_massive_channels`.
        pick: The channels that position means are made without.
        modulations: What will be asked for, so that moments are computed where it is "standardise" or "whiten".

    Raises:
        InputError: There are no images, or not so many channels as the pick says.
    """
    held = [{index: block.map(lambda x: x.to("cpu", copy=True)) for index, block in batch.items()} for batch in batches]
    if not held:
        raise InputError("images", "no batches", "give at least one calibration image")
    channels: dict[int, list[int]] = {}
    strengths: dict[int, Tensor] = {}
    means: dict[Recipe, dict[int, Tensor]] = {recipe: {} for recipe in _RECIPES}
    fitted: dict[int, Moments] = {}
    for index in held[0]:
        blocks = [batch[index] for batch in held]
        tokens = torch.cat([block.hidden_states.flatten(0, -2) for block in blocks])
        found = find_massive_channels(tokens[None], ratio) if massive_channels is None else list(massive_channels)
        channels[index], strengths[index] = found, mean_magnitudes(tokens)
        known = strengths[index] if massive_channels is None else None
        discarded = picked_channels(pick, found, known, tokens.shape[-1], index)
        for recipe in _recipes(blocks[0]):
            means[recipe][index] = _position_mean(blocks, recipe, discarded)
        if not set(FITTED).isdisjoint(modulations):
            fitted[index] = moments([block.hidden_states for block in blocks], covariance="whiten" in modulations)
    count = sum(len(next(iter(batch.values())).hidden_states) for batch in held)
    return Calibration(count, channels, strengths, means, fitted)


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
