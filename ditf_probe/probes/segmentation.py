"""The linear head of dense prediction: batch norm and a 1x1 convolution (Oquab et al., DINOv2, section 7.4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditf_probe.errors import InputError
from ditf_probe.probes.base import checked_count


class SegmentationHead(nn.Module):
    """Class scores of every cell of a feature map.

    The statistics of the batch norm are over all cells of a batch, whatever the grids of its images.

    Args:
        channels: Width D of the features.
        num_classes: Number of classes.

    Raises:
        InputError: A number below 1.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.channels = checked_count("channels", channels)
        self.num_classes = checked_count("num_classes", num_classes)
        self.norm = nn.BatchNorm1d(channels)
        self.classify = nn.Linear(channels, num_classes)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Class scores.

        Args:
            maps: B features `(D, h, w)`, whose grids may differ.

        Returns:
            B scores `(classes, h, w)`, before any softmax.

        Raises:
            InputError: No map, or one of another width.
        """
        if not maps or any(one.ndim != 3 or one.shape[0] != self.channels for one in maps):
            found = [tuple(one.shape) for one in maps]
            raise InputError("maps", found, f"give at least one map ({self.channels}, h, w)")
        cells = torch.cat([one.flatten(1).T for one in maps])
        scores: Tensor = self.classify(self.norm(cells.float()))
        parts = torch.split(scores, [one[0].numel() for one in maps])
        return [part.T.reshape(-1, *one.shape[1:]) for part, one in zip(parts, maps, strict=True)]


def enlarged(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Class scores `(B, classes, h, w)` of maps that cover images, at every pixel of them: `(B, classes, H, W)`."""
    return F.interpolate(scores, tuple(size), mode="bilinear", align_corners=False)
