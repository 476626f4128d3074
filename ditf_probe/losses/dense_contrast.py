"""Contrast between a partner and the whole map that it is searched on."""

import math

import torch
from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.losses.ends import End
from ditf_probe.losses.searching import SearchTerm


class DenseContrast(SearchTerm):
    """InfoNCE of each keypoint against the whole map of the other image.

    The positive is the descriptor at the exact place of the partner, between cells if it lies there; the negatives are
    all cells further than `margin` from it: what the argmax of matching must not prefer. Other keypoints and other
    pairs play no part, unlike in `KeypointContrast`.

    InfoNCE is from van den Oord et al., arXiv 1807.03748, equation 4.

    Args:
        temperature: Cosines are divided by this; where it starts if it is learnt.
        learn_temperature: Whether the temperature is a parameter, kept between 0.01 and 1.
        margin: Radius around the partner without negatives, in cells of the searched map.
        symmetric: Whether keypoints of the target are searched in the source too.

    Raises:
        InputError: A number out of range.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        margin: float = 1.0,
        symmetric: bool = True,
    ) -> None:
        super().__init__(temperature, learn_temperature, symmetric)
        if not 0 <= margin < math.inf:
            raise InputError("margin", margin, "give a number of cells, 0 or more")
        self.margin = margin

    def each(self, near: End, far: End, seen: Tensor) -> Tensor:
        """As in `SearchTerm.each`; at least 0."""
        del seen
        positive = (near.descriptors * far.descriptors).sum(dim=2, keepdim=True) / self.temperature
        negatives = self.logits(near, far).masked_fill(far.distances() <= self.margin, -torch.inf)
        among = torch.cat([positive, negatives], dim=2)
        return among.logsumexp(dim=2) - positive[..., 0]
