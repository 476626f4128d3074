"""The few cells of a map that keypoints are interpolated from, for heads that look at every cell apart.

The descriptor at a keypoint is a weighted sum over the four cells around it. A head without any context gives the same
there whether it sees the whole map or these cells alone, so of a source of 3,600 cells and 15 keypoints it needs 60.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.geometry import Size, grid_coordinates


@dataclass(frozen=True)
class SourceCells:
    """Some cells of each of B images.

    Attributes:
        tapped: Block index to the streams of these cells, `(B, M, C)` on a grid of one row; images with fewer than M
            cells repeat their first.
        cells: Block index to the numbers `(m,)` of the cells of each image, in row-major order, each once.
        grids: Block index to the grid (height, width) of each image.
    """

    tapped: dict[int, TappedBlock]
    cells: dict[int, list[Tensor]]
    grids: dict[int, list[Size]]

    def maps(self, descriptors: Tensor, block: int) -> list[Tensor]:
        """Descriptors of the cells, put where they belong.

        Args:
            descriptors: `(B, D, 1, M)`, what a head makes of the features of these cells.
            block: Whose grids and cells they are on.

        Returns:
            B maps `(D, h, w)`, zero at all other cells.
        """
        found = []
        for values, cells, (height, width) in zip(descriptors, self.cells[block], self.grids[block], strict=True):
            empty = values.new_zeros(len(values), height * width)
            # Without the repeated cells, each of which would get the gradient of the first once more.
            own = values[:, 0, : len(cells)]
            found.append(empty.index_copy(1, cells.to(values.device), own).reshape(-1, height, width))
        return found


def surrounding_cells(keypoints: Tensor, size: Size, grid: Size) -> Tensor:
    """The cells that a bilinear interpolation at some keypoints reads.

    Args:
        keypoints: `(K, 2)` (x, y) in pixels of the image, inside it.
        size: (height, width) of the image.
        grid: (height, width) of the grid that covers it, in cells.

    Returns:
        `(m,)` int64 numbers in row-major order, ascending, each once; the first cell alone without any keypoint.
    """
    corner = grid_coordinates(keypoints, size, grid).floor().long()
    around = [corner + torch.tensor(step) for step in ((0, 0), (1, 0), (0, 1), (1, 1))]
    # Beyond an edge the outermost cell counts.
    cells = torch.cat(around).clamp(torch.zeros(2, dtype=torch.int64), torch.tensor([grid[1] - 1, grid[0] - 1]))
    numbers = torch.unique(cells[:, 1] * grid[1] + cells[:, 0])
    return numbers if len(numbers) else torch.zeros(1, dtype=torch.int64)


def padded(numbers: Sequence[Tensor]) -> list[Tensor]:
    """Lists of numbers made as long as the longest, by repeating the first of each."""
    longest = max(map(len, numbers))
    return [torch.cat([row, row[:1].expand(longest - len(row))]) for row in numbers]
