"""Optimal transport from the keypoints of one image to the cells of the other."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.errors import InputError
from ditf_probe.losses.ends import End
from ditf_probe.losses.searching import GaussianTerm
from ditf_probe.losses.terms import check_positive


class OptimalTransport(GaussianTerm):
    """Cross-entropy of the entropic transport plan from keypoints to cells with a Gaussian around the partner.

    Each keypoint of an image sends a mass of 1, each cell takes a mass of `capacity`; what no keypoint fills comes from
    one more row, the rest of the image, to which all cells are alike. So keypoints compete for cells: two that look
    alike cannot both be found at one place. In a softmax over the map, each keypoint chooses alone;
    `GaussianCrossEntropy` is the limit of a large `capacity`.

    Entropic transport and its iterations: Cuturi, NeurIPS 2013; as the last layer of a matcher, with a row and a column
    of leftovers: SuperGlue (Sarlin et al., CVPR 2020, section 3.2); between the pixels of two images of one category:
    SCOT (Liu et al., CVPR 2020). Keypoints here are known to be visible: no column is for those without a partner.

    Args:
        capacity: Mass that a cell takes, in keypoints. Two keypoints in one cell need 2.
        iterations: Of Sinkhorn, in the log domain. The masses of keypoints are met exactly, those of cells nearly.
        sigma: Standard deviation of the Gaussian, in cells of the searched map; at least 0.01.
        temperature: Cosines are divided by this, the weight of the entropy; where it starts if it is learnt.
        learn_temperature: Whether the temperature is a parameter, kept between 0.01 and 1.
        symmetric: Whether keypoints of the target are sent to the source too.

    Raises:
        InputError: A number out of range.
    """

    def __init__(
        self,
        capacity: float = 1.0,
        iterations: int = 20,
        sigma: float = 0.7,
        temperature: float = 0.07,
        learn_temperature: bool = True,
        symmetric: bool = True,
    ) -> None:
        super().__init__(sigma, temperature, learn_temperature, symmetric)
        check_positive("capacity", capacity)
        if iterations < 1:
            raise InputError("iterations", iterations, "give at least one iteration")
        self.capacity, self.iterations = capacity, iterations

    def each(self, near: End, far: End, seen: Tensor) -> Tensor:
        """As in `SearchTerm.each`.

        Raises:
            InputError: An image has more keypoints than its partner's map has room for.
        """
        logs = self.plan(near, far, seen)
        return -(self.gaussians(far) * logs.masked_fill(~seen[..., None], 0.0)).sum(dim=2)

    def plan(self, near: End, far: End, seen: Tensor) -> Tensor:
        """`(B, K, h * w)` logarithm of the mass from each keypoint to each cell; -inf in rows of padding."""
        logits = self.logits(near, far)
        count, cells = logits.shape[1:]
        if count >= self.capacity * cells:
            raise InputError("capacity", self.capacity, f"give more, {count} keypoints must fit into {cells} cells")
        rest = torch.log(self.capacity * cells - seen.sum(dim=1, keepdim=True).to(logits.dtype))
        rows = torch.cat([torch.zeros_like(logits[..., 0]).masked_fill(~seen, -torch.inf), rest], dim=1)
        columns = torch.full_like(logits[:, 0], math.log(self.capacity))
        return log_sinkhorn(F.pad(logits, (0, 0, 0, 1)), rows, columns, self.iterations)[:, :-1]


def log_sinkhorn(scores: Tensor, rows: Tensor, columns: Tensor, iterations: int) -> Tensor:
    """The entropic transport plan, by Sinkhorn's iterations in the log domain.

    Args:
        scores: `(..., M, N)`, what transport from row to column brings in, divided by the weight of the entropy.
        rows: `(..., M)` logarithm of the mass that each row sends; -inf for none.
        columns: `(..., N)` logarithm of the mass that each column takes; the sums of both masses are equal.
        iterations: How often columns and rows are scaled in turn; 0 scales rows alone, which is a softmax.

    Returns:
        `(..., M, N)` logarithm of the plan. Its row sums are exact, its column sums where it has converged.
    """
    below = torch.zeros_like(columns)
    for _ in range(iterations):
        beside = rows - (scores + below[..., None, :]).logsumexp(dim=-1)
        below = columns - (scores + beside[..., None]).logsumexp(dim=-2)
    beside = rows - (scores + below[..., None, :]).logsumexp(dim=-1)
    return scores + beside[..., None] + below[..., None, :]
