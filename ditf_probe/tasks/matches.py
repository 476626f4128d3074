"""What a row found for one pair."""

from typing import NamedTuple

from torch import Tensor


class Match(NamedTuple):
    """Matches of the V keypoints of a pair that are visible in the source image, in row order, on the CPU.

    Attributes:
        points: `(V, 2)` float32 (x, y) in pixels of the original target image.
        similarity: `(V,)` float32 cosine of each match in [-1, 1]; NaN where a row does not compare features.
        accepted: `(V,)` bool, False where the matching rule says "no match".
        grid: (height, width) in cells of the target's feature map over the original image; None without one, or where
            cells of the padding are searched too.
        canvas: Longer side of the prepared target image, padding and all, in pixels of the original target image.
    """

    points: Tensor
    similarity: Tensor
    accepted: Tensor
    grid: tuple[int, int] | None = None
    canvas: float | None = None
