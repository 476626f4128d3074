"""Between the masks of a video and the labels of feature grids: one-hot labels down, masks up."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.errors import InputError, check_choice
from ditf_probe.geometry import check_size

LabelResize = Literal["nearest", "area"]


def soft_labels(mask: Tensor, num_objects: int, grid: Sequence[int], resize: LabelResize = "nearest") -> Tensor:
    """One-hot labels of the cells of a grid.

    Args:
        mask: `(H, W)` whole numbers, 0 the background, objects from 1.
        num_objects: K.
        grid: (height, width) in cells; it covers the mask edge to edge.
        resize: "nearest" takes the pixel in the middle of each cell (DINO); "area" the share of each object in it.

    Returns:
        `(K + 1, h, w)` float32, the background first; they sum to one.

    Raises:
        InputError: The mask is of another shape, or holds other numbers.
    """
    check_choice("resize", resize, LabelResize)
    height, width = check_size("grid", grid)
    if mask.ndim != 2 or mask.is_floating_point():
        raise InputError("mask", f"{tuple(mask.shape)} {mask.dtype}", "give (H, W) whole numbers")
    values = mask.long()
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > min(num_objects, 255):
        raise InputError("mask", f"values {low} to {high}", f"number the objects from 1 to {num_objects}")
    if resize == "nearest":
        values = _nearest(values, (height, width)).long()
        return F.one_hot(values, num_objects + 1).permute(2, 0, 1).float()
    shares = F.one_hot(values, num_objects + 1).permute(2, 0, 1).float()
    return F.interpolate(shares[None], (height, width), mode="area")[0]


def hard_labels(
    labels: Tensor, size: Sequence[int], *, through: Sequence[int] | None = None, norm_mask: bool = True
) -> Tensor:
    """The mask that soft labels stand for: upsampled bilinearly, then the largest at each pixel.

    Args:
        labels: `(K + 1, h, w)` float, the background first, covering the frame edge to edge.
        size: (height, width) of the frame.
        through: Size at which the largest is taken, then brought to `size` by the nearest pixel, as DINO does at the
            size of the model's input; None takes it at `size`.
        norm_mask: Stretch the upsampled labels of each object, and of the background, to [0, 1] first (DINO). Those
            that are the same everywhere stay as they are.

    Returns:
        `(H, W)` uint8, 0 the background, objects from 1; the smallest number where several are largest.
    """
    height, width = check_size("size", size)
    inner = (height, width) if through is None else check_size("through", through)
    maps = F.interpolate(labels[None].float(), inner, mode="bilinear", align_corners=False)[0]
    if norm_mask:
        low, high = maps.flatten(1).amin(1), maps.flatten(1).amax(1)
        flat = low == high
        low, span = torch.where(flat, 0.0, low), torch.where(flat, 1.0, high - low)
        maps = (maps - low[:, None, None]) / span[:, None, None]
    mask = _largest(maps)
    if inner == (height, width):
        return mask
    return _nearest(mask, (height, width))


def _largest(maps: Tensor) -> Tensor:
    """`(H, W)` uint8 index of the largest of `(N, H, W)`, the first of equals; argmax across rows is slow on a CPU."""
    best, mask = maps[0], torch.zeros(maps.shape[1:], dtype=torch.uint8, device=maps.device)
    for number, values in enumerate(maps[1:], start=1):
        mask[values > best] = number
        best = torch.maximum(best, values)
    return mask


def _nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest pixels, by PIL as in the reference codes, so that ties fall on the same side."""
    values = mask.to("cpu", torch.uint8).numpy()
    image = Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(image)).to(mask.device)
