"""How features are made from tapped blocks, with what calibration images have said."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ditf_probe.backbones.base import Norm, TappedBlock
from ditf_probe.errors import InputError
from ditf_probe.features.calibration import Calibration, calibrate, fit_mean, make_features
from ditf_probe.features.channels import ChannelPick, picked_channels
from ditf_probe.features.normalisation import FittedNorm, check_shrinkage, deviations, whitening_matrix
from ditf_probe.features.settings import FITTED, Discard, Modulate, PositionDebias, check_channels, needs_calibration


class Recipes:
    """Makes features in any of the ways that `FeatureSettings` names.

    Args:
        blocks: The blocks that there are features of.
        width_of: Block index to number of channels.
        massive_channels: As in `FeatureSettings`.
        massive_ratio: As in `FeatureSettings`.
        pick: Which channels are discarded where nothing else is asked for.
        shrinkage: As `whiten_shrinkage` in `FeatureSettings`.

    Attributes:
        calibration: Set by `calibrate` or `use`.

    Raises:
        InputError: A value out of range, or channels that a block does not have.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        width_of: Callable[[int], int],
        massive_channels: Literal["auto"] | Sequence[int],
        massive_ratio: float,
        pick: ChannelPick,
        shrinkage: float,
    ) -> None:
        if not massive_ratio > 0:
            raise InputError("massive_ratio", massive_ratio, "use a positive number, such as 100")
        check_shrinkage(shrinkage)
        width = min(map(width_of, blocks))
        self.massive_channels = check_channels(massive_channels, width)
        if pick.count is not None and pick.count > width:
            raise InputError("massive_count", pick.count, f"use 0 to {width} channels")
        self.blocks, self.width_of = list(blocks), width_of
        self.massive_ratio, self.pick, self.shrinkage = massive_ratio, pick, shrinkage
        self.calibration: Calibration | None = None
        self._norms: dict[tuple[int, Modulate, tuple[int, ...], torch.device], FittedNorm] = {}
        if self.massive_channels != "auto":
            for block in self.blocks:
                self.discarded(block)

    def needs_calibration(
        self, modulation: Modulate, discard: Discard, position_debias: PositionDebias, pick: ChannelPick | None = None
    ) -> bool:
        """Whether features of a kind need `calibrate` first."""
        looked_for = self.massive_channels == "auto" and (self.pick if pick is None else pick).count != 0
        return needs_calibration(modulation, discard if looked_for else "none", position_debias)

    def calibrate(
        self, batches: Iterable[dict[int, TappedBlock]], modulations: Collection[Modulate] = ()
    ) -> Calibration:
        """Learns from tapped blocks of calibration images; see `calibration.calibrate`."""
        given = None if self.massive_channels == "auto" else list(self.massive_channels)
        found = calibrate(batches, given, self.massive_ratio, self.pick, modulations)
        self.use(found)
        return found

    def use(self, found: Calibration) -> None:
        """Takes what a calibration found, and forgets what was made of an earlier one."""
        self.calibration = found
        self._norms.clear()

    def discarded(self, block: int, pick: ChannelPick | None = None) -> list[int]:
        """The channels of a block that are discarded; empty where there are none.

        Args:
            block: Its index.
            pick: In place of the own one.

        Raises:
            InputError: "auto" before `calibrate`, or the block has not so many.
        """
        pick, width = self.pick if pick is None else pick, self.width_of(block)
        if self.massive_channels != "auto":
            return picked_channels(pick, self.massive_channels, None, width, block)
        if pick.count == 0:
            return []
        known = self.calibration
        if known is None:
            raise InputError("massive_channels", "auto", "call extractor.calibrate(images) first, or give the indices")
        return picked_channels(pick, known.massive_channels[block], known.magnitudes[block], width, block)

    def make(
        self,
        index: int,
        block: TappedBlock,
        modulation: Modulate,
        discard: Discard,
        pick: ChannelPick | None = None,
        per_timestep: bool = False,
    ) -> Tensor:
        """Features `(B, C, h, w)` float32 of a tapped block, or `(B, T, C, h, w)` per timestep.

        Raises:
            InputError: What the recipe needs `calibrate` for, or the block has no AdaLN.
        """
        channels = self.discarded(index, pick) if discard != "none" else []
        norm = None
        if modulation in FITTED:
            before = tuple(channels) if discard == "pre_norm" else ()
            norm = self._norm(index, modulation, before, block.hidden_states.device)
        return make_features(block, modulation, discard, channels, norm, per_timestep)

    def position_mean(
        self, index: int, modulation: Modulate, discard: Discard, pick: ChannelPick | None, grid: tuple[int, int]
    ) -> Tensor:
        """The mean feature `(C, h, w)` over calibration images at each position of a grid, on the CPU.

        Raises:
            InputError: Before `calibrate`, or for channels that it did not leave out.
        """
        if self.calibration is None:
            raise InputError("position_debias", "mean", "call extractor.calibrate(images) first")
        means = self.calibration.position_means
        if modulation in FITTED:  # they are affine, so that the mean is made like a feature
            raw = means["none", "none"][index]
            tokens = TappedBlock(raw.flatten(1).T[None], None, None, None, Norm(), (raw.shape[1], raw.shape[2]))
            return fit_mean(self.make(index, tokens, modulation, discard, pick)[0], grid)
        if discard != "none" and pick not in (None, self.pick):
            remedy = f"was calibrated without the channels of {self.pick}, make another extractor for {pick}"
            raise InputError("position_debias", "mean", remedy)
        return fit_mean(means[modulation, discard][index], grid)

    @property
    def knows_massive_channels(self) -> bool:
        """Whether they are given or calibrated."""
        return self.massive_channels != "auto" or self.calibration is not None

    def settings(self) -> dict[str, Any]:
        """Every setting that changes a number, as plain JSON values, with what calibration found."""
        automatic, known = self.massive_channels == "auto", self.knows_massive_channels
        return {
            "massive_channels": {str(b): self.discarded(b) for b in self.blocks} if known else "auto, not calibrated",
            "massive_ratio": self.massive_ratio if automatic else None,
            "massive_count": self.pick.count,
            "channel_choice": self.pick.kind,
            "channel_seed": self.pick.seed,
            "whiten_shrinkage": self.shrinkage,
            "calibration_images": None if self.calibration is None else self.calibration.num_images,
        }

    def _norm(self, index: int, modulation: Modulate, without: tuple[int, ...], device: torch.device) -> FittedNorm:
        """The fitted normalisation of a block whose stream lacks some channels, made once."""
        known = self.calibration
        if known is None or index not in known.moments:
            remedy = f"call extractor.calibrate(images, modulations=[{modulation!r}]) first"
            raise InputError("modulation", modulation, remedy)
        key = index, modulation, without, device
        if key not in self._norms:
            found = known.moments[index].without(without)
            factor = deviations(found) if modulation == "standardise" else whitening_matrix(found, self.shrinkage)
            norm = FittedNorm(found.mean.float(), factor.float())
            self._norms[key] = replace(norm, mean=norm.mean.to(device), factor=norm.factor.to(device))
        return self._norms[key]
