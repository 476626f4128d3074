"""Objects drawn over the frames of a video."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.pictures.canvas import Picture, Strip, distinct_colour


def mask_overlay(image: Tensor, mask: Tensor, alpha: float = 0.55) -> Tensor:
    """A frame with its objects in colours, each with a bright edge.

    Args:
        image: `(3, H, W)` uint8 RGB.
        mask: `(H, W)` whole numbers, 0 the background, objects from 1.
        alpha: Share of the colour, 0 to 1.

    Returns:
        `(3, H, W)` uint8.
    """
    from matplotlib.colors import to_rgb

    shown = image.float() / 255
    for number in range(1, int(mask.max()) + 1):
        inside = mask == number
        colour = torch.tensor(to_rgb(distinct_colour(number - 1)))[:, None]
        shown[:, inside] = (1 - alpha) * shown[:, inside] + alpha * colour
        outside = F.max_pool2d((~inside)[None].float(), 3, stride=1, padding=1)[0] > 0
        shown[:, inside & outside] = 0.4 + 0.6 * colour
    return (shown * 255).round().to(torch.uint8)


def mask_picture(
    frames: Sequence[Tensor], masks: Sequence[Sequence[Tensor]], title: str = "", height: int = 180
) -> Picture:
    """Frames in columns, masks in rows.

    Args:
        frames: T images `(3, H, W)` uint8.
        masks: Per row T masks `(H, W)`, such as the annotation and then what was found.
        title: Stands above.
        height: Of each image in the picture, in its pixels.

    Returns:
        `(H', W', 3)` uint8.
    """
    rows = [[mask_overlay(frame, mask) for frame, mask in zip(frames, row, strict=True)] for row in masks]
    return Strip(rows, height, title).picture()
