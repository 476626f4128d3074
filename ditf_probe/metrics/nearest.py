"""Which annotated keypoint a prediction lies nearest to: what PCK-dagger adds to PCK."""

import torch
from torch import Tensor

from ditf_probe.precision import to_float64


def nearest_keypoints(predictions: Tensor, targets: Tensor, target_visible: Tensor) -> Tensor:
    """Finds the visible keypoint of the target that is nearest to each prediction.

    Args:
        predictions: `(B, K, 2)` (x, y) in pixels of the original target image.
        targets: `(B, K, 2)` annotated keypoints in the same pixels; those that are not visible may hold anything.
        target_visible: `(B, K)` bool, which keypoints the target shows.

    Returns:
        `(B, K)` int64 row of the nearest keypoint, -1 where the target shows none. Of equally near ones it is the
        prediction's own, otherwise the first.
    """
    offsets = to_float64(predictions)[:, :, None] - to_float64(targets)[:, None]
    hidden = ~target_visible.to(offsets.device)[:, None]
    distance = offsets.square().sum(-1).masked_fill(hidden, torch.inf).nan_to_num(torch.inf, posinf=torch.inf)
    count = distance.shape[-1]
    if not count:
        return torch.zeros(distance.shape[:2], dtype=torch.int64, device=predictions.device)
    least, nearest = distance.min(-1)
    own = torch.arange(count, device=distance.device)
    nearest = torch.where(distance.diagonal(dim1=1, dim2=2) <= least, own, nearest)
    return nearest.masked_fill(hidden.all(-1), -1).to(predictions.device)
