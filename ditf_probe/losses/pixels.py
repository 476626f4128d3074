"""What trains a head that labels pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.probes.segmentation import enlarged


def pixel_cross_entropy(scores: Sequence[Tensor], masks: Sequence[Tensor], ignore_index: int = 255) -> Tensor:
    """Mean cross-entropy over the labelled pixels of a batch, scores enlarged to the masks.

    Args:
        scores: B maps `(classes, h, w)`.
        masks: B masks `(H, W)`, integers.
        ignore_index: Marks pixels that count nowhere.

    Returns:
        Scalar; 0 where no pixel is labelled.
    """
    groups: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for number, (one, mask) in enumerate(zip(scores, masks, strict=True)):
        groups.setdefault((one.shape, mask.shape), []).append(number)
    total, count = scores[0].new_zeros(()), 0
    for members in groups.values():
        labels = torch.stack([masks[i] for i in members]).long()
        large = enlarged(torch.stack([scores[i] for i in members]), labels.shape[1:])
        total = total + F.cross_entropy(large, labels, ignore_index=ignore_index, reduction="sum")
        count += int((labels != ignore_index).sum())
    return total / max(1, count)
