"""Cosines at chosen pixels of several maps, in float64: at all pixels of some columns between two grid rows."""

from typing import NamedTuple

import torch
from torch import Tensor

from ditf_probe.matching.cosines import Axis, Gram, inverse_root

_PIECE = 2**18  # pixels per piece of work, each some numbers of float64
_NONE = torch.iinfo(torch.int64).max


class Segments(NamedTuple):
    """Columns between a grid row and the next, `(n,)` int64 each."""

    map: Tensor  # number of the map
    descriptor: Tensor
    row: Tensor  # of the grid
    column: Tensor  # of the image


def squares(products: Gram) -> Tensor:
    """What interpolation inside each square of four cells needs: `(h, w, 3, 3)` float64.

    Rows are: left cells, right cells, and the products of both; columns: upper cells, lower cells, and their products.
    """
    own, right, below, cross = products
    parts = (own, _lower(own), below, _right(own), _right(_lower(own)), _right(below), right, _lower(right), cross)
    return torch.stack(parts, dim=-1).view(*own.shape, 3, 3)


class Pixels:
    """The pixels of B images of one size, which are covered by maps of one grid.

    Args:
        dots: `(B, K, h, w)` float64 dot products of descriptors with all cells.
        inside: `(B, h, w, 3, 3)`, `squares` of each map.
        x: Columns of the images on the grid.
        y: Rows of the images on the grid.
        rows: `(h, R)` rows of the images from each grid row up to the next, the last repeated.
    """

    def __init__(self, dots: Tensor, inside: Tensor, x: Axis, y: Axis, rows: Tensor) -> None:
        self._dots, self._inside = dots, inside.flatten(0, 2)
        self._x, self._rows, self._down = x, rows, y.fraction[rows]

    def cosines(self, at: Segments) -> Tensor:
        """Cosines `(n, R)` of the pixels of segments."""
        height, width = self._dots.shape[2:]
        left, aside = self._x.low[at.column], self._x.fraction[at.column, None]
        line = (at.map * self._dots.shape[1] + at.descriptor) * height
        ends = torch.stack([line + at.row, line + (at.row + 1).clamp_max(height - 1)], 1) * width
        dots, right = self._dots.view(-1), self._x.high[at.column, None]
        upper, lower = torch.lerp(dots[ends + left[:, None]], dots[ends + right], aside).unsqueeze(-1).unbind(1)
        inside = self._inside[(at.map * height + at.row) * width + left]
        own = _squared(inside[:, 0], inside[:, 1], inside[:, 2], aside).unsqueeze(-1)
        above, under = torch.lerp(inside[:, 0, :2], inside[:, 1, :2], aside).unsqueeze(-1).unbind(1)
        down = self._down[at.row]
        squared = _squared(own[:, 0], own[:, 1], own[:, 2], down)
        return torch.lerp(upper, lower, down) * inverse_root(squared, torch.lerp(above, under, down))

    def best(self, at: Segments) -> tuple[Tensor, Tensor]:
        """The best of all pixels of segments for each descriptor, and the first of equals: `(B, K)` each."""
        shape = self._dots.shape[:2]
        best = self._dots.new_full((shape.numel(),), -torch.inf)
        number = torch.full(best.shape, _NONE, device=best.device)
        step = max(1, _PIECE // self._rows.shape[1])
        for start in range(0, len(at.map), step):
            part = Segments(*(x[start : start + step] for x in at))
            values, owner = self.cosines(part), part.map * shape[1] + part.descriptor
            top = values.amax(1)
            reached = best.scatter_reduce(0, owner, top, "amax")
            pixels = self._rows[part.row] * len(self._x.low) + part.column[:, None]
            first = pixels.masked_fill(values != reached[owner][:, None], _NONE).amin(1)
            number = torch.where(reached > best, _NONE, number).scatter_reduce(0, owner, first, "amin")
            best = reached
        return best.view(shape), number.view(shape)


def _squared(low: Tensor, high: Tensor, pair: Tensor, fraction: Tensor) -> Tensor:
    """As `Axis.squared`, for ends that are gathered already."""
    return torch.lerp(low, high, fraction) - fraction * (1 - fraction) * (low + high - 2 * pair)


def _lower(values: Tensor) -> Tensor:
    return torch.cat([values[1:], values[-1:]])


def _right(values: Tensor) -> Tensor:
    return torch.cat([values[:, 1:], values[:, -1:]], dim=1)
