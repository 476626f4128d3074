"""What becomes of an image on its way to a model: resized, padded, and the way back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditf_probe.errors import InputError, check_choice
from ditf_probe.geometry.points import Size, check_points, check_size, resize_points
from ditf_probe.precision import to_float64

Mode = Literal["stretch", "keep_aspect", "pad", "pad_end", "letterbox", "letterbox_end"]
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

WHOLE_CANVAS: frozenset[Mode] = frozenset({"letterbox", "letterbox_end"})
"""Modes that place the image to the pixel, so that cells may lie across its edge and cannot be cut off."""


@dataclass(frozen=True, slots=True)
class Transform:
    """What becomes of an image on its way to the model: a resize, then padding around it.

    Attributes:
        size: (height, width) of the original image.
        scaled: (height, width) after the resize.
        canvas: (height, width) of the prepared image; equals `scaled` without padding.
        offset: (top, left) corner of the resized image on the canvas.
    """

    size: Size
    scaled: Size
    canvas: Size
    offset: Size = (0, 0)

    @property
    def canvas_length(self) -> float:
        """Longer side of the prepared image, in pixels of the original image."""
        return max(self.canvas) * max(self.size) / max(self.scaled)

    def apply(self, points: Tensor) -> Tensor:
        """Maps points of the original image to the prepared one: `(..., 2)` to `(..., 2)`, (x, y) in pixels."""
        moved = resize_points(_double(points), self.size, self.scaled) + self._shift(points)
        return moved.to(points.device, points.dtype)

    def invert(self, points: Tensor) -> Tensor:
        """Maps points of the prepared image to the original one: `(..., 2)` to `(..., 2)`, (x, y) in pixels."""
        moved = resize_points(_double(points) - self._shift(points), self.scaled, self.size)
        return moved.to(points.device, points.dtype)

    def _shift(self, points: Tensor) -> Tensor:
        return to_float64(points).new_tensor(self.offset[::-1])


def fit(
    size: Sequence[int],
    image_size: int | Sequence[int] | None,
    mode: Mode = "stretch",
    multiple: int = 1,
) -> Transform:
    """Chooses how an image is brought to the size that a model wants.

    Args:
        size: (height, width) of the original image.
        image_size: Wanted size in pixels: (height, width), or one number for both sides (`stretch`), the longer side
            (`keep_aspect`) or the side of the square (the others). None wants the image's own size.
        mode: `stretch` gives exactly `image_size` whatever the aspect; `keep_aspect` the largest image of the same
            aspect within it; `pad` the same on a canvas of `image_size`, centred to within half a `multiple`;
            `pad_end` in its top-left corner; `letterbox` and `letterbox_end` as these two, but to the pixel.
        multiple: Every side and offset becomes the nearest multiple of this, and no side less than one of it. The
            stride of the backbone must divide it. In a letterbox this holds for the canvas alone.

    Returns:
        The transform.

    Raises:
        InputError: If a size is not positive or the mode is unknown.
    """
    check_choice("resize", mode, Mode)
    if multiple < 1:
        raise InputError("multiple", multiple, "use a positive number of pixels")
    own = check_size("size", size)
    box = own if image_size is None else check_size("image_size", image_size)
    canvas = (_nearest(box[0], multiple), _nearest(box[1], multiple))
    if mode == "stretch":
        return Transform(own, canvas, canvas)
    step, room = (1, canvas) if mode in WHOLE_CANVAS else (multiple, box)
    scale = min(room[0] / own[0], room[1] / own[1])
    # Clamped, because in floating point the longer side may fall just short of a tie that `box` itself rounds up.
    scaled = (min(_nearest(own[0] * scale, step), canvas[0]), min(_nearest(own[1] * scale, step), canvas[1]))
    if mode == "keep_aspect":
        return Transform(own, scaled, scaled)
    if mode in ("pad_end", "letterbox_end"):
        return Transform(own, scaled, canvas)
    spare = [(canvas[axis] - scaled[axis]) // step // 2 * step for axis in (0, 1)]
    return Transform(own, scaled, canvas, (spare[0], spare[1]))


def prepare_image(image: Tensor, transform: Transform, filter: Filter = "bicubic", padding: float = 0.0) -> Tensor:
    """Resizes and pads an image for a model, with antialiasing (PIL).

    Args:
        image: `(3, H, W)` uint8 RGB of the original size.
        transform: From `fit`.
        filter: Name of a PIL filter.
        padding: Grey level of the padding, from 0 (black) to 1 (white).

    Returns:
        `(3, h, w)` float32 in [0, 1].

    Raises:
        InputError: If the image is not of that type and size, or a choice is unknown or out of range.
    """
    check_choice("filter", filter, Filter)
    if not 0 <= padding <= 1:
        raise InputError("padding", padding, "use a grey level from 0 (black) to 1 (white)")
    if image.dtype != torch.uint8 or tuple(image.shape) != (3, *transform.size):
        found = f"{tuple(image.shape)} {image.dtype}"
        raise InputError("image", found, f"give a (3, {transform.size[0]}, {transform.size[1]}) uint8 image")
    height, width = transform.scaled
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    resized = np.array(pixels.resize((width, height), Image.Resampling[filter.upper()]))
    top, left = transform.offset
    prepared = torch.full((3, *transform.canvas), padding)
    prepared[:, top : top + height, left : left + width] = torch.from_numpy(resized).permute(2, 0, 1) / 255
    return prepared


def crop_features(features: Tensor, transform: Transform) -> Tensor:
    """Cuts the cells of the image out of a feature map of the whole canvas.

    Args:
        features: `(..., h, w)`, covering the prepared image edge to edge.
        transform: How the image was prepared.

    Returns:
        `(..., h', w')`, a view that covers the original image edge to edge; `features` itself without padding.

    Raises:
        InputError: If the edges of the image cut through cells.
    """
    if transform.canvas == transform.scaled:
        return features
    spans = []
    for axis in (0, 1):
        cells, pixels = features.shape[axis - 2], transform.canvas[axis]
        edges = [transform.offset[axis] * cells, (transform.offset[axis] + transform.scaled[axis]) * cells]
        if any(edge % pixels for edge in edges):
            remedy = f"use pad, with a `multiple` that makes {cells} cells of a {pixels} pixel canvas meet the image"
            raise InputError("transform", transform, remedy)
        spans.append(slice(edges[0] // pixels, edges[1] // pixels))
    return features[..., spans[0], spans[1]]


def _nearest(length: float, multiple: int) -> int:
    return max(1, math.floor(length / multiple + 0.5)) * multiple


def _double(points: Tensor) -> Tensor:
    check_points(points)
    return to_float64(points)
