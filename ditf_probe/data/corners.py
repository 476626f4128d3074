"""Keypoints on photos without annotation: well-spread corners (Shi and Tomasi, CVPR 1994, "Good features to track")."""

import numpy as np
from numpy.typing import NDArray


def corner_strength(grey: NDArray[np.float32], radius: int = 2) -> NDArray[np.float32]:
    """Smaller eigenvalue of the structure tensor of each pixel.

    Args:
        grey: `(H, W)` brightness.
        radius: Half the side of the window, in pixels.

    Returns:
        `(H, W)`, zero on flat ground and along straight edges.
    """
    from scipy.ndimage import sobel, uniform_filter

    dx, dy = sobel(grey, axis=1), sobel(grey, axis=0)
    xx, yy, xy = (uniform_filter(product, 2 * radius + 1) for product in (dx * dx, dy * dy, dx * dy))
    # Clamped at zero: rounding may push the difference of two near equals below it.
    strength: NDArray[np.float32] = np.maximum((xx + yy - np.sqrt((xx - yy) ** 2 + 4 * xy * xy)) / 2, 0)
    return strength


def spread_corners(
    grey: NDArray[np.float32],
    allowed: NDArray[np.bool_],
    count: int,
    *,
    distance: float,
    quality: float = 0.003,
) -> NDArray[np.int64]:
    """The strongest corners that keep a distance from each other.

    Args:
        grey: `(H, W)` brightness.
        allowed: `(H, W)`, where a corner may lie.
        count: At most so many.
        distance: Smallest distance between two of them, in pixels.
        quality: Weakest corner accepted, relative to the strongest allowed one.

    Returns:
        `(K, 2)` pixel indices, x before y, strongest first; K <= count.
    """
    from scipy.ndimage import maximum_filter

    strength = np.where(allowed, corner_strength(grey), 0)
    weakest = quality * float(strength.max())
    ys, xs = np.nonzero((strength == maximum_filter(strength, 3)) & (strength > max(weakest, 1e-3)))
    # Stable: corners of equal strength stay in row-major order.
    order = np.argsort(-strength[ys, xs], kind="stable")
    candidates = np.stack([xs[order], ys[order]], axis=1)
    chosen: list[NDArray[np.int64]] = []
    while len(candidates) and len(chosen) < count:
        chosen.append(candidates[0])
        apart = ((candidates - candidates[0]) ** 2).sum(1) >= distance**2
        candidates = candidates[apart & (np.arange(len(candidates)) > 0)]
    return np.array(chosen, dtype=np.int64).reshape(-1, 2)
