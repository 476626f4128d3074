"""The pixel convention, and nothing else knows it.

Points are `(x, y)`, x before y; (0, 0) is the centre of the top-left pixel, so an image of width w spans -0.5 to
w - 0.5. A resize maps `x' = (x + 0.5) * w' / w - 0.5`, and a feature grid is one more resize of the image that it
covers: cell i of a grid with stride s has its centre at `(i + 0.5) * s - 0.5`. Sizes are (height, width).

Padding: a grid computed from a padded canvas also has cells of the padding. `fit` therefore puts the image on whole
multiples of `multiple`, and `crop_features` cuts the cells of the image out. What is left covers the original image
from edge to edge, as in the other modes, so matching knows nothing of canvases: no prediction can land in the padding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.precision import to_float64

Mode = Literal["stretch", "keep_aspect", "pad"]
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Size = tuple[int, int]


def resize_points(points: Tensor, from_size: Sequence[int], to_size: Sequence[int]) -> Tensor:
    """Carries points along when an image is resized.

    Args:
        points: `(..., 2)` floating point, (x, y) in pixels of the image of `from_size`.
        from_size: (height, width) before.
        to_size: (height, width) after; a feature grid counts as an image of its cells.

    Returns:
        `(..., 2)` in pixels of the image of `to_size`, of the dtype of `points` (computed in float64).

    Raises:
        InputError: If `points` does not end in an axis of two coordinates or is not floating point.
    """
    _check_points(points)
    exact = to_float64(points)
    scale = exact.new_tensor([to_size[1] / from_size[1], to_size[0] / from_size[0]])
    return ((exact + 0.5) * scale - 0.5).to(points.device, points.dtype)


def grid_coordinates(points: Tensor, size: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Where points of an image lie on a feature grid that covers it.

    Args:
        points: `(..., 2)` (x, y) in pixels of the image.
        size: (height, width) of the image.
        grid: (height, width) of the grid, in cells.

    Returns:
        `(..., 2)` (x, y) in cells, from -0.5 to the number of cells - 0.5; whole numbers are cell centres.
    """
    return resize_points(points, size, grid)


def axis_coordinates(pixels: int, cells: int) -> Tensor:
    """Grid coordinates of the pixels of one image axis.

    Args:
        pixels: Length of the axis in pixels.
        cells: Number of grid cells that cover it.

    Returns:
        `(pixels,)` float64, in cells.
    """
    return (torch.arange(pixels, dtype=torch.float64) + 0.5) * (cells / pixels) - 0.5


def cell_centres(grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Centres of the cells of a grid, in pixels of the image that it covers.

    Args:
        grid: (height, width) of the grid, in cells.
        size: (height, width) of the image.

    Returns:
        `(h * w, 2)` float32 (x, y), in row-major order of the cells.
    """
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return resize_points(torch.stack([columns, rows], dim=-1).reshape(-1, 2).float(), grid, size)


@dataclass(frozen=True, slots=True)
class Transform:
    """What becomes of an image on its way to the model: a resize, then zeros around it.

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
            (`keep_aspect`) or the side of the square (`pad`). None wants the image's own size.
        mode: `stretch` gives exactly `image_size` whatever the aspect; `keep_aspect` the largest image of the same
            aspect within it; `pad` the same on a canvas of `image_size`, centred to within half a `multiple`.
        multiple: Every side and offset becomes the nearest multiple of this, and no side less than one of it. The
            stride of the backbone must divide it.

    Returns:
        The transform.

    Raises:
        InputError: If a size is not positive or the mode is unknown.
    """
    if mode not in get_args(Mode):
        raise InputError("resize", mode, f"use one of {', '.join(get_args(Mode))}")
    if multiple < 1:
        raise InputError("multiple", multiple, "use a positive number of pixels")
    own = check_size("size", size)
    box = own if image_size is None else check_size("image_size", image_size)
    canvas = (_nearest(box[0], multiple), _nearest(box[1], multiple))
    if mode == "stretch":
        return Transform(own, canvas, canvas)
    scale = min(box[0] / own[0], box[1] / own[1])
    # Clamped, because in floating point the longer side may fall just short of a tie that `box` itself rounds up.
    scaled = (
        min(_nearest(own[0] * scale, multiple), canvas[0]),
        min(_nearest(own[1] * scale, multiple), canvas[1]),
    )
    if mode == "keep_aspect":
        return Transform(own, scaled, scaled)
    spare = [(canvas[axis] - scaled[axis]) // multiple // 2 * multiple for axis in (0, 1)]
    return Transform(own, scaled, canvas, (spare[0], spare[1]))


def prepare_image(image: Tensor, transform: Transform, filter: Filter = "bicubic") -> Tensor:
    """Resizes and pads an image for a model, with antialiasing (PIL).

    Args:
        image: `(3, H, W)` uint8 RGB of the original size.
        transform: From `fit`.
        filter: Name of a PIL filter.

    Returns:
        `(3, h, w)` float32 in [0, 1]; zeros in the padding.

    Raises:
        InputError: If the image is not of that type and size, or the filter is unknown.
    """
    if filter not in get_args(Filter):
        raise InputError("filter", filter, f"use one of {', '.join(get_args(Filter))}")
    if image.dtype != torch.uint8 or tuple(image.shape) != (3, *transform.size):
        found = f"{tuple(image.shape)} {image.dtype}"
        raise InputError("image", found, f"give a (3, {transform.size[0]}, {transform.size[1]}) uint8 image")
    height, width = transform.scaled
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    resized = np.array(pixels.resize((width, height), Image.Resampling[filter.upper()]))
    top, left = transform.offset
    prepared = torch.zeros(3, *transform.canvas)
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
            remedy = f"choose `multiple` so that {cells} cells of a {pixels} pixel canvas meet the edges of the image"
            raise InputError("transform", transform, remedy)
        spans.append(slice(edges[0] // pixels, edges[1] // pixels))
    return features[..., spans[0], spans[1]]


def check_size(argument: str, size: int | Sequence[int]) -> Size:
    """A size as (height, width).

    Args:
        argument: What the size is called in the message of an error.
        size: (height, width), or one number for both.

    Raises:
        InputError: If a side is not a positive whole number.
    """
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or any(not side >= 1 or side % 1 != 0 for side in sides):
        raise InputError(argument, size, "give positive whole pixels: one number, or height and width")
    return int(sides[0]), int(sides[1])


def _nearest(length: float, multiple: int) -> int:
    return max(1, math.floor(length / multiple + 0.5)) * multiple


def _check_points(points: Tensor) -> None:
    if points.ndim < 1 or points.shape[-1] != 2 or not points.is_floating_point():
        raise InputError("points", f"{tuple(points.shape)} {points.dtype}", "give floating-point (..., 2) as (x, y)")


def _double(points: Tensor) -> Tensor:
    _check_points(points)
    return to_float64(points)
