"""Controls that a comparison needs beside trained features."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.backbones.base import Backbone, Norm, Tap, TappedBlock
from ditf_probe.errors import InputError
from ditf_probe.geometry import resize_points


class ColourPatches(Backbone):
    """Raw RGB patches of the prepared image in place of a model: how far mere colours go.

    One block; its stream holds the `stride x stride` pixels under each token, minus one half, so that cosines compare
    colours around middle grey.

    Args:
        stride: Side of a patch in pixels of the prepared image.
    """

    has_adaln = False

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.name = "rgb patches"
        self.num_blocks = 1
        self.stride = stride
        self.channels = 3 * stride * stride

    @property
    def device(self) -> torch.device:
        """There are no weights: the CPU."""
        return torch.device("cpu")

    def taps(self, block: int) -> tuple[Tap, ...]:
        """Both taps mean the same."""
        del block
        return ("attention", "mlp")

    def settings(self) -> dict[str, Any]:
        """Name and patch size."""
        return {"name": self.name, "stride": self.stride}

    def forward(
        self,
        images: Tensor,
        *,
        blocks: Sequence[int],
        timestep: int | Sequence[int] = 0,
        tap: Tap = "mlp",
        image_ids: Sequence[str] | None = None,
        conditions: Any = None,
        ensemble: int = 1,
        seed: int = 0,
    ) -> dict[int, TappedBlock]:
        """Cuts patches: see `Backbone.forward`; noise, timestep and conditions have no meaning here."""
        del timestep, tap, image_ids, conditions, ensemble, seed
        if list(blocks) != [0] or images.shape[2] % self.stride or images.shape[3] % self.stride:
            raise InputError("images", tuple(images.shape), f"give sides that are multiples of {self.stride}, block 0")
        patches = F.unfold(images - 0.5, self.stride, stride=self.stride).transpose(1, 2)
        grid = (images.shape[2] // self.stride, images.shape[3] // self.stride)
        return {0: TappedBlock(patches, None, None, None, Norm(), grid)}


def same_position(keypoints: Tensor, source_size: Sequence[int], target_size: Sequence[int]) -> Tensor:
    """Predicts the same relative position, without rounding: there is no best pixel to find.

    Args:
        keypoints: `(K, 2)` (x, y) in pixels of the source image.
        source_size: (height, width) of the source image.
        target_size: (height, width) of the target image.

    Returns:
        `(K, 2)` float32 (x, y) in pixels of the target image.
    """
    return resize_points(keypoints, source_size, target_size).float()
