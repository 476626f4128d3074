"""Images to DiTF features: prepare, run the backbone, modulate."""

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from ditf_probe.backbones.base import Backbone, ModulationCondition, Tap, TappedBlock
from ditf_probe.backbones.checks import check_condition, check_timesteps
from ditf_probe.errors import InputError, check_choice
from ditf_probe.features.batches import with_ids
from ditf_probe.features.calibration import Calibration
from ditf_probe.features.channels import ChannelKind, ChannelPick
from ditf_probe.features.debias import PositionBasis, project_out
from ditf_probe.features.recipes import Recipes
from ditf_probe.features.settings import (
    Discard,
    Modulate,
    PositionDebias,
    SizeRule,
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
        modulation: "none" (raw stream), "layer_norm" (the block's own norm alone), "rms_norm", "adaln", or what is
            fitted by `calibrate`: "standardise" or "whiten" (`features.normalisation`).
        discard: "none", "pre_norm" (zero the massive channels before the norm, as the reference code does) or
            "post_adaln" (after the modulation, whichever it is, as the paper says).
        massive_channels: Indices for every block, or "auto": found by `calibrate`.
        massive_ratio: Auto: mean magnitude of a massive channel over the median magnitude.
        massive_count, channel_choice, channel_seed, whiten_shrinkage: As in `FeatureSettings`.
        ensemble: Noise draws per image; stream, shift and scale are averaged before anything else.
        seed: Seed of the noise, beside image id, draw and timestep.
        image_size: Size that images are brought to: one number or (height, width); None keeps their own.
        resize: As in `geometry.fit`; after "pad" and "pad_end" the caller crops (`geometry.crop_features`).
        multiple: Sides become multiples of this; the stride of the backbone by default.
        filter, padding: As in `FeatureSettings`.
        position_debias, debias_components, debias_images: As in `FeatureSettings`; see also `features.debias`.
        modulation_condition: Shift and scale from timestep and condition ("t+c"), or from one of them ("t", "c"), where
            the backbone can take them apart. The pass itself always has both.

    Attributes:
        blocks: Block indices from 0.
        recipes: What is done with a tapped block, and what calibration images have said.

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
        massive_count: int | None = None,
        channel_choice: ChannelKind = "massive",
        channel_seed: int = 0,
        whiten_shrinkage: float = 0.1,
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
        self.backbone = backbone
        self.blocks = check_tap(backbone, blocks, tap)
        self.timestep = timestep if isinstance(timestep, int) else list(self.timesteps)
        self.tap, self.modulation_condition = tap, modulation_condition
        self.modulation, self.discard, self.position_debias = modulation, discard, position_debias
        pick = ChannelPick(massive_count, channel_choice, channel_seed)
        self.recipes = Recipes(
            self.blocks, backbone.channels_at, massive_channels, massive_ratio, pick, whiten_shrinkage
        )
        self.ensemble, self.seed = ensemble, seed
        stride = backbone.common_stride(self.blocks)
        step = check_multiple(stride if multiple is None else multiple, stride)
        self.size_rule = SizeRule(image_size, resize, step, filter, padding)
        self._basis = PositionBasis(self.tapped, debias_components, debias_images, seed)

    def transform(self, size: tuple[int, int]) -> Transform:
        """What preparing does to an image of (height, width), for its keypoints and for cropping."""
        return self.size_rule.transform(size)

    def prepare(self, image: Tensor) -> Tensor:
        """Brings an image to the size of the model: `(3, H, W)` uint8 to `(3, h, w)` float32 in [0, 1]."""
        return self.size_rule(image)

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

    def features(
        self,
        tapped: dict[int, TappedBlock],
        *,
        modulation: Modulate | None = None,
        discard: Discard | None = None,
        position_debias: PositionDebias | None = None,
        pick: ChannelPick | None = None,
        per_timestep: bool = False,
    ) -> dict[int, Tensor]:
        """Features from tapped blocks.

        Args:
            tapped: From `tapped` or a bank.
            modulation: In place of the extractor's own.
            discard: In place of the extractor's own.
            position_debias: In place of the extractor's own.
            pick: Channels to discard in place of the extractor's own.
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
            maps = self.recipes.make(index, block, modulation, discard, pick, per_timestep)
            if position_debias == "mean":
                mean = self.recipes.position_mean(index, modulation, discard, pick, block.grid)
                maps = maps - mean.to(maps.device)
            elif position_debias == "svd":
                make = partial(self.recipes.make, modulation=modulation, discard=discard, pick=pick)
                recipe, stride = (modulation, discard, pick), self.backbone.stride_at(index)
                basis = self._basis.at(index, block.grid, recipe, make, stride)
                maps = project_out(maps, basis)
            found[index] = maps
        return found

    @property
    def calibration(self) -> Calibration | None:
        """What `calibrate` found, or what another calibration with the same settings did; None before."""
        return self.recipes.calibration

    @calibration.setter
    def calibration(self, found: Calibration) -> None:
        self._basis.clear()
        self.recipes.use(found)

    def discarded(self, block: int, pick: ChannelPick | None = None) -> list[int]:
        """The channels of a block that are discarded; see `Recipes.discarded`."""
        return self.recipes.discarded(block, pick)

    def calibrate(
        self,
        images: Tensor | Iterable[Tensor],
        image_ids: Sequence[str] | None = None,
        modulations: Collection[Modulate] = (),
    ) -> Calibration:
        """Finds massive channels and the mean feature of each position, and fits normalisations.

        Args:
            images: Training images as in `__call__`, or batches of them. Their streams stay in CPU memory meanwhile.
            image_ids: Seeds of the noise, over all batches in order; None hashes the pixels.
            modulations: What features will be asked for beside the extractor's own modulation.

        Returns:
            What was found, also kept in `calibration`.
        """
        batches = with_ids([images] if isinstance(images, Tensor) else images, image_ids)
        tapped = (self.tapped(self.size_rule.batch(batch), ids) for batch, ids in batches)
        return self.calibrate_tapped(tapped, modulations)

    def calibrate_tapped(
        self, batches: Iterable[dict[int, TappedBlock]], modulations: Collection[Modulate] = ()
    ) -> Calibration:
        """Calibrates on blocks that are tapped already, for example from a bank."""
        self._basis.clear()
        return self.recipes.calibrate(batches, {self.modulation, *modulations})

    def settings(self) -> dict[str, Any]:
        """Every setting that changes a number, as plain JSON values, with what calibration found."""
        return {
            "backbone": self.backbone.settings(),
            "blocks": list(self.blocks),
            "timestep": self.timestep,
            "tap": self.tap,
            "modulation_condition": self.modulation_condition,
            "modulation": self.modulation,
            "discard": self.discard,
            **self.recipes.settings(),
            "ensemble": self.ensemble,
            "seed": self.seed,
            **self.size_rule.settings(),
            "position_debias": self.position_debias,
            "debias_components": self._basis.components,
            "debias_images": self._basis.images,
        }
