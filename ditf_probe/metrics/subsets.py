"""The geometry-aware subset: keypoints that have a twin, such as the other of two paws.

Zhang et al., CVPR 2024 (arXiv 2311.17034), "Telling Left from Right", section 3: keypoints of one category that share a
part and differ in left, right, front or back only form a group. A keypoint is geometry-aware for a pair of images if
the target shows more than one of its group, so that the twin may be taken for it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def geometry_aware(groups: Sequence[Sequence[int]], visible: Tensor, target_visible: Tensor) -> Tensor:
    """Marks the geometry-aware keypoints of a pair.

    A group counts if the target shows two or more of its members and both images show one or more; its points are the
    members that both images show. That is how `pck_train.py` of GeoAware-SC counts.

    Args:
        groups: Row numbers of the keypoints of each group; see `PairDataset.keypoint_groups`. Rows that the pair does
            not have count as not visible.
        visible: `(K,)` bool, visible in both images.
        target_visible: `(K,)` bool, visible in the target.

    Returns:
        `(K,)` bool. PCK over the subset is PCK with this in place of `visible`.
    """
    chosen = torch.zeros_like(visible)
    for group in groups:
        members = [row for row in group if row < len(visible)]
        if target_visible[members].sum() >= 2:
            chosen[members] |= visible[members]
    return chosen
