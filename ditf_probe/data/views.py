"""Two views of one photo: random windows into it, bent, recoloured, with the keypoints that both show."""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ditf_probe.data.corners import spread_corners
from ditf_probe.data.photos import read_photo
from ditf_probe.data.warps import (
    Points,
    ThinPlateSpline,
    apply_homography,
    folds,
    homography_between,
    inside,
    pixel_grid,
    sample_bilinear,
)
from ditf_probe.errors import InputError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Photo:
    """A decoded photo: `(H, W, 3)` float32 in [0, 255] and the SHA-256 of its pixels."""

    pixels: Array
    digest: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def grey(self) -> Array:
        """`(H, W, 1)` brightness."""
        return np.asarray(self.pixels.mean(-1, keepdims=True), dtype=np.float32)

    def seen_through(self, view_to_photo: Points) -> Array:
        """`(H, W, 3)`: the view; its mean colour stands where the photo ends."""
        return sample_bilinear(self.pixels, view_to_photo, self.pixels.mean((0, 1)))


@dataclass(frozen=True)
class Views:
    """Two views of a photo.

    Attributes:
        source: `(3, 3)` homography from the source view to the photo.
        target: `(3, 3)` homography from the bent target view to the photo.
        bend: Applied to points of the target view before `target`.
        source_keypoints: `(K, 2)` in the source view.
        target_keypoints: `(K, 2)` in the target view, row by row the same points of the photo.
    """

    source: Points
    target: Points
    bend: ThinPlateSpline
    source_keypoints: Points
    target_keypoints: Points

    def source_to_photo(self, points: Points) -> Points:
        """The points of the photo that points `(..., 2)` of the source view show."""
        return apply_homography(self.source, points)

    def target_to_photo(self, points: Points) -> Points:
        """The points of the photo that points `(..., 2)` of the target view show."""
        return apply_homography(self.target, self.bend(points))


@lru_cache(maxsize=16)
def load_photo(path: Path, image_size: int) -> Photo:
    """Decodes a photo, its longer side reduced to `image_size` pixels at most.

    Raises:
        InputError: If it cannot be read or a side has less than 16 pixels.
    """
    pixels = read_photo(path).permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    scale = min(1.0, image_size / max(height, width))
    size = (round(width * scale), round(height * scale))
    if min(size) < 16:
        raise InputError("root", str(path), f"{width}x{height} pixels are too small or too narrow; remove this photo")
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    return Photo(small.astype(np.float32), hashlib.sha256(repr(small.shape).encode() + small.tobytes()).hexdigest())


def draw_views(photo: Photo, count: int, strength: float, rng: np.random.Generator) -> Views:
    """Draws two views and at most `count` keypoints, corners of the target view inside both views."""
    size = photo.size
    source, target = _draw_homography(size, strength, rng), _draw_homography(size, strength, rng)
    views = Views(source, target, _draw_bend(size, strength, rng), np.empty((0, 2)), np.empty((0, 2)))
    back: Points = np.asarray(np.linalg.inv(source), dtype=np.float64)
    shown = views.target_to_photo(pixel_grid(size))
    shared = inside(shown, size) & inside(apply_homography(back, shown), size)
    grey = sample_bilinear(photo.grey, shown, photo.grey.mean((0, 1)))[..., 0]
    # Corners cover the shared area evenly: each has about its share of it to itself.
    corners = spread_corners(grey, shared, count, distance=0.6 * (shared.sum() / count) ** 0.5)
    # Off the pixel centres by up to half a pixel, as annotated points are.
    moved = corners + rng.uniform(-0.5, 0.5, (count, 2))[: len(corners)]
    in_photo = views.target_to_photo(moved)
    in_source = apply_homography(back, in_photo)
    kept = inside(moved, size) & inside(in_photo, size) & inside(in_source, size)
    return replace(views, source_keypoints=in_source[kept], target_keypoints=moved[kept])


def _draw_homography(size: tuple[int, int], strength: float, rng: np.random.Generator) -> Points:
    """View to photo: a turned, shrunk, shifted and slightly tilted window into the photo."""
    height, width = size
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], dtype=np.float64)
    centre = corners.mean(0)
    angle = np.deg2rad(rng.uniform(-35, 35) * strength)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    zoom = np.exp(rng.uniform(np.log(0.5), np.log(0.95)) * strength)
    tilt = rng.uniform(-0.08, 0.08, (4, 2)) * strength * [width, height]
    window = (corners - centre) @ turn.T * zoom + tilt
    # The window keeps inside the photo where it fits, whatever its angle.
    extent = window.max(0) - window.min(0)
    slack = np.maximum(np.array([width - 1, height - 1]) - extent, 0.12 * strength * np.array([width, height]))
    middle = (window.max(0) + window.min(0)) / 2
    return homography_between(corners, window - middle + centre + rng.uniform(-0.5, 0.5, 2) * slack)


def _draw_bend(size: tuple[int, int], strength: float, rng: np.random.Generator) -> ThinPlateSpline:
    """A thin-plate spline on a grid of 4 x 4 control points that does not fold."""
    height, width = size
    controls = pixel_grid((4, 4)).reshape(-1, 2) * [(width - 1) / 3, (height - 1) / 3]
    displacements = rng.normal(0, 0.035 * strength * max(size), controls.shape)
    # A spline this smooth cannot fold between points 4 pixels apart, so the check need not be denser.
    check = pixel_grid((-(-height // 4) + 1, -(-width // 4) + 1)) * 4.0
    spline = ThinPlateSpline.through(controls, displacements)
    while folds(spline(check)):
        displacements = displacements * 0.7
        spline = ThinPlateSpline.through(controls, displacements)
    return spline


def change_colours(view: Array, rng: np.random.Generator) -> Array:
    """Brightness, contrast, tint, saturation and noise of another camera: `(H, W, 3)` in [0, 255]."""
    grey = view.mean(-1, keepdims=True)
    view = grey + (view - grey) * np.float32(rng.uniform(0.6, 1.3))
    gains = np.float32(rng.uniform(0.8, 1.2)) * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    view = (view - 128) * gains + 128 + np.float32(rng.uniform(-25, 25))
    return np.clip(view + rng.normal(0, 3, view.shape).astype(np.float32), 0, 255)
