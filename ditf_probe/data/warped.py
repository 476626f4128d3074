"""Real photos with exact keypoints: two differently warped views of one photo."""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ditf_probe.data.pairs import Pair, PairDataset, Side, check_range
from ditf_probe.data.photos import builtin_photos, list_photos
from ditf_probe.data.problems import Problems
from ditf_probe.data.views import Photo, Views, change_colours, draw_views, load_photo
from ditf_probe.data.warps import pixel_grid
from ditf_probe.errors import InputError

_PARTS = {"all": (0, 1, 2, 3, 4), "train": (0, 1, 2), "val": (3,), "test": (4,)}
_ATTEMPTS = 20
_FEWEST_KEYPOINTS = 4


class WarpedPhotos(PairDataset):
    """Pairs of two views of one photo under random homographies and a thin-plate spline.

    The source view shows the photo through a homography `S`, the target view through a homography and a
    thin-plate spline `T`; both maps run from view to photo, so a view is rendered by evaluating its map at
    every pixel. Keypoints are corners of the target view: a corner q shows the photo point T(q), which lies
    at S^-1(T(q)) in the source view. Both steps are closed forms, so keypoints are exact to rounding
    without inverting the spline. Every keypoint is inside both views. Colours are changed apart in each
    view. Everything follows from (seed, split, index) and the photo.

    Splits share no photo: of every five photos in sorted order the first three are "train", the fourth is
    "val", the fifth "test"; "all" takes each. Pair i shows photo i modulo the number of photos, which is
    its sampling unit. No object is annotated, so the box is the whole view and thresholds are
    relative to the longer side of the view.

    Args:
        root: A folder of photos, searched at any depth; None for the photos in the scikit-image wheel.
        num_pairs: Number of pairs.
        image_size: Longer side of photo and views in pixels; smaller photos are kept as they are.
        num_keypoints: At most so many per pair; photos with little texture give fewer.
        seed: Another seed gives other warps.
        split: Which photos to take.
        strength: Scales rotation, shift, perspective and bending; 1 moves the average keypoint by
            about a quarter of the view.
        keep_going: Leave out photos whose names are not UTF-8 and list them in `problems`. Pixels are read pair by
            pair; `ditf-probe verify photos FOLDER --decode` finds damaged files beforehand.

    Raises:
        InputError: If an argument is out of range or a folder or photo cannot be used.
    """

    name = "warped"
    unit = "photo"
    threshold = "image"

    def __init__(
        self,
        root: str | Path | None = None,
        num_pairs: int = 100,
        image_size: int = 256,
        num_keypoints: int = 16,
        seed: int = 0,
        split: Literal["all", "train", "val", "test"] = "all",
        strength: float = 1.0,
        keep_going: bool = False,
    ) -> None:
        check_range("num_pairs", num_pairs, 0)
        check_range("image_size", image_size, 32)
        check_range("num_keypoints", num_keypoints, _FEWEST_KEYPOINTS)
        check_range("seed", seed, 0)
        if not 0 < strength <= 1.5:
            raise InputError("strength", strength, "use a number above 0 and at most 1.5")
        if split not in _PARTS:
            raise InputError("split", split, f"choose from {', '.join(_PARTS)}")
        problems = Problems(keep_going)
        photos = builtin_photos() if root is None else list_photos(root, problems=problems)
        self._photos = [photo for i, photo in enumerate(photos) if i % 5 in _PARTS[split]]
        if not self._photos:
            raise InputError("split", split, f'no photo among {len(photos)}; add photos or use "all"')
        self.num_pairs, self.image_size, self.num_keypoints = num_pairs, image_size, num_keypoints
        self.seed, self.split, self.strength = seed, split, strength
        self._drawn: dict[int, Views] = {}
        self._own = root is not None
        self.problems = problems.found

    def __len__(self) -> int:
        return self.num_pairs

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        photo, views = self._photo(index), self._views(index)
        size = photo.size
        visible = torch.ones(len(views.source_keypoints), dtype=torch.bool)
        box = torch.tensor([0.0, 0.0, size[1] - 1.0, size[0] - 1.0])
        sides = [
            Side(self._image_id(index, name), size, torch.from_numpy(points).float(), visible, box)
            for name, points in (("source", views.source_keypoints), ("target", views.target_keypoints))
        ]
        stem = self._path(index).stem
        return Pair(index, stem, f"{stem}-{photo.digest[:8]}", sides[0], sides[1])

    def image(self, image_id: str) -> Tensor:
        """Renders a view: `(3, H, W)` uint8 RGB."""
        _, _, number, name = image_id.split("/")
        index = int(number)
        if not 0 <= index < len(self) or image_id != self._image_id(index, name):
            raise KeyError(image_id)
        photo, views = self._photo(index), self._views(index)
        to_photo = views.source_to_photo if name == "source" else views.target_to_photo
        view = photo.seen_through(to_photo(pixel_grid(photo.size)))
        rng = np.random.default_rng(self._entropy(index, ("source", "target").index(name) + 1))
        pixels = np.rint(change_colours(view, rng)).astype(np.uint8)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """As in `PairDataset`, without drawing a view."""
        sides = ((index, name) for index in range(len(self)) for name in ("source", "target"))
        return {self._image_id(index, name): self._photo(index).size for index, name in sides}

    def image_ids(self) -> list[str]:
        """As in `PairDataset`, without drawing a view."""
        return list(self.image_sizes())

    def files(self) -> tuple[Path, ...]:
        """The photos of the split; empty for those of the scikit-image wheel."""
        return tuple(self._photos) if self._own else ()

    def _path(self, index: int) -> Path:
        return self._photos[index % len(self._photos)]

    def _photo(self, index: int) -> Photo:
        return load_photo(self._path(index), self.image_size)

    def _views(self, index: int) -> Views:
        if index not in self._drawn:
            self._drawn[index] = self._draw(index)
        return self._drawn[index]

    def _draw(self, index: int) -> Views:
        rng = np.random.default_rng(self._entropy(index, 0))
        best = draw_views(self._photo(index), self.num_keypoints, self.strength, rng)
        for _ in range(_ATTEMPTS):
            # Views with little in common say little; the next draw usually shares more.
            if 2 * len(best.target_keypoints) >= self.num_keypoints:
                break
            views = draw_views(self._photo(index), self.num_keypoints, self.strength, rng)
            best = max(best, views, key=lambda drawn: len(drawn.target_keypoints))
        if len(best.target_keypoints) < _FEWEST_KEYPOINTS:
            raise InputError("root", str(self._path(index)), "too little texture for keypoints; remove this photo")
        return best

    def _entropy(self, index: int, purpose: int) -> list[int]:
        return [self.seed, list(_PARTS).index(self.split), index, purpose]

    def _image_id(self, index: int, side: str) -> str:
        settings = (
            self._photo(index).digest,
            self.image_size,
            self.num_keypoints,
            self.seed,
            self.split,
            self.strength,
        )
        return f"warped/{hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}/{index:06d}/{side}"
