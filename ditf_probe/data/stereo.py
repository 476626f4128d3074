"""The Middlebury motorcycle stereo pair, with dense measured ground truth, from the scikit-image wheel."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.data.corners import spread_corners
from ditf_probe.data.pairs import Pair, PairDataset, Side, check_range
from ditf_probe.data.photos import builtin_file, read_photo
from ditf_probe.errors import InputError

_OCCLUSION_MARGIN = 1.0  # pixels of disparity by which a nearer surface must exceed a point to hide it
_STEEP = 1.5  # pixels of disparity within 5 x 5 pixels, beyond which a point lies on a depth edge
_ATTEMPTS = 50


class StereoMotorcycle(PairDataset):
    """Windows of a real stereo pair with subpixel ground truth (Scharstein et al., GCPR 2014).

    `left[y, x]` shows the same point as `right[y, x - d]`, where the disparity d of the left picture is
    infinite if it was not measured. Keypoints are corners of the left picture with measured disparity, away
    from depth edges, inside the right picture and not hidden there by a nearer surface.

    The disparities are at most 60 of 741 pixels, so on the whole pictures the same relative position is
    always within 0.10 of the longer side. By default a pair is therefore a window of each picture,
    displaced against each other at random; a window of a stereo picture is shifted only by whole pixels, so
    the ground truth stays as measured. All pairs show one scene: there is one sampling unit and no interval.

    Args:
        num_pairs: Number of pairs of windows; must be 1 for whole pictures.
        num_keypoints: At most so many per pair.
        window: Side of the square windows in pixels; None for the whole pictures.
        seed: Another seed gives other windows.

    Raises:
        InputError: If an argument is out of range or scikit-image carries no stereo pair.
    """

    name = "stereo"
    unit = "scene"
    threshold = "image"

    def __init__(self, num_pairs: int = 30, num_keypoints: int = 16, window: int | None = 256, seed: int = 0) -> None:
        check_range("num_pairs", num_pairs, 0)
        check_range("num_keypoints", num_keypoints, 4)
        check_range("seed", seed, 0)
        if window is None and num_pairs > 1:
            raise InputError("num_pairs", num_pairs, "there is one pair of whole pictures; use 1 or set `window`")
        if window is not None:
            check_range("window", window, 64, 400)
        self.num_pairs, self.num_keypoints, self.window, self.seed = num_pairs, num_keypoints, window, seed
        self._pairs: dict[int, Pair] = {}
        builtin_file("motorcycle_disp.npz")

    def __len__(self) -> int:
        return self.num_pairs

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        if index not in self._pairs:
            self._pairs[index] = self._draw(index)
        return self._pairs[index]

    def image(self, image_id: str) -> Tensor:
        """A picture or a window of it: `(3, H, W)` uint8 RGB."""
        _, side, *cut = image_id.split("/")
        picture = {"left": self._scene.left, "right": self._scene.right}[side]
        if not cut:
            return picture.clone()
        x, y, width, height = (int(number) for number in cut[0].split(","))
        return picture[:, y : y + height, x : x + width].clone()

    @cached_property
    def _scene(self) -> "_Scene":
        return _read_scene()

    def _draw(self, index: int) -> Pair:
        scene = self._scene
        height, width = scene.disparity.shape
        if self.window is None:
            whole = _Window(0, 0, width, height)
            return self._pair(index, whole, whole)
        rng = np.random.default_rng([self.seed, index])
        best = self._pair(index, *_draw_windows(scene.disparity, self.window, rng))
        for _ in range(_ATTEMPTS):
            # Some corners of the scene have little texture; the next draw finds more.
            if 2 * len(best.visible) > self.num_keypoints:
                break
            pair = self._pair(index, *_draw_windows(scene.disparity, self.window, rng))
            best = max(best, pair, key=lambda drawn: len(drawn.visible))
        return best

    def _pair(self, index: int, left: "_Window", right: "_Window") -> Pair:
        scene = self._scene
        ys, xs = np.mgrid[: scene.disparity.shape[0], : scene.disparity.shape[1]]
        matched = np.where(scene.usable, xs - scene.disparity, -1.0)
        shared = scene.usable & left.contains(xs, ys) & right.contains(matched, ys)
        distance = 0.6 * float(shared.sum() / self.num_keypoints) ** 0.5
        corners = spread_corners(scene.grey, shared, self.num_keypoints, distance=distance)
        x, y = corners[:, 0], corners[:, 1]
        source = np.stack([x - left.x, y - left.y], axis=1)
        target = np.stack([matched[y, x] - right.x, y - right.y], axis=1)
        whole = scene.grey.shape
        sides = [_side(left.name("left", whole), left, source), _side(right.name("right", whole), right, target)]
        return Pair(index, "motorcycle", "motorcycle", sides[0], sides[1])


@dataclass(frozen=True, slots=True)
class _Scene:
    """Both pictures `(3, H, W)` uint8, the left one's brightness and disparity, and where keypoints may lie."""

    left: Tensor
    right: Tensor
    grey: NDArray[np.float32]
    disparity: NDArray[np.float32]
    usable: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Window:
    x: int
    y: int
    width: int
    height: int

    def contains(self, xs: NDArray[np.floating], ys: NDArray[np.integer]) -> NDArray[np.bool_]:
        x, y = xs - self.x, ys - self.y
        return np.asarray((x >= 0) & (x <= self.width - 1) & (y >= 0) & (y <= self.height - 1))

    def name(self, side: str, whole: tuple[int, ...]) -> str:
        if (self.height, self.width) == whole:
            return f"motorcycle/{side}"
        return f"motorcycle/{side}/{self.x},{self.y},{self.width},{self.height}"


def _read_scene() -> _Scene:
    left, right = (read_photo(builtin_file(f"motorcycle_{side}.png")) for side in ("left", "right"))
    with np.load(builtin_file("motorcycle_disp.npz"), allow_pickle=False) as file:
        disparity = np.asarray(file["arr_0"], dtype=np.float32)
    grey = left.float().mean(0).numpy()
    usable = np.isfinite(disparity) & ~_steep(disparity) & ~hidden(disparity)
    return _Scene(left, right, grey, disparity, usable)


def _steep(disparity: NDArray[np.float32]) -> NDArray[np.bool_]:
    from scipy.ndimage import maximum_filter, minimum_filter

    # Infinite next to finite counts as steep: what was not measured is mostly behind an edge.
    finite = np.where(np.isfinite(disparity), disparity, 1e6)
    return np.asarray(maximum_filter(finite, 5) - minimum_filter(finite, 5) > _STEEP)


def hidden(disparity: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which points of the left picture cannot be seen in the right one.

    A point is hidden where a nearer point (larger disparity) of its row lands within a pixel of it, or where
    it lands outside the right picture.

    Args:
        disparity: `(H, W)` in pixels of the left picture, not finite where unknown.

    Returns:
        `(H, W)` bool; unknown points are reported hidden.
    """
    height, width = disparity.shape
    known = np.isfinite(disparity)
    rows, columns = np.nonzero(known)
    found = disparity[known]
    landed = columns - found
    within = landed >= 0
    nearest = np.full((height, width + 2), -np.inf, dtype=np.float32)  # one spare column on each side
    cells = np.rint(landed).astype(np.int64) + 1
    np.maximum.at(nearest, (rows[within], cells[within]), found[within])
    around = np.maximum(np.maximum(nearest[:, :-2], nearest[:, 1:-1]), nearest[:, 2:])
    result = np.ones((height, width), dtype=bool)
    cells = np.clip(cells - 1, 0, width - 1)
    result[known] = ~within | (around[rows, cells] > found + _OCCLUSION_MARGIN)
    return result


def _draw_windows(disparity: NDArray[np.float32], side: int, rng: np.random.Generator) -> tuple[_Window, _Window]:
    """A window of the left picture, and one of the right that shows about the same place off centre."""
    height, width = disparity.shape
    x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
    seen = disparity[y : y + side, x : x + side]
    usual = float(np.median(seen[np.isfinite(seen)])) if np.isfinite(seen).any() else 0.0
    shift = rng.uniform(-0.4, 0.4, 2) * side
    right_x = int(np.clip(round(x - usual + shift[0]), 0, width - side))
    right_y = int(np.clip(round(y + shift[1]), 0, height - side))
    return _Window(x, y, side, side), _Window(right_x, right_y, side, side)


def _side(image_id: str, window: _Window, points: NDArray[np.floating | np.integer]) -> Side:
    keypoints = torch.from_numpy(points).float()
    box = torch.tensor([0.0, 0.0, window.width - 1.0, window.height - 1.0])
    return Side(image_id, (window.height, window.width), keypoints, torch.ones(len(points), dtype=torch.bool), box)
