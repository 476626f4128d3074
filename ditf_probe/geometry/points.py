"""Points of images and of the feature grids that cover them."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.precision import to_float64

Size = tuple[int, int]
Sampling = Literal["cells", "aligned"]
Landing = Literal["centre", "aligned", "corner"]


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
    check_points(points)
    exact = to_float64(points)
    scale = exact.new_tensor([to_size[1] / from_size[1], to_size[0] / from_size[0]])
    return ((exact + 0.5) * scale - 0.5).to(points.device, points.dtype)


def mirror_points(points: Tensor, width: int) -> Tensor:
    """Carries points along when an image is flipped left to right.

    Args:
        points: `(..., 2)` floating point, (x, y) in pixels of the image.
        width: Width of the image in pixels.

    Returns:
        `(..., 2)` in pixels of the flipped image: x becomes width - 1 - x.

    Raises:
        InputError: As in `resize_points`.
    """
    check_points(points)
    return torch.stack([width - 1 - points[..., 0], points[..., 1]], dim=-1)


def grid_coordinates(points: Tensor, size: Sequence[int], grid: Sequence[int], sampling: Sampling = "cells") -> Tensor:
    """Where points of an image lie on a feature grid that covers it.

    Args:
        points: `(..., 2)` (x, y) in pixels of the image.
        size: (height, width) of the image.
        grid: (height, width) of the grid, in cells.
        sampling: `cells`: each cell covers its own pixels. `aligned`: the edges of the image lie on the centres of the
            outermost cells, as with `align_corners=True`; the grid is stretched by up to half a cell.

    Returns:
        `(..., 2)` (x, y) in cells, from -0.5 to the number of cells - 0.5 (aligned: from 0 to the number of cells
        - 1); whole numbers are cell centres.
    """
    cells = resize_points(points, size, grid)
    if sampling == "cells":
        return cells
    share = to_float64(cells).new_tensor([(grid[1] - 1) / grid[1], (grid[0] - 1) / grid[0]])
    return ((to_float64(cells) + 0.5) * share).to(points.device, points.dtype)


def grid_points(cells: Tensor, grid: Sequence[int], size: Sequence[int], landing: Landing = "centre") -> Tensor:
    """Where grid coordinates lie in the image that the grid covers.

    Args:
        cells: `(..., 2)` floating point (x, y) in cells; whole numbers are cells themselves.
        grid: (height, width) of the grid, in cells.
        size: (height, width) of the image.
        landing: `centre`: the centre of the cell. `corner`: its top-left corner, half a cell before. `aligned`: what
            `grid_coordinates` with `aligned` leads back to the cell.

    Returns:
        `(..., 2)` (x, y) in pixels of the image, of the dtype of `cells`.
    """
    if landing == "centre":
        return resize_points(cells, grid, size)
    if landing == "corner":
        return resize_points(cells - 0.5, grid, size)
    exact = to_float64(cells)
    step = exact.new_tensor([size[1] / max(1, grid[1] - 1), size[0] / max(1, grid[0] - 1)])
    return (exact * step - 0.5).to(cells.device, cells.dtype)


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


def check_points(points: Tensor) -> None:
    """Raises InputError unless points are floating point and end in an axis of two coordinates."""
    if points.ndim < 1 or points.shape[-1] != 2 or not points.is_floating_point():
        raise InputError("points", f"{tuple(points.shape)} {points.dtype}", "give floating-point (..., 2) as (x, y)")
