"""Keypoints of single images: from opencv's detectors, or from files that another program wrote."""

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.data.pairs import check_range
from ditf_probe.errors import InputError


class Detector(ABC):
    """Finds keypoints, always the same in the same image.

    Args:
        num_keypoints: At most so many per image, the best ones.

    Raises:
        InputError: Fewer than one.
    """

    def __init__(self, num_keypoints: int = 1000) -> None:
        check_range("num_keypoints", num_keypoints, 1)
        self.num_keypoints = num_keypoints

    @abstractmethod
    def __call__(self, image: Tensor, image_id: str) -> Tensor:
        """The keypoints of an image, the best first, no place twice.

        Args:
            image: `(3, H, W)` uint8 RGB.
            image_id: As in its data set.

        Returns:
            `(N, 2)` float32 (x, y) in pixels of the image, inside it.
        """

    def settings(self) -> dict[str, Any]:
        """Every setting that changes a keypoint, as plain JSON values."""
        return {"class": type(self).__name__, **vars(self), "opencv": cv2.__version__}


class Sift(Detector):
    """SIFT of opencv (Lowe, IJCV 2004) on the grey image, ordered by response.

    Its first octave is upsampled precisely: with opencv's default, positions are a quarter of a pixel too large.

    Args:
        num_keypoints: At most so many per image, those of the largest response.
        contrast_threshold: As in opencv; less contrast is left out.

    Raises:
        InputError: A number out of range.
    """

    def __init__(self, num_keypoints: int = 1000, contrast_threshold: float = 0.04) -> None:
        super().__init__(num_keypoints)
        if not contrast_threshold >= 0:
            raise InputError("contrast_threshold", contrast_threshold, "give a number from 0 on")
        self.contrast_threshold = contrast_threshold

    def __call__(self, image: Tensor, image_id: str) -> Tensor:
        """As in `Detector`."""
        del image_id
        return _positions(_best(self._opencv().detect(_grey(image), None), self.num_keypoints))

    def describe(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Keypoints with SIFT's own descriptors, one per place, of its strongest orientation.

        Args:
            image: `(3, H, W)` uint8 RGB.

        Returns:
            `(N, 2)` float32 (x, y) in pixels, and `(N, 128)` float32.
        """
        grey = _grey(image)
        found, descriptors = self._opencv().compute(grey, _best(self._opencv().detect(grey, None), self.num_keypoints))
        vectors = np.zeros((0, 128), np.float32) if descriptors is None else descriptors.astype(np.float32)
        return _positions(found), torch.from_numpy(vectors)

    def _opencv(self) -> Any:
        return cv2.SIFT.create(contrastThreshold=self.contrast_threshold, enable_precise_upscale=True)


class Orb(Detector):
    """ORB of opencv (Rublee et al., ICCV 2011): oriented FAST corners on the grey image, ordered by Harris response."""

    def __call__(self, image: Tensor, image_id: str) -> Tensor:
        """As in `Detector`."""
        del image_id
        return _positions(_best(cv2.ORB.create(self.num_keypoints).detect(_grey(image), None), self.num_keypoints))


class KeypointFiles(Detector):
    """Keypoints that another detector, such as SuperPoint, has left in one file per image.

    A file is a NumPy archive (`.npz`, whatever its name) with `keypoints` `(N, 2)` or wider, x before y in pixels of
    the image, (0, 0) the centre of its top-left pixel, and perhaps `scores` `(N,)`, larger is better; or it is text
    with x and y on each line. Archives are read without unpickling. With scores the best are taken, otherwise the first
    in the file; of equal places the first one.

    Args:
        root: The folder.
        pattern: Path of a file in it; `{folder}`, `{name}` and `{stem}` are the last folder, the file name, and that
            without its suffix, of the image: "v_bird", "4.ppm" and "4". The 1,000 SuperPoint keypoints per image that
            DIFT evaluates with are text, `{folder}-{stem}.kp`.
        num_keypoints: At most so many per image.

    Raises:
        InputError: No such folder, another placeholder, or a number out of range; when called, a file that is missing
            or damaged, or a keypoint outside its image.
    """

    def __init__(self, root: str | Path, pattern: str = "{folder}/{stem}.npz", num_keypoints: int = 1000) -> None:
        super().__init__(num_keypoints)
        self.root, self.pattern = str(root), pattern
        if not Path(root).expanduser().is_dir():
            raise InputError("root", self.root, "no such folder; give the folder of the keypoint files")
        try:
            pattern.format(folder="", name="", stem="")
        except (AttributeError, KeyError, IndexError, ValueError) as error:
            raise InputError("pattern", pattern, "use the placeholders {folder}, {name} and {stem} only") from error

    def __call__(self, image: Tensor, image_id: str) -> Tensor:
        """As in `Detector`; of the image only its size is looked at."""
        place = PurePosixPath(image_id)
        named = self.pattern.format(folder=place.parent.name, name=place.name, stem=place.stem)
        file = Path(self.root).expanduser() / named
        points = _read_keypoints(file, self.num_keypoints)
        limit = np.array([image.shape[2], image.shape[1]]) - 0.5
        outside = ~((points >= -0.5) & (points <= limit)).all(axis=1)
        if outside.any():
            found = f"keypoint {tuple(points[outside][0].tolist())} outside the {image.shape[2]}x{image.shape[1]} image"
            raise InputError("root", str(file), f"{found}; detect on images of this size")
        return torch.from_numpy(points.astype(np.float32))


def _read_keypoints(file: Path, most: int) -> NDArray[np.float64]:
    """The best keypoints of a file, each place once."""
    if not file.is_file():
        raise InputError("root", str(file), "no such keypoint file; write it, or change `pattern`")
    try:
        points, scores = _parse(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError("root", str(file), "no readable keypoints in it; write the file again") from error
    fits = points.ndim == 2 and (points.shape[1] >= 2 or not len(points)) and scores.shape == points.shape[:1]
    if not fits or not np.isfinite(points).all() or np.isnan(scores).any():
        found = f"keypoints {points.shape}, scores {scores.shape}"
        raise InputError("root", str(file), f"holds {found}; they must be finite (N, 2) and (N,)")
    points = points[np.argsort(-scores, kind="stable"), :2].reshape(-1, 2)
    _, first = np.unique(points, axis=0, return_index=True)
    return points[np.sort(first)][:most]


def _parse(file: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Keypoints and scores as they stand; equal scores where there are none."""
    if not zipfile.is_zipfile(file):
        rows = [[float(number) for number in line.split()] for line in file.read_text(encoding="ascii").splitlines()]
        points = np.array([row for row in rows if row], dtype=np.float64)
        points = points.reshape(-1, 2) if not points.size else points
        return points, np.zeros(len(points))
    with np.load(file, allow_pickle=False) as archive:
        points = np.asarray(archive["keypoints"], dtype=np.float64)
        has_scores = "scores" in archive.files and archive["scores"].size
        scores = np.asarray(archive["scores"], dtype=np.float64).ravel() if has_scores else np.zeros(len(points))
    return points, scores


def _grey(image: Tensor) -> NDArray[np.uint8]:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise InputError("image", f"{tuple(image.shape)} {image.dtype}", "give (3, H, W) uint8")
    pixels = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def _best(keypoints: Sequence[Any], most: int) -> list[Any]:
    """The keypoints of the largest response, one per place; opencv's threads find them in no fixed order."""
    ordered = sorted(keypoints, key=lambda k: (-k.response, k.pt[1], k.pt[0], -k.size, k.angle))
    kept: dict[tuple[float, float], Any] = {}
    for keypoint in ordered:
        kept.setdefault(keypoint.pt, keypoint)
    return list(kept.values())[:most]


def _positions(keypoints: Sequence[Any]) -> Tensor:
    return torch.tensor([k.pt for k in keypoints], dtype=torch.float32).reshape(-1, 2)
