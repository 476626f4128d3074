"""Images to DiTF features: prepare, run the backbone, modulate."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ditf_probe.backbones.base import Backbone, ModulationCondition, Tap, TappedBlock
from ditf_probe.backbones.checks import check_condition, check_timesteps
from ditf_probe.errors import InputError, check_choice
from ditf_probe.features.batches import with_ids
from ditf_probe.features.calibration import Calibration, calibrate, fit_mean, make_features
from ditf_probe.features.debias import PositionBasis, project_out
from ditf_probe.features.settings import (
    Discard,
    Modulate,
    PositionDebias,
    SizeRule,
    check_channels,
    check_multiple,
    check_recipe,
    check_tap,
)
from ditf_probe.geometry import Filter, Mode, Transform


class FeatureExtractor:
    """Frozen DiTF features of chosen blocks at one timestep.

    Args:
        backbone: Where the residual stream comes from.
        blocks: Block indices; negative ones count from the end.
        timestep: Noise level, 0 (clean) to `backbone.num_timesteps`; of several, features are the mean.
        tap: "attention" (before the first AdaLN of a block), "mlp" (before the second), or "query", "key", "value".
        modulation: "none" (raw stream), "layer_norm" (the block's own norm alone) or "adaln".
        discard: "none", "pre_norm" (zero the massive channels before the norm, as the reference code does) or
            "post_adaln" (after the modulation, as the paper says).
        massive_channels: Indices for every block, or "auto": found by `calibrate`.
        massive_ratio: Auto: mean magnitude of a massive channel over the median magnitude.
        ensemble: Noise draws per image; stream, shift and scale are averaged before anything else.
        seed: Seed of the noise, beside image id, draw and timestep.
        image_size: Size that images are brought to: one number or (height, width); None keeps their own.
        resize: As in `geometry.fit`; after "pad" and "pad_end" the caller crops (`geometry.crop_features`).
        multiple: Sides become multiples of this; the stride of the backbone by default.
        filter: PIL filter of the resize.
        padding: Grey level of what pads an image, 0 (black) to 1 (white).
        position_debias: "none"; "mean": subtract the mean over calibration images at each position; or "svd": project
            out what the features of noise images have in common at each position (`features.debias`).
        debias_components: Number of directions that "svd" projects out.
        debias_images: Number of noise images of "svd", run once for every size of image.
        modulation_condition: Shift and scale from timestep and condition ("t+c"), or from one of them ("t", "c"), where
            the backbone can take them apart. The pass itself always has both.

    Attributes:
        blocks: Block indices from 0.
        calibration: Set by `calibrate`.

    Raises:
        InputError: A setting that the backbone does not have.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        blocks: Sequence[int],
        timestep: int | Sequence[int],
        tap: Tap = "mlp",
        modulation: Modulate = "adaln",
        discard: Discard = "none",
        massive_channels: Literal["auto"] | Sequence[int] = "auto",
        massive_ratio: float = 100.0,
        ensemble: int = 1,
        seed: int = 0,
        image_size: int | Sequence[int] | None = None,
        resize: Mode = "stretch",
        multiple: int | None = None,
        filter: Filter = "bicubic",
        padding: float = 0.0,
        position_debias: PositionDebias = "none",
        debias_components: int = 20,
        debias_images: int = 4,
        modulation_condition: ModulationCondition = "t+c",
    ) -> None:
        check_choice("tap", tap, Tap)
        check_recipe(modulation, discard, position_debias)
        check_condition(modulation_condition, backbone.modulation_conditions, backbone.name)
        self.timesteps = check_timesteps(timestep, backbone.num_timesteps)
        if ensemble < 1:
            raise InputError("ensemble", ensemble, "use at least one noise draw")
        if not massive_ratio > 0:
            raise InputError("massive_ratio", massive_ratio, "use a positive number, such as 100")
        self.backbone = backbone
        self.blocks = check_tap(backbone, blocks, tap)
        self.timestep = timestep if isinstance(timestep, int) else list(self.timesteps)
        self.tap, self.modulation_condition = tap, modulation_condition
        self.modulation, self.discard, self.position_debias = modulation, discard, position_debias
        self.massive_channels = check_channels(massive_channels, min(map(backbone.channels_at, self.blocks)))
        self.massive_ratio = massive_ratio
        self.ensemble, self.seed = ensemble, seed
        stride = backbone.common_stride(self.blocks)
        step = check_multiple(stride if multiple is None else multiple, stride)
        self.size_rule = SizeRule(image_size, resize, step, filter, padding)
        self.calibration: Calibration | None = None
        self._basis = PositionBasis(self.tapped, debias_components, debias_images, seed)

    def transform(self, size: tuple[int, int]) -> Transform:
        """What preparing does to an image of (height, width), for its keypoints and for cropping."""
        return self.size_rule.transform(size)

    def prepare(self, image: Tensor) -> Tensor:
        """Brings an image to the size of the model: `(3, H, W)` uint8 to `(3, h, w)` float32 in [0, 1]."""
        return self.size_rule(image)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, image_ids: Sequence[str] | None = None, conditions: Any = None
    ) -> dict[int, Tensor]:
        """Features of a batch of images.

        Args:
            images: `(B, 3, H, W)` in [0, 1]. Used as they are where they have the size that `prepare` gives
                (always with `image_size` None); otherwise resized, after rounding to 8 bits.
            image_ids: Seeds of the noise; None hashes the pixels.
            conditions: Class labels `(B,)`; a string for all images, one per image, or `PromptEmbeddings`; None is
                the null condition. See `Backbone.forward`.

        Returns:
            Block index to `(B, C, h, w)` float32.

        Raises:
            InputError: What the backbone refuses, or a setting that needs `calibrate` first.
        """
        return self.features(self.tapped(self.size_rule.batch(images), image_ids, conditions))

    @torch.no_grad()
    def tapped(
        self, images: Tensor, image_ids: Sequence[str] | None = None, conditions: Any = None
    ) -> dict[int, TappedBlock]:
        """The raw stream and modulation of prepared images; serves any number of `features` calls.

        Args:
            images: `(B, 3, h, w)` in [0, 1], used as they are.
            image_ids: As in `__call__`.
            conditions: As in `__call__`.

        Returns:
            Block index to what stands before its AdaLN, means over the ensemble.
        """
        tapped: dict[int, TappedBlock] = self.backbone(
            images,
            blocks=self.blocks,
            timestep=self.timestep,
            tap=self.tap,
            image_ids=image_ids,
            conditions=conditions,
            ensemble=self.ensemble,
            seed=self.seed,
            **({} if self.modulation_condition == "t+c" else {"modulation_condition": self.modulation_condition}),
        )
        return tapped

    @torch.no_grad()
    def features(
        self,
        tapped: dict[int, TappedBlock],
        *,
        modulation: Modulate | None = None,
        discard: Discard | None = None,
        position_debias: PositionDebias | None = None,
        per_timestep: bool = False,
    ) -> dict[int, Tensor]:
        """Features from tapped blocks.

        Args:
            tapped: From `tapped` or a bank.
            modulation: In place of the extractor's own.
            discard: In place of the extractor's own.
            position_debias: In place of the extractor's own.
            per_timestep: Give the features of each timestep in place of their mean. Debias takes the same from each,
                what it finds in the mean.

        Returns:
            Block index to `(B, C, h, w)` float32; per timestep `(B, T, C, h, w)`, in the order of `timesteps`.

        Raises:
            InputError: Unknown choice, or one that needs `calibrate` first.
        """
        modulation = self.modulation if modulation is None else modulation
        discard = self.discard if discard is None else discard
        position_debias = self.position_debias if position_debias is None else position_debias
        check_recipe(modulation, discard, position_debias)
        found = {}
        for index, block in tapped.items():
            maps = self._made(index, block, modulation, discard, per_timestep)
            if position_debias == "mean":
                maps = maps - fit_mean(self._position_mean(index, modulation, discard), block.grid).to(maps.device)
            elif position_debias == "svd":
                make = partial(self._made, modulation=modulation, discard=discard)
                basis = self._basis.at(index, block.grid, (modulation, discard), make, self.backbone.stride_at(index))
                maps = project_out(maps, basis)
            found[index] = maps
        return found

    @property
    def knows_massive_channels(self) -> bool:
        """Whether they are given or calibrated."""
        return self.massive_channels != "auto" or self.calibration is not None

    def discarded(self, block: int) -> list[int]:
        """The massive channels of a block; empty where there are none.

        Raises:
            InputError: "auto" before `calibrate`.
        """
        if self.massive_channels != "auto":
            return list(self.massive_channels)
        if self.calibration is None:
            raise InputError("massive_channels", "auto", "call extractor.calibrate(images) first, or give the indices")
        return self.calibration.massive_channels[block]

    def calibrate(self, images: Tensor | Iterable[Tensor], image_ids: Sequence[str] | None = None) -> Calibration:
        """Finds massive channels and the mean feature of each position.

        Args:
            images: Training images as in `__call__`, or batches of them. Their streams stay in CPU memory meanwhile.
            image_ids: Seeds of the noise, over all batches in order; None hashes the pixels.

        Returns:
            What was found, also kept in `calibration`.
        """
        batches = with_ids([images] if isinstance(images, Tensor) else images, image_ids)
        return self.calibrate_tapped(self.tapped(self.size_rule.batch(batch), ids) for batch, ids in batches)

    def calibrate_tapped(self, batches: Iterable[dict[int, TappedBlock]]) -> Calibration:
        """Calibrates on blocks that are tapped already, for example from a bank."""
        given = None if self.massive_channels == "auto" else list(self.massive_channels)
        self.calibration = calibrate(batches, given, self.massive_ratio)
        self._basis.clear()
        return self.calibration

    def settings(self) -> dict[str, Any]:
        """Every setting that changes a number, as plain JSON values, with what calibration found."""
        rule, known = self.size_rule, self.knows_massive_channels
        return {
            "backbone": self.backbone.settings(),
            "blocks": list(self.blocks),
            "timestep": self.timestep,
            "tap": self.tap,
            "modulation_condition": self.modulation_condition,
            "modulation": self.modulation,
            "discard": self.discard,
            "massive_channels": {str(b): self.discarded(b) for b in self.blocks} if known else "auto, not calibrated",
            "massive_ratio": self.massive_ratio if self.massive_channels == "auto" else None,
            "calibration_images": None if self.calibration is None else self.calibration.num_images,
            "ensemble": self.ensemble,
            "seed": self.seed,
            "image_size": list(rule.image_size) if isinstance(rule.image_size, Sequence) else rule.image_size,
            "resize": rule.resize,
            "multiple": rule.multiple,
            "filter": rule.filter,
            "padding": rule.padding,
            "position_debias": self.position_debias,
            "debias_components": self._basis.components,
            "debias_images": self._basis.images,
        }

    def _made(
        self, index: int, block: TappedBlock, modulation: Modulate, discard: Discard, per_timestep: bool = False
    ) -> Tensor:
        channels = self.discarded(index) if discard != "none" else []
        return make_features(block, modulation, discard, channels, per_timestep)

    def _position_mean(self, block: int, modulation: Modulate, discard: Discard) -> Tensor:
        if self.calibration is None:
            raise InputError("position_debias", "mean", "call extractor.calibrate(images) first")
        return self.calibration.position_means[modulation, discard][block]
