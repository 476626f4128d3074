"""Cross-entropy between where a keypoint is found and a Gaussian around where it is."""

from torch import Tensor

from ditf_probe.losses.ends import End
from ditf_probe.losses.searching import GaussianTerm


class GaussianCrossEntropy(GaussianTerm):
    """Cross-entropy of the softmax over the searched map with a Gaussian around the partner as its target.

    Cells beside the partner are nearly right and are told so, where `DenseContrast` leaves them out. The least value is
    the entropy of the Gaussian, above 0. With a small `sigma` and partners at cell centres it is `DenseContrast`
    without a margin.

    SD4Match (Li et al., CVPR 2024) trains with such a target; its published code takes 7 x 7 cells with a standard
    deviation of 1.5. Here the Gaussian is sampled at the cells of the whole map, with sum 1 also
    where the map ends.

    Args:
        sigma: Standard deviation of the Gaussian, in cells of the searched map; at least 0.01.
        temperature: Cosines are divided by this; where it starts if it is learnt.
        learn_temperature: Whether the temperature is a parameter, kept between 0.01 and 1.
        symmetric: Whether keypoints of the target are searched in the source too.

    Raises:
        InputError: A number out of range.
    """

    def each(self, near: End, far: End, seen: Tensor) -> Tensor:
        """As in `SearchTerm.each`."""
        del seen
        return -(self.gaussians(far) * self.logits(near, far).log_softmax(dim=2)).sum(dim=2)
