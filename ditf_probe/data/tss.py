"""TSS: 400 image pairs with dense correspondences (Taniai, Sinha, Sato, CVPR 2016)."""

import hashlib
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.data.annotations import Points, extent, require_folder, side
from ditf_probe.data.pairs import Pair, PairDataset, check_range
from ditf_probe.data.photos import photo_size, read_photo
from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError, check_choice

Direction = Literal["both", "forward", "backward"]
SUBSETS = ("FG3DCar", "JODS", "PASCAL")
_MIRRORED = "/mirrored"
_UNKNOWN = 1e9  # the Middlebury format marks unknown flow by values above this


class TSS(PairDataset):
    """Both directions of the pairs of TSS, with keypoints drawn from the dense ground truth.

    The layout is the published one, `ROOT/SUBSET/PAIR/` with `image1.png`, `image2.png`, `flow1.flo`, `flow2.flo`,
    `mask1.png`, `mask2.png` and `flip_gt.txt`: pixel (x, y) of image 1 lies at (x, y) + `flow1[y, x]` in image 2. Where
    `flip_gt.txt` holds 1, the objects face opposite ways and the flow leads into the mirror image of the other photo,
    which is then the target, as in the evaluation of Rocco et al. (CVPR 2017).

    The publication counts every foreground pixel that is farther than alpha times the longer side of the other image
    from its place. Here `num_keypoints` of these pixels are drawn without replacement, from a generator seeded with
    `seed`, the name of the pair and the direction. Pixels whose place lies outside the other image are left out, since
    no match can reach them.

    Args:
        root: The folder with `FG3DCar`, `JODS` and `PASCAL`.
        subsets: Which of them.
        direction: "forward" seeks the pixels of image 1 in image 2, "backward" the reverse, "both" (800 pairs) is what
            the publication averages over.
        num_keypoints: Pixels per pair and direction; all of them where there are fewer.
        seed: Another seed draws other pixels.
        keep_going: Leave damaged pairs out and list what is wrong in `problems`, instead of raising.

    `Pair.attributes` has "mirrored" ("no", "yes"): whether the target is a mirror image; the evaluation kit of the
    publication averages over all pairs and over those without.

    Raises:
        InputError: If an argument is out of range, a folder is missing, or a pair is damaged.
    """

    name = "tss"
    unit = "pair of photos"
    threshold = "image"

    def __init__(
        self,
        root: str | Path,
        subsets: list[str] | None = None,
        direction: Direction = "both",
        num_keypoints: int = 200,
        seed: int = 0,
        keep_going: bool = False,
    ) -> None:
        check_choice("direction", direction, Direction)
        check_range("num_keypoints", num_keypoints, 1)
        check_range("seed", seed, 0)
        self.subsets = list(SUBSETS if subsets is None else subsets)
        self.direction, self.num_keypoints, self.seed = direction, num_keypoints, seed
        for name in self.subsets:
            if name not in SUBSETS:
                raise InputError("subsets", name, f"use one of {', '.join(SUBSETS)}")
        self._files: dict[str, Path] = {}
        self._pairs: list[Pair] = []
        directions = {"both": (1, 2), "forward": (1,), "backward": (2,)}[direction]
        problems = Problems(keep_going)
        for subset in self.subsets:
            inside = require_folder(root, subset, "TSS") / subset
            for folder in sorted(path for path in inside.iterdir() if path.is_dir()):
                for source in directions:
                    with problems.record():
                        self._pairs.append(self._read(folder, source))
        self.problems = problems.found

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return self._pairs[index]

    def image(self, image_id: str) -> Tensor:
        """`(3, H, W)` uint8 RGB at native size; the mirror image where the id says so."""
        pixels = read_photo(self._files[image_id.removesuffix(_MIRRORED)])
        return pixels.flip(-1) if image_id.endswith(_MIRRORED) else pixels

    def files(self) -> tuple[Path, ...]:
        """The images of the pairs, copies once."""
        names = (image_id.removesuffix(_MIRRORED) for image_id in self.image_ids())
        return tuple(self._files[name] for name in dict.fromkeys(names))

    def _read(self, folder: Path, source: int) -> Pair:
        subset, name, target = folder.parent.name, folder.name, 3 - source
        if not f"{subset}/{name}".isprintable():  # bytes that are not UTF-8 are read as lone surrogates
            raise InputError("root", str(folder), "the name is not UTF-8; rename the folder")
        images = [folder / f"image{number}.png" for number in (source, target)]
        sizes = [photo_size(image) for image in images]
        flow = read_flow(folder / f"flow{source}.flo", sizes[0])
        mask = _read_mask(folder / f"mask{source}.png", sizes[0])
        points, places = foreground(flow, mask, sizes[1])
        if not len(points):
            raise InputError("root", str(folder), f"no pixel of mask{source}.png has a place; restore the folder")
        rng = np.random.default_rng([self.seed, source, zlib.crc32(f"{subset}/{name}".encode())])
        drawn = np.sort(rng.choice(len(points), min(self.num_keypoints, len(points)), replace=False))
        mirrored = _read_flag(folder / "flip_gt.txt")
        start, end = self._id(images[0]), self._id(images[1]) + _MIRRORED * mirrored
        sides = side(start, sizes[0], points[drawn], extent(points)), side(end, sizes[1], places[drawn], extent(places))
        attributes = {"mirrored": "yes" if mirrored else "no"}
        return Pair(len(self._pairs), subset, f"{subset}/{name}", *sides, None, attributes)

    def _id(self, image: Path) -> str:
        """An id made of the content, since photos stand in several pairs."""
        image_id = f"tss/{hashlib.sha256(image.read_bytes()).hexdigest()[:16]}"
        self._files.setdefault(image_id, image)
        return image_id


def read_flow(path: Path, size: tuple[int, int]) -> NDArray[np.float32]:
    """A flow file of the Middlebury format.

    Args:
        path: The `.flo` file.
        size: (height, width) that it must have.

    Returns:
        `(H, W, 2)` (dx, dy) in pixels.

    Raises:
        InputError: If it is missing, damaged or of another size.
    """
    import cv2

    if not path.is_file():
        raise InputError("root", str(path), "no such file; restore it")
    flow = cv2.readOpticalFlow(str(path))
    if flow is None:
        raise InputError("root", str(path), "no flow file or a damaged one; restore it")
    if flow.shape[:2] != size:
        raise InputError("root", str(path), f"has size {flow.shape[:2]} where its image has {size}; restore both")
    return np.asarray(flow, dtype=np.float32)


def foreground(flow: NDArray[np.float32], mask: NDArray[np.bool_], size: tuple[int, int]) -> tuple[Points, Points]:
    """The pixels of an image whose place in the other one is known.

    Args:
        flow: `(H, W, 2)` (dx, dy) in pixels; values of 1e9 and more, and NaN, mean unknown.
        mask: `(H, W)` the object.
        size: (height, width) of the other image.

    Returns:
        Two `(N, 2)` float32: the pixels (x, y) in row-major order, and their places in the other image.
    """
    known = mask & (np.abs(flow) < _UNKNOWN).all(-1)
    rows, columns = np.nonzero(known)
    points = np.stack([columns, rows], axis=1).astype(np.float32)
    places = points + flow[rows, columns]
    reachable = ((places >= -0.5) & (places <= [size[1] - 0.5, size[0] - 0.5])).all(1)
    return points[reachable], places[reachable]


def _read_mask(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    mask = read_photo(path)[0].numpy()
    if mask.shape != size:
        raise InputError("root", str(path), f"has size {mask.shape} where its image has {size}; restore both")
    return np.asarray(mask > 127)


def _read_flag(path: Path) -> bool:
    try:
        flag = path.read_bytes().strip()
    except OSError as error:
        raise InputError("root", str(path), "cannot be read; restore it") from error
    if flag not in (b"0", b"1"):
        raise InputError("root", str(path), f"holds {flag[:20]!r} instead of 0 or 1; restore it")
    return flag == b"1"
