"""The distance between where a keypoint is found, softly, and where it is."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.errors import InputError, check_choice
from ditf_probe.losses.ends import End
from ditf_probe.losses.searching import SearchTerm
from ditf_probe.losses.terms import check_positive

Kind = Literal["softargmax", "window_softargmax", "kernel_softargmax"]
Measure = Literal["l2", "smooth_l1"]
Units = Literal["cells", "image"]


class SoftArgmaxRegression(SearchTerm):
    """How far the soft-argmax of the cosines with the searched map is from the partner.

    The matching rules of the same names (`matching.MatchingRule`) find the same places. Far from the best cell a window
    or kernel passes little gradient, so that it refines what a contrast has learnt.

    The error of a soft-argmax as training loss: CATs (Cho et al., NeurIPS 2021), with the kernel of SFNet (Lee et al.,
    CVPR 2019); GeoAware-SC (Zhang et al., CVPR 2024) adds it to a contrast, by default without a window in training.

    Args:
        kind: `softargmax`: the mean place under the softmax over all cells. `window_softargmax`: over the window around
            the best cell. `kernel_softargmax`: over all cells, cosines multiplied by a Gaussian around the best one.
        window: Side of the window in cells, odd.
        sigma: Standard deviation of that Gaussian, in cells.
        measure: `l2`: Euclidean distance. `smooth_l1`: Huber's loss divided by `beta`, summed over x and y.
        units: Of the distance: `cells` of the searched map, or `image`, parts of the longer side of the original image.
        beta: Error at which `smooth_l1` passes from squares to absolute values, in these units.
        temperature: Cosines are divided by this; where it starts if it is learnt.
        learn_temperature: Whether the temperature is a parameter, kept between 0.01 and 1.
        symmetric: Whether keypoints of the target are searched in the source too.

    Raises:
        InputError: An unknown choice, or a number out of range.
    """

    def __init__(
        self,
        kind: Kind = "window_softargmax",
        window: int = 15,
        sigma: float = 7.0,
        measure: Measure = "l2",
        units: Units = "cells",
        beta: float = 1.0,
        temperature: float = 0.04,
        learn_temperature: bool = False,
        symmetric: bool = True,
    ) -> None:
        super().__init__(temperature, learn_temperature, symmetric)
        for name, value, choices in (("kind", kind, Kind), ("measure", measure, Measure), ("units", units, Units)):
            check_choice(name, value, choices)
        if window < 1 or window % 2 == 0:
            raise InputError("window", window, "use an odd number of cells")
        check_positive("sigma", sigma)
        check_positive("beta", beta)
        self.kind, self.window, self.sigma = kind, window, sigma
        self.measure, self.units, self.beta = measure, units, beta

    def each(self, near: End, far: End, seen: Tensor) -> Tensor:
        """As in `SearchTerm.each`."""
        del seen
        error = self.places(near, far) - far.places
        if self.units == "image":
            cell = far.sizes / far.sizes.new_tensor(far.grid)
            error = error * (cell.flip(1) / far.sizes.amax(dim=1, keepdim=True))[:, None]
        if self.measure == "l2":
            distance: Tensor = torch.linalg.vector_norm(error, dim=2)
            return distance
        return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=self.beta).sum(dim=2)

    def places(self, near: End, far: End) -> Tensor:
        """`(B, K, 2)` (x, y) where the keypoints of `near` are found, in cells of `far`."""
        logits, centres = self.logits(near, far), far.centres()
        aside = centres - centres[logits.argmax(dim=2)][:, :, None]
        if self.kind == "window_softargmax":
            logits = logits.masked_fill((aside.abs() > self.window // 2).any(dim=3), -torch.inf)
        elif self.kind == "kernel_softargmax":
            logits = logits * torch.exp(-aside.square().sum(dim=3) / (2 * self.sigma**2))
        return logits.softmax(dim=2) @ centres
