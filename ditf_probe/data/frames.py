"""Frames of videos at the size that protocols of label propagation ask for."""

import cv2
import numpy as np
import torch
from torch import Tensor

from ditf_probe.errors import InputError


def resize_short_side(image: Tensor, short_side: int, multiple: int = 1) -> Tensor:
    """Resizes a frame as the codes of DINO, DIFT and DiTF do for DAVIS: by opencv, bilinear, without antialiasing.

    Args:
        image: `(3, H, W)` uint8 RGB.
        short_side: Pixels of the shorter side.
        multiple: The longer side is floored to a multiple of this.

    Returns:
        `(3, h, w)` uint8; `image` itself where it has that size.

    Raises:
        InputError: The image is of another type, or a side would be zero.
    """
    if image.ndim != 3 or image.dtype != torch.uint8:
        raise InputError("image", f"{tuple(image.shape)} {image.dtype}", "give a (3, H, W) uint8 image")
    if multiple < 1 or short_side < multiple:
        raise InputError("short_side", short_side, f"use at least `multiple`, {multiple} pixels")
    own = (image.shape[1], image.shape[2])
    # In whole numbers, since the product of a side and a quotient may fall just short of a multiple.
    longer = short_side * max(own) // min(own) // multiple * multiple
    height, width = (longer if side > min(own) else short_side for side in own)
    if (height, width) == own:
        return image
    pixels = image.permute(1, 2, 0).contiguous().cpu().numpy()
    resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(np.asarray(resized, dtype=np.uint8)).permute(2, 0, 1)
