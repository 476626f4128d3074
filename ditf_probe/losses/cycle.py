"""There and back again: a keypoint matched to the other image should be matched back to itself."""

from torch import Tensor
from torch.nn import functional as F

from ditf_probe.losses.ends import End
from ditf_probe.losses.searching import GaussianTerm


class CycleConsistency(GaussianTerm):
    """Cross-entropy between where a soft cycle returns to and a Gaussian around where it began.

    The soft nearest neighbour of a keypoint in the other image, the mean of that image's descriptors under the softmax
    of their cosines, is searched in the first image. Of the partner only its visibility is used, so the term teaches
    nothing by itself about which match is right: any one-to-one relabelling of the target is consistent. It belongs
    beside a term that knows the partner.

    The soft nearest neighbour and the classification of the way back: Temporal Cycle-Consistency Learning (Dwibedi et
    al., CVPR 2019, section 3), there over the frames of two videos.

    Args:
        sigma: Standard deviation of the Gaussian, in cells of the map where the cycle begins; at least 0.01.
        temperature: Cosines are divided by this on both ways; where it starts if it is learnt.
        learn_temperature: Whether the temperature is a parameter, kept between 0.01 and 1.
        symmetric: Whether cycles begin in the target too.

    Raises:
        InputError: A number out of range.
    """

    way_back = True

    def each(self, near: End, far: End, seen: Tensor) -> Tensor:
        """As in `SearchTerm.each`."""
        del seen
        neighbours = F.normalize(far.mean_of_units(self.logits(near, far).softmax(dim=2)), dim=2)
        back = near.cosines(neighbours) / self.temperature
        return -(self.gaussians(near) * back.log_softmax(dim=2)).sum(dim=2)
