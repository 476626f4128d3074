"""Maps of the plane and sampling, against OpenCV, SciPy and plain loops."""

import cv2
import numpy as np
import pytest
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates

from ditf_probe.data.corners import corner_strength, spread_corners
from ditf_probe.data.warps import (
    ThinPlateSpline,
    apply_homography,
    folds,
    homography_between,
    inside,
    pixel_grid,
    sample_bilinear,
)

RNG = np.random.default_rng(1)


def test_homography_equals_opencv() -> None:
    source = np.array([[0, 0], [20, 1], [19, 22], [-1, 18]], dtype=np.float64)
    target = source * 1.3 + RNG.uniform(-2, 2, (4, 2))
    found = homography_between(source, target)
    expected = cv2.getPerspectiveTransform(source.astype(np.float32), target.astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(apply_homography(found, source), target, atol=1e-10)
    points = RNG.uniform(0, 20, (3, 5, 2))
    by_opencv = cv2.perspectiveTransform(points.reshape(-1, 1, 2), found).reshape(points.shape)
    np.testing.assert_allclose(apply_homography(found, points), by_opencv, atol=1e-10)


def test_thin_plate_spline_equals_scipy() -> None:
    controls = RNG.uniform(0, 50, (9, 2))
    displacements = RNG.normal(0, 3, (9, 2))
    spline = ThinPlateSpline.through(controls, displacements)
    reference = RBFInterpolator(controls, displacements, kernel="thin_plate_spline", degree=1)
    points = RNG.uniform(-10, 60, (40, 2))
    np.testing.assert_allclose(spline(points), points + reference(points), atol=1e-8)
    np.testing.assert_allclose(spline(controls), controls + displacements, atol=1e-8)
    np.testing.assert_allclose(spline(points.reshape(4, 10, 2)).reshape(-1, 2), spline(points))


def test_folding_maps_are_told_apart() -> None:
    grid = pixel_grid((6, 8))
    assert grid[2, 5].tolist() == [5, 2]
    assert not folds(grid)
    assert folds(grid * [-1, 1])
    bent = grid.copy()
    bent[3, 4, 0] += 1.5
    assert folds(bent)


def test_sampling_equals_scipy_inside_and_fills_outside() -> None:
    image = RNG.uniform(0, 255, (9, 7, 3)).astype(np.float32)
    points = RNG.uniform(-2, 10, (200, 2))
    fill = np.array([1, 2, 3], dtype=np.float32)
    found = sample_bilinear(image, points, fill)
    within = (points[:, 0] >= 0) & (points[:, 0] <= 6) & (points[:, 1] >= 0) & (points[:, 1] <= 8)
    assert 20 < within.sum() < 180
    assert (inside(points, (9, 7)) == within).all()
    for channel in range(3):
        expected = map_coordinates(image[..., channel], points[within].T[::-1], order=1)
        np.testing.assert_allclose(found[within, channel], expected, atol=1e-3)
    assert (found[~within] == fill).all()
    assert (sample_bilinear(image, pixel_grid((9, 7)), fill) == image).all()


def test_corner_strength_equals_the_smaller_eigenvalue() -> None:
    grey = RNG.uniform(0, 1, (12, 12)).astype(np.float32)
    found = corner_strength(grey, radius=1)
    dx = cv2.Sobel(grey, cv2.CV_64F, 1, 0)
    dy = cv2.Sobel(grey, cv2.CV_64F, 0, 1)
    for y, x in ((4, 5), (6, 6), (8, 3)):
        tensor = np.zeros((2, 2))
        for v in range(y - 1, y + 2):
            for u in range(x - 1, x + 2):
                gradient = np.array([dx[v, u], dy[v, u]])
                tensor += np.outer(gradient, gradient) / 9
        assert found[y, x] == pytest.approx(np.linalg.eigvalsh(tensor)[0], rel=1e-3)


def test_corners_are_found_spread_and_allowed() -> None:
    grey = np.zeros((60, 60), dtype=np.float32)
    grey[20:40, 20:40] = 200  # four corners; edges are none
    everywhere = np.ones((60, 60), dtype=bool)
    corners = spread_corners(grey, everywhere, 10, distance=8, quality=0.3)
    expected = {(20, 20), (39, 20), (20, 39), (39, 39)}
    assert len(corners) == 4
    assert all(min(np.hypot(x - u, y - v) for u, v in expected) <= 2 for x, y in corners)
    left = everywhere.copy()
    left[:, 30:] = False
    assert len(spread_corners(grey, left, 10, distance=8, quality=0.3)) == 2
    assert len(spread_corners(grey, everywhere, 3, distance=8, quality=0.3)) == 3
    assert len(spread_corners(grey, everywhere, 10, distance=100, quality=0.3)) == 1
    assert spread_corners(np.zeros_like(grey), everywhere, 10, distance=8).shape == (0, 2)
