"""Matching rules of the field: where a source descriptor is read, where its match lies, and what is no match at all."""

from dataclasses import dataclass
from typing import Literal

from ditf_probe.errors import InputError, check_choice
from ditf_probe.geometry import Landing, Sampling
from ditf_probe.matching.keypoints import Rounding

Kind = Literal["argmax_pixel", "argmax_grid", "window_softargmax", "kernel_softargmax"]
Check = Literal["none", "mutual", "cycle", "ratio"]
Mask = Literal["-inf", "zero"]
Origin = Literal["centre", "corner"]
Precision = Literal["full", "float16"]


@dataclass(frozen=True)
class MatchingRule:
    """How the match of a source keypoint is found.

    Attributes:
        kind: `argmax_pixel`: the best pixel after bilinear interpolation to the image (DIFT, DiTF). `argmax_grid`: the
            best cell. `window_softargmax`: the mean position under a softmax of the cosines in a window around the
            best cell (GeoAware-SC). `kernel_softargmax`: the same over all cells, their cosines multiplied by a
            Gaussian around the best one (SFNet, CATs, SD4Match).
        rounding: Where the source descriptor is read; see `match_keypoints`.
        window: Side of the window in cells, odd.
        temperature: Cosines are divided by it before a softmax.
        mask: What stands outside the window: "-inf" leaves it out. "zero" sets its cosines to 0, as GeoAware-SC does:
            all cells keep a weight, which pulls the estimate towards the middle of the grid.
        sigma: Standard deviation of the Gaussian, in cells.
        origin: Where annotations have their 0: at the centre of the first pixel, or at its outer corner. Codes that
            multiply keypoints by a scale imply the corner; it moves points by half a pixel of the original image.
        sampling: Where keypoints lie on the grid, as in `geometry.grid_coordinates`.
        landing: Where a cell lies in the image, as in `geometry.grid_points`; not for `argmax_pixel`.
        precision: "float16" rounds features before they are matched, as DiTF's code does; sums stay exact.
        check: What a match must pass to be accepted. `mutual`: the best match of the match, in the source, lies in the
            cell of the keypoint. `cycle`: matched back by the same rule, it lies within `cycle_pixels` of the keypoint.
            `ratio`: its distance is less than `ratio` times that of the best cell elsewhere (Lowe); the distance of
            two unit vectors, sqrt(2 - 2 cos).
        cycle_pixels: In pixels of the original source image.
        ratio: Between 0 and 1.
        apart: Elsewhere is more than so many cells away, in x or y: neighbours of a match resemble it.

    Raises:
        InputError: An unknown choice, or a number out of range.
    """

    kind: Kind = "argmax_pixel"
    rounding: Rounding = "subpixel"
    window: int = 15
    temperature: float = 0.04
    mask: Mask = "-inf"
    sigma: float = 7.0
    origin: Origin = "centre"
    sampling: Sampling = "cells"
    landing: Landing = "centre"
    precision: Precision = "full"
    check: Check = "none"
    cycle_pixels: float = 8.0
    ratio: float = 0.9
    apart: int = 1

    def __post_init__(self) -> None:
        choices = {"kind": Kind, "rounding": Rounding, "mask": Mask, "origin": Origin, "sampling": Sampling}
        choices |= {"landing": Landing, "precision": Precision, "check": Check}
        for name, literal in choices.items():
            check_choice(name, getattr(self, name), literal)
        if self.window < 1 or self.window % 2 == 0:
            raise InputError("window", self.window, "use an odd number of cells")
        for name in ("temperature", "sigma"):
            if not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "use a positive number")
        for name in ("cycle_pixels", "apart"):
            if not getattr(self, name) >= 0:
                raise InputError(name, getattr(self, name), "use 0 or more")
        if not 0 < self.ratio <= 1:
            raise InputError("ratio", self.ratio, "use a number above 0 and up to 1")


DEFAULT_RULE = MatchingRule()
