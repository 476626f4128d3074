"""Smooth maps of the plane and rendering through them: homographies, thin-plate splines, bilinear sampling.

A view is rendered by asking, for every pixel of the view, which point of the photo it shows. Maps
therefore run from view to photo. Points are `(..., 2)` float64, x before y, pixel centres at integers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def apply_homography(matrix: Points, points: Points) -> Points:
    """Maps points by a `(3, 3)` homography."""
    mapped: Points = (points @ matrix[:2, :2].T + matrix[:2, 2]) / (points @ matrix[2, :2] + matrix[2, 2])[..., None]
    return mapped


def homography_between(source: Points, target: Points) -> Points:
    """The `(3, 3)` homography that takes four points `(4, 2)` to four others (direct linear transform)."""
    rows, values = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)


@dataclass(frozen=True)
class ThinPlateSpline:
    """The smoothest displacement through given displacements at control points (Bookstein, PAMI 1989).

    Attributes:
        controls: `(N, 2)` control points.
        weights: `(N, 2)` coefficients of the kernel `r^2 log r`.
        affine: `(3, 2)` coefficients of 1, x and y.
    """

    controls: Points
    weights: Points
    affine: Points

    @classmethod
    def through(cls, controls: Points, displacements: Points) -> "ThinPlateSpline":
        """Fits the spline: `(N, 2)` displacements at `(N, 2)` controls that are not all on one line."""
        n = len(controls)
        system = np.zeros((n + 3, n + 3))
        system[:n, :n] = _kernel(controls, controls)
        system[:n, n], system[:n, n + 1 :] = 1, controls
        system[n:, :n] = system[:n, n:].T
        solution = np.linalg.solve(system, np.concatenate([displacements, np.zeros((3, 2))]))
        return cls(controls, solution[:n], solution[n:])

    def __call__(self, points: Points) -> Points:
        """The displaced points, same shape."""
        flat = points.reshape(-1, 2)
        moved: Points = flat + self.affine[0] + flat @ self.affine[1:] + _kernel(flat, self.controls) @ self.weights
        return moved.reshape(points.shape)


def _kernel(points: Points, controls: Points) -> Points:
    squared = np.square(points[:, :1] - controls[:, 0])
    squared += np.square(points[:, 1:] - controls[:, 1])
    # r^2 log r = (r^2 log r^2) / 2, which tends to 0 with r.
    logarithms = np.log(np.maximum(squared, 1e-300))
    return np.multiply(squared, logarithms, out=logarithms) * 0.5


def pixel_grid(size: tuple[int, int]) -> Points:
    """`(H, W, 2)`: the centre of every pixel."""
    ys, xs = np.mgrid[: size[0], : size[1]]
    return np.stack([xs, ys], axis=-1).astype(np.float64)


def folds(mapped: Points) -> bool:
    """Whether a map of the pixel grid, `(H, W, 2)`, turns over anywhere, so that two pixels show one point."""
    along_x, along_y = np.diff(mapped, axis=1)[:-1], np.diff(mapped, axis=0)[:, :-1]
    determinant = along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]
    return bool((determinant <= 0).any())


def inside(points: Points, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Whether points lie between the outermost pixel centres of an image of `(height, width)`: `(...)` bool."""
    limits = np.array([size[1] - 1, size[0] - 1])
    return np.asarray(((points >= 0) & (points <= limits)).all(-1))


def sample_bilinear(image: NDArray[np.float32], points: Points, fill: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reads an image between its pixels.

    Args:
        image: `(H, W, C)`, at least 2 pixels on each side.
        points: `(..., 2)` in pixels of the image.
        fill: `(C,)` value outside the outermost pixel centres.

    Returns:
        `(..., C)`.
    """
    height, width = image.shape[:2]
    x = np.clip(points[..., 0], 0, width - 1)
    y = np.clip(points[..., 1], 0, height - 1)
    x0 = np.minimum(x.astype(np.int64), width - 2)
    y0 = np.minimum(y.astype(np.int64), height - 2)
    fx, fy = (x - x0).astype(np.float32)[..., None], (y - y0).astype(np.float32)[..., None]
    top = image[y0, x0] * (1 - fx) + image[y0, x0 + 1] * fx
    bottom = image[y0 + 1, x0] * (1 - fx) + image[y0 + 1, x0 + 1] * fx
    values: NDArray[np.float32] = top * (1 - fy) + bottom * fy
    return np.where(inside(points, (height, width))[..., None], values, fill)
