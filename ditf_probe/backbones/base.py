"""The contract of a frozen backbone: images in, the raw residual stream of chosen blocks out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Literal, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from ditf_probe.errors import InputError

Tap = Literal["attention", "mlp", "query", "key", "value"]
"""Where a block is read: the stream before its first or second AdaLN, or a projection of its attention."""

ModulationCondition = Literal["t+c", "t", "c"]
"""What shift and scale are computed from: timestep and condition, or one of them."""


@dataclass(frozen=True, slots=True)
class Norm:
    """The normalisation inside an AdaLN.

    Attributes:
        kind: "layer_norm" or "rms_norm".
        eps: Added to the variance (to the mean square in RMS norm).
    """

    kind: Literal["layer_norm", "rms_norm"] = "layer_norm"
    eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class TappedBlock:
    """What stands before one sub-layer of one block, image tokens only.

    Several timesteps S come as one more axis behind the first: streams `(B, S, N, C)`, modulations `(B, S, C)`.

    Attributes:
        hidden_states: `(B, N, C)` raw residual stream, N = h * w in row-major order, as the model computed it; or the
            queries, keys or values of all heads, after their norm and before the position encoding.
        shift: `(B, C)`, or None where the model has none.
        scale: `(B, C)`, or None where the model has none; the AdaLN multiplies by 1 + scale.
        gate: `(B, C)`, or None. Never applied to features; its large entries sit on the massive channels.
        norm: The norm between the stream and its modulation.
        grid: (h, w) of the token grid.
    """

    hidden_states: Tensor
    shift: Tensor | None
    scale: Tensor | None
    gate: Tensor | None
    norm: Norm
    grid: tuple[int, int]

    def map(self, change: Callable[[Tensor], Tensor]) -> "TappedBlock":
        """The same block with every tensor changed alike, for example moved, sliced by image or converted."""
        shift, scale, gate = (None if x is None else change(x) for x in (self.shift, self.scale, self.gate))
        return replace(self, hidden_states=change(self.hidden_states), shift=shift, scale=scale, gate=gate)

    @staticmethod
    def join(parts: "Sequence[TappedBlock]", combine: Callable[[list[Tensor]], Tensor]) -> "TappedBlock":
        """Combines taps of one block and one grid tensor by tensor, for example with `torch.cat`."""

        def all_of(name: str) -> Tensor | None:
            found = [getattr(part, name) for part in parts]
            return None if found[0] is None else combine(found)

        stream = combine([part.hidden_states for part in parts])
        return replace(
            parts[0], hidden_states=stream, shift=all_of("shift"), scale=all_of("scale"), gate=all_of("gate")
        )


class Backbone(nn.Module, ABC):
    """A frozen feature backbone.

    Attributes:
        name: Short name for tables.
        num_blocks: Number of blocks; block indices are flat, from 0.
        channels: Width of the residual stream, of the last block where the blocks differ.
        stride: Pixels of the prepared image per token side, the largest where the blocks differ.
        num_timesteps: The last timestep; they run from 0 (clean) to this number, which is 0 for models without noise.
        modulation_conditions: What its shift and scale can be computed from.
        has_adaln: Whether its blocks have a shift and a scale at all.
    """

    name: str
    num_blocks: int
    channels: int
    stride: int
    num_timesteps: int = 1000
    modulation_conditions: tuple[ModulationCondition, ...] = ("t+c",)
    has_adaln: bool = True

    @staticmethod
    def from_model(transformer: nn.Module, vae: nn.Module | None = None, **options: Any) -> "Backbone":
        """Wraps and runs the very model that it is given; nothing is copied.

        Args:
            transformer: A diffusers transformer of a known class, a `UNet2DConditionModel`, or a timm model; set to
                eval mode and frozen.
            vae: Its autoencoder, or None for a model of RGB pixels in [-1, 1].
            **options: Of `ditf_probe.backbones.diffusion.DiffusionBackbone`: name, scheduler, noising,
                class_embedding, prompts, posterior, guidance, max_batch; or of
                `ditf_probe.backbones.unet.DIFTBackbone` or `ditf_probe.backbones.vit.TimmBackbone`.

        Raises:
            InputError: A class that is not known, or parts that do not fit each other.
        """
        if hasattr(transformer, "forward_intermediates"):
            from ditf_probe.backbones.vit import TimmBackbone

            return TimmBackbone(transformer, **options)
        if type(transformer).__name__ == "UNet2DConditionModel":
            from ditf_probe.backbones.unet import DIFTBackbone

            return DIFTBackbone(transformer, vae, **options)
        from ditf_probe.backbones.diffusion import DiffusionBackbone  # diffusers is slow to import

        return DiffusionBackbone(transformer, vae, **options)

    def untrained(self, seed: int = 0) -> "Backbone":
        """A control: the same configuration with its default initialisation.

        Args:
            seed: Seed of the initialisation.

        Raises:
            InputError: The backbone cannot be initialised anew.
        """
        raise InputError("backbone", self.name, f"has no untrained counterpart (seed {seed}), leave that row out")

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever the mode of the module around it."""
        del mode
        return super().train(False)

    def channels_at(self, block: int) -> int:
        """Width of the stream of one block; blocks differ in the stages of a CNN and of a UNet."""
        del block
        return self.channels

    def stride_at(self, block: int) -> int:
        """Pixels of the prepared image per token side at one block."""
        del block
        return self.stride

    def common_channels(self, blocks: Sequence[int]) -> int:
        """The width that several blocks share.

        Raises:
            InputError: Their widths differ.
        """
        widths = {self.channels_at(block) for block in blocks}
        if len(widths) > 1:
            remedy = f"these blocks of {self.name} have {sorted(widths)} channels, name blocks of one width"
            raise InputError("blocks", list(blocks), remedy)
        return widths.pop()

    def common_stride(self, blocks: Sequence[int]) -> int:
        """What the sides of an image must be multiples of, so that the tokens of all these blocks are whole."""
        return math.lcm(*(self.stride_at(block) for block in blocks))

    @abstractmethod
    def taps(self, block: int) -> tuple[Tap, ...]:
        """The taps that a block has; "mlp" is missing where it has one AdaLN only."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything about the backbone that changes a number, as plain JSON values (weights hash included)."""

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        *,
        blocks: Sequence[int],
        timestep: int | Sequence[int],
        tap: Tap = "mlp",
        image_ids: Sequence[str] | None = None,
        conditions: Any = None,
        ensemble: int = 1,
        seed: int = 0,
    ) -> dict[int, TappedBlock]:
        """Runs the frozen model as far as the last requested block.

        Args:
            images: `(B, 3, H, W)` in [0, 1], sides multiples of the common stride of the blocks.
            blocks: Block indices; negative ones count from the end.
            timestep: Noise level, 0 to `num_timesteps`, or several.
            tap: "attention" (the stream before the block's first AdaLN), "mlp" (before the second), "query", "key" or
                "value".
            image_ids: Seeds of the noise; None hashes the pixels of each image.
            conditions: Class labels `(B,)`; a string for all images, one per image, or `PromptEmbeddings`; or None
                for the null condition. Strings need the option `prompts` of a backbone that takes prompts.
            ensemble: Number of noise draws; stream, shift, scale and gate are their means.
            seed: Seed of the noise, beside image id, draw and timestep.

        Returns:
            Block index (non-negative) to its tapped values.

        Raises:
            InputError: A block, tap, timestep or image size that the model does not have.
        """

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device


Forward = TypeVar("Forward", bound=Callable[..., dict[int, TappedBlock]])


def without_gradients(forward: Forward) -> Forward:
    """Has the `forward` of a backbone record no gradients, unless one of its weights is trained."""

    @wraps(forward)
    def run(self: nn.Module, *arguments: Any, **options: Any) -> dict[int, TappedBlock]:
        trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.parameters())
        with torch.set_grad_enabled(trained):
            return forward(self, *arguments, **options)

    return cast(Forward, run)
