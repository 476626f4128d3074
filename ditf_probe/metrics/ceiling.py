"""What a feature grid allows: the distance from a keypoint to the nearest cell centre.

A rule that answers with centres of grid cells cannot score above the PCK of these distances, whatever the features.
Rules that interpolate between cells can.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ditf_probe.geometry import grid_coordinates, resize_points
from ditf_probe.precision import to_float64


def distance_to_cells(points: Tensor, size: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Distance from points of an image to the nearest cell centre of a grid that covers it.

    Args:
        points: `(..., 2)` floating point, (x, y) in pixels of the image.
        size: (height, width) of the image.
        grid: (height, width) of the grid, in cells.

    Returns:
        `(...)` float64, in pixels of the image.
    """
    exact = to_float64(points)
    # The axes are scaled apart, but each without turning back: the nearest cell along each is the nearest of all.
    cells = grid_coordinates(exact, size, grid).round()
    last = torch.tensor([grid[1] - 1, grid[0] - 1], dtype=cells.dtype, device=cells.device)
    centres = resize_points(cells.clamp(min=torch.zeros_like(last), max=last), grid, size)
    return (exact - centres).square().sum(-1).sqrt()
