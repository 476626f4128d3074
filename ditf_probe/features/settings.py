"""The settings of a feature extractor as plain values, for configuration files and records."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ditf_probe.backbones.base import Backbone, ModulationCondition, Tap
from ditf_probe.backbones.checks import check_blocks
from ditf_probe.errors import InputError, check_choice
from ditf_probe.features.channels import ChannelKind, ChannelPick
from ditf_probe.geometry import WHOLE_CANVAS, Filter, Mode, Transform, fit, prepare_image

Modulate = Literal["none", "layer_norm", "rms_norm", "standardise", "whiten", "adaln"]
Discard = Literal["none", "pre_norm", "post_adaln"]
PositionDebias = Literal["none", "mean", "svd"]
FITTED: tuple[Modulate, ...] = ("standardise", "whiten")
"""Normalisations that calibration images are needed for; see `features.normalisation`."""


@dataclass(frozen=True)
class FeatureSettings:
    """How features are made; `FeatureExtractor(backbone, **asdict(settings))`.

    Attributes:
        blocks: Flat block indices.
        timestep: Noise level, 0 (clean) to 1000; of several, features are the mean.
        tap: "attention" or "mlp": before which AdaLN; or "query", "key", "value".
        modulation: "none" (raw stream), "layer_norm" (the block's own norm alone), "rms_norm", "adaln"; or, fitted to
            calibration images, "standardise" (every channel on its own) or "whiten" (and decorrelated).
        discard: "none", "pre_norm" (before the modulation, reference code) or "post_adaln" (after it, paper).
        massive_channels: "auto" (calibrated) or the indices, the same for every block.
        massive_ratio: Auto: mean magnitude of a massive channel over the median magnitude.
        massive_count: Discard so many channels, those of the largest mean magnitude over calibration images; None
            discards the massive channels.
        channel_choice: "massive"; or "random", a control: as many channels that are not massive.
        channel_seed: Of the random ones.
        whiten_shrinkage: How far correlations are shrunk towards zero before whitening, above 0 to 1 (standardise).
        ensemble: Noise draws per image.
        seed: Seed of the noise.
        image_size: Size that images are brought to, as in `geometry.fit`; None keeps their own.
        resize: "stretch", "keep_aspect", "pad", "pad_end", "letterbox" or "letterbox_end", as in `geometry.fit`.
        multiple: Sides become multiples of this; None is the stride of the backbone.
        filter: PIL filter of the resize.
        padding: Grey level of what pads an image, 0 (black) to 1 (white).
        position_debias: "none"; "mean": subtract the mean over calibration images at each position; or "svd": project
            out what the features of noise images have in common at each position (INSID3), which needs no data.
        debias_components: Number of directions that "svd" projects out.
        debias_images: Number of noise images of "svd", run once for every size of image.
        modulation_condition: Shift and scale from timestep and condition ("t+c"), or from one of them ("t", "c").
    """

    blocks: list[int]
    timestep: int | list[int]
    tap: Tap = "mlp"
    modulation: Modulate = "adaln"
    discard: Discard = "none"
    massive_channels: Literal["auto"] | list[int] = "auto"
    massive_ratio: float = 100.0
    massive_count: int | None = None
    channel_choice: ChannelKind = "massive"
    channel_seed: int = 0
    whiten_shrinkage: float = 0.1
    ensemble: int = 1
    seed: int = 0
    image_size: int | list[int] | None = None
    resize: Mode = "stretch"
    multiple: int | None = None
    filter: Filter = "bicubic"
    padding: float = 0.0
    position_debias: PositionDebias = "none"
    debias_components: int = 20
    debias_images: int = 4
    modulation_condition: ModulationCondition = "t+c"

    @property
    def pick(self) -> ChannelPick:
        """The channels that are discarded."""
        return ChannelPick(self.massive_count, self.channel_choice, self.channel_seed)

    @property
    def needs_calibration(self) -> bool:
        """As the function `needs_calibration` says."""
        return needs_calibration(self.modulation, self.discard, self.position_debias)


@dataclass(frozen=True)
class SizeRule:
    """Brings images to the size of the model; small enough to be sent to the workers of a loader.

    Attributes:
        image_size: As in `geometry.fit`.
        resize: As in `geometry.fit`.
        multiple: As in `geometry.fit`.
        filter: Name of a PIL filter.
        padding: As in `geometry.prepare_image`.
    """

    image_size: int | Sequence[int] | None
    resize: Mode
    multiple: int
    filter: Filter
    padding: float = 0.0

    def settings(self) -> dict[str, Any]:
        """The rule as plain JSON values."""
        size = self.image_size
        return asdict(self) | {"image_size": list(size) if isinstance(size, Sequence) else size}

    @property
    def whole_canvas(self) -> bool:
        """Whether features are matched with those of the padding, which cannot be cut off."""
        return self.resize in WHOLE_CANVAS

    def transform(self, size: tuple[int, int]) -> Transform:
        """What becomes of an image of (height, width)."""
        return fit(size, self.image_size, self.resize, self.multiple)

    def __call__(self, image: Tensor) -> Tensor:
        """From `(3, H, W)` uint8 to `(3, h, w)` float32 in [0, 1]."""
        if image.ndim != 3:
            raise InputError("image", f"{tuple(image.shape)} {image.dtype}", "give a (3, H, W) uint8 image")
        return prepare_image(image, self.transform((image.shape[1], image.shape[2])), self.filter, self.padding)

    def batch(self, images: Tensor) -> Tensor:
        """Brings `(B, 3, H, W)` in [0, 1] to size, after rounding to 8 bits; unchanged where it has that size."""
        if self.image_size is None or images.ndim != 4 or not images.is_floating_point():
            return images  # the backbone refuses what is no batch of images
        size = (images.shape[2], images.shape[3])
        if self.transform(size).canvas == size:
            return images
        if not bool(images.isfinite().all()):
            raise InputError("images", "NaN or infinity", "give finite values in [0, 1]")
        pixels = (images * 255).round().clamp(0, 255).to("cpu", torch.uint8)
        return torch.stack([self(image) for image in pixels]).to(images.device)


def check_tap(backbone: Backbone, blocks: Sequence[int], tap: Tap) -> list[int]:
    """Block indices from 0 of blocks that all have the tap.

    Raises:
        InputError: One is out of range, or lacks the tap.
    """
    found = check_blocks(blocks, backbone.num_blocks)
    for block in found:
        if tap not in backbone.taps(block):
            reason = "has one AdaLN only" if tap == "mlp" else "does not have it"
            raise InputError(
                "tap", tap, f"block {block} of {backbone.name} {reason}, use {', '.join(backbone.taps(block))}"
            )
    return found


def check_recipe(modulation: str, discard: str, position_debias: str) -> None:
    """How features are made from a stream.

    Raises:
        InputError: An unknown choice.
    """
    check_choice("modulation", modulation, Modulate)
    check_choice("discard", discard, Discard)
    check_choice("position_debias", position_debias, PositionDebias)


def needs_calibration(modulation: Modulate, discard: Discard, position_debias: PositionDebias) -> bool:
    """Whether features may need what only calibration images can tell: not where `massive_channels` says it all."""
    return discard != "none" or position_debias == "mean" or modulation in FITTED


def check_channels(channels: Literal["auto"] | Sequence[int], width: int) -> Literal["auto"] | list[int]:
    """The word auto, or channel indices in ascending order.

    Raises:
        InputError: Another word, or an index out of range.
    """
    if isinstance(channels, str):
        if channels != "auto":
            raise InputError("massive_channels", channels, "use auto or a list of channel indices")
        return "auto"
    for channel in channels:
        if not 0 <= channel < width:
            raise InputError("massive_channels", channel, f"use indices from 0 to {width - 1}")
    return sorted(set(channels))


def check_multiple(multiple: int, stride: int) -> int:
    """A multiple of pixels that keeps tokens whole.

    Raises:
        InputError: It is no multiple of the stride.
    """
    if multiple < 1 or multiple % stride:
        raise InputError("multiple", multiple, f"use a multiple of the stride of the backbone, {stride} pixels")
    return multiple
