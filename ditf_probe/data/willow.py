"""PF-WILLOW: 10 sets of 10 photos with 10 keypoints each (Ham, Cho, Schmid, Ponce, CVPR 2016, "Proposal Flow")."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.data.photos import SUFFIXES, photo_size, read_photo
from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError

INNER_FOLDER = "PF-dataset-WILLOW"


class PFWillow(PairDataset):
    """All ordered pairs of two photos of one set of PF-WILLOW: 900 in the full data set.

    The layout is the published one, `ROOT[/PF-dataset-WILLOW]/SET/NAME.{png,mat}`, where `pts_coord`
    of a `.mat` file is `(2, K)`, x in the first row and y in the second. Coordinates are used as they
    stand, like everywhere in the field: MATLAB's origin would be half a per cent of a threshold away,
    and both sides of a pair share it. A NaN coordinate marks a missing keypoint, which is not visible.

    The 100 files are 70 distinct photos, since each (M) set copies photos of its sibling sets. Image
    ids are made of the content, so copies share one id and their features are computed once. Splits
    for training must keep siblings together: car x 3 with duck against motorbike x 3 with
    winebottle x 3, for example.

    Args:
        root: The folder of the sets, or its parent.
        sets: Names of the sets to use, such as `["car(G)", "car(M)"]`; None for all.
        distinct: Leave out pairs whose two photos were already paired in another set: 780 remain.
            Of two equal pairs the one in an (M) set goes.
        threshold: "keypoints" (longer side of the box around the target keypoints, the usual
            choice) or "image".
        keep_going: Leave out damaged photos and list them in `problems`.

    Raises:
        InputError: If the folder, a set or a `.mat` file is missing, a file holds no keypoints or
            other than its set, or a keypoint lies outside its photo.
    """

    name = "pf-willow"
    unit = "set"

    def __init__(
        self,
        root: str | Path,
        sets: Sequence[str] | None = None,
        distinct: bool = False,
        threshold: Literal["keypoints", "image"] = "keypoints",
        keep_going: bool = False,
    ) -> None:
        if threshold not in ("keypoints", "image"):
            raise InputError("threshold", threshold, 'use "keypoints" or "image"')
        self.threshold = threshold
        problems, folders = Problems(keep_going), _set_folders(Path(root).expanduser(), sets)
        photos = {folder.name: _read_set(folder, problems) for folder in folders}
        pairs = [(a, b) for members in photos.values() for a, b in permutations(members, 2)]
        self._pairs = _without_repeats(pairs) if distinct else pairs
        self._files = {photo.side.image_id: photo.file for members in photos.values() for photo in members}
        self.sets = tuple(photos)
        self.problems = problems.found

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        source, target = self._pairs[index]
        category = source.set_name.split("(")[0]
        return Pair(index, category, source.set_name, source.side, target.side)

    def image(self, image_id: str) -> Tensor:
        """`(3, H, W)` uint8 RGB at native size (300 pixels on the longer side)."""
        return read_photo(self._files[image_id])

    def files(self) -> tuple[Path, ...]:
        """The photos of the chosen sets, copies once."""
        return tuple(self._files.values())


@dataclass(frozen=True, slots=True)
class _Photo:
    set_name: str
    file: Path
    side: Side


def _set_folders(root: Path, sets: Sequence[str] | None) -> list[Path]:
    if not root.is_dir():
        raise InputError("root", str(root), "no such folder; give the folder of PF-WILLOW")
    if (root / INNER_FOLDER).is_dir():
        root = root / INNER_FOLDER
    found = {folder.name: folder for folder in sorted(root.iterdir()) if folder.is_dir() and _photo_files(folder)}
    if not found:
        raise InputError("root", str(root), f"holds no sets; give the folder that contains {INNER_FOLDER}")
    if sets is None:
        return list(found.values())
    for name in sets:
        if name not in found:
            raise InputError("sets", name, f"no such set; choose from {', '.join(found)}")
    if not sets:
        raise InputError("sets", list(sets), f"name at least one set of {', '.join(found)}")
    return [found[name] for name in dict.fromkeys(sets)]


def _photo_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _read_set(folder: Path, problems: Problems) -> list[_Photo]:
    photos: list[_Photo] = []
    for file in _photo_files(folder):
        with problems.record():
            photo = _Photo(folder.name, file, _read_side(file))
            found, expected = len(photo.side.keypoints), len((photos or [photo])[0].side.keypoints)
            if found != expected:
                counts = f"has {found} keypoints where its set has {expected}"
                raise InputError("root", str(file.with_suffix(".mat")), f"{counts}; restore the file")
            photos.append(photo)
    return photos


def _read_side(file: Path) -> Side:
    """Size, content id and keypoints of one photo."""
    height, width = photo_size(file)
    keypoints = _read_keypoints(file.with_suffix(".mat"))
    visible = ~torch.isnan(keypoints).any(1)
    if not visible.any():
        raise InputError("root", str(file.with_suffix(".mat")), "no keypoints in it; restore the file")
    for x, y in keypoints[visible].tolist():
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            place = f"keypoint ({x:g}, {y:g}) outside the {width}x{height} photo"
            raise InputError("root", str(file.with_suffix(".mat")), f"{place}; restore the file and its photo")
    low, high = keypoints[visible].amin(0), keypoints[visible].amax(0)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    points = torch.where(visible[:, None], keypoints, 0.0)
    return Side(f"pf-willow/{digest[:16]}", (height, width), points, visible, torch.cat([low, high]))


def _read_keypoints(file: Path) -> Tensor:
    """`(K, 2)` float32 from `pts_coord`, NaN where missing."""
    from scipy.io import loadmat

    if not file.is_file():
        raise InputError("root", str(file), "no such annotation; restore the file or remove its photo")
    try:
        points = torch.as_tensor(loadmat(str(file))["pts_coord"], dtype=torch.float32)
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise InputError("root", str(file), "no readable `pts_coord` in it; restore the file") from error
    if points.ndim != 2 or points.shape[0] != 2:
        shape = tuple(points.shape)
        raise InputError("root", str(file), f"`pts_coord` has shape {shape}; it must be (2, K), x above y")
    return points.T.contiguous()


def _without_repeats(pairs: list[tuple[_Photo, _Photo]]) -> list[tuple[_Photo, _Photo]]:
    """Keeps one of the pairs with the same two photos in the same order, preferably outside the (M) sets."""

    def key(pair: tuple[_Photo, _Photo]) -> tuple[str, str]:
        return pair[0].side.image_id, pair[1].side.image_id

    # A mixed set is processed first, so that an original overwrites its copy.
    mixed_first = sorted(range(len(pairs)), key=lambda i: not pairs[i][0].set_name.endswith("(M)"))
    kept = {key(pairs[i]): i for i in mixed_first}
    return [pairs[i] for i in sorted(kept.values()) if len(set(key(pairs[i]))) == 2]
