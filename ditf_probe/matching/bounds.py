"""Upper bounds of the cosines between two grid rows, one number per grid row and image column."""

import os
import shutil
import sysconfig
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ditf_probe.matching.cosines import Axis

MARGIN = 1e-5
"""How much an upper bound may be too low by rounding: some roundings of float32, and ten times that to be safe."""

_OPPOSITE = -0.9  # below this cosine between both ends, rounding of float32 grows too much
_STEEPEST = 1e6  # what is steeper changes a bound by less than the margin


class Limits(NamedTuple):
    """What bounds the cosines of a map between a grid row and the next, `(..., h, W)`; the last row is the border."""

    inverse: Tensor  # float64, one over the length of the feature on the grid row; 0 where that is zero
    cosine: Tensor  # float32, between the feature on this row and that on the next
    steep: Tensor  # float32, one over the squared sine of the same angle
    least: Tensor  # float32, 2 where float32 cannot tell, -inf elsewhere
    most: Tensor  # float32, -inf where the image has no row, inf elsewhere


def bounding(inverse: Tensor, pair: Tensor, empty: Tensor) -> Limits:
    """The limits of a map.

    Args:
        inverse: `(h, W)` float64, one over the lengths of the features on the grid rows, at every image column.
        pair: `(h, W)` float64, dot products with the feature on the next grid row; of the last row, with itself.
        empty: `(h,)` bool, where the image has no row up to the next grid row.
    """
    below = [*range(1, len(inverse)), len(inverse) - 1]
    cosine = (pair * inverse * inverse[below]).clamp(-1, 1)
    steep = (1 - cosine.square()).reciprocal().clamp_max(_STEEPEST)
    doubtful = (cosine < _OPPOSITE) | (inverse == 0) | (inverse[below] == 0)
    least = torch.where(doubtful, 2.0, -torch.inf)
    most = torch.where(empty[:, None], -torch.inf, torch.inf).expand_as(inverse)
    return Limits(inverse, *(x.float().contiguous() for x in (cosine, steep, least, most)))


def upper_bounds(dots: Tensor, x: Axis, limits: Limits) -> Tensor:
    """Upper bounds of the cosines of descriptors with all pixels from a grid row up to the next.

    The largest cosine with a vector between two of cosines a >= b, which have the cosine r with each other, is
    sqrt(a^2 + (b - r a)^2 / (1 - r^2)) where b > r a and a > 0, by the projection on their plane, and otherwise a.
    Where a < 0 the bound stays right, but is not close.

    Args:
        dots: `(..., K, h, w)` float64 dot products of descriptors of length one with all cells.
        x: Columns of the image on the grid.
        limits: `(..., 1, h, W)` each.

    Returns:
        `(..., K, h, W)` float32, at most `MARGIN` too low.
    """
    on_row = (x(dots, -1) * limits.inverse).float()
    upper, lower = on_row[..., :-1, :], on_row[..., 1:, :]
    cosine, steep = limits.cosine[..., :-1, :], limits.steep[..., :-1, :]
    larger = torch.maximum(upper, lower)
    beyond = torch.addcmul(torch.minimum(upper, lower), cosine, larger, value=-1).clamp_min(0).square()
    between = torch.addcmul(larger.square(), beyond, steep).sqrt()
    # Below the last grid row there is nothing but the border, which repeats it.
    return torch.cat([between, on_row[..., -1:, :]], dim=-2).clamp(limits.least, limits.most)


@cache
def fused(dynamic: bool = True) -> Callable[[Tensor, Axis, Limits], Tensor]:
    """`upper_bounds` as one kernel, which reads dot products and writes bounds, with nothing in memory between."""
    made: Callable[[Tensor, Axis, Limits], Tensor] = torch.compile(upper_bounds, dynamic=dynamic, fullgraph=True)
    return made


def can_fuse(device: torch.device) -> bool:
    """Whether `fused` is quicker: on a GPU of CUDA or ROCm, where Triton is installed and can build what it starts."""
    return device.type == "cuda" and _triton_builds()


@cache
def _triton_builds() -> bool:
    """Whether there is Triton, and the C compiler and headers of Python that it builds its launchers with."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    folders = (sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix"))
    headers = any(folder is not None and (Path(folder) / "Python.h").is_file() for folder in folders)
    return find_spec("triton") is not None and compiler is not None and headers
