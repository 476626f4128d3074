"""PF-PASCAL: pairs of PASCAL VOC photos (Ham, Cho, Schmid, Ponce, TPAMI 2018) in the lists of NC-Net."""

from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from ditf_probe.data.annotations import ImageSizes, Points, box, extent, inside, numbers, present, require_folder, side
from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.data.pascal_lists import Listed, TrainingImages, find_list, read_list
from ditf_probe.data.photos import read_photo
from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError, check_choice

Split = Literal["train", "val", "test"]
Keypoints = Literal["list", "annotations"]
Base = Literal["image", "bbox", "keypoints"]
INNER_FOLDER = "PF-dataset-PASCAL"
_MIRRORED = "/mirrored"


class PFPascal(PairDataset):
    """The pairs of one split of PF-PASCAL, in the order of their list.

    Keypoints come from the list (test) or from `Annotations/CLASS/IMAGE.mat` (train, val and, if wanted, test), where
    `kps` is `(K, 2)` with NaN for missing ones and `bbox` is x0, y0, x1, y1. Coordinates are used as they stand. In
    rows of the training list with `flip` 1 both images and their keypoints are mirrored; the row numbers stay, so that
    row k of a mirrored image is the mirror image of keypoint k.

    A third of the test pairs are training pairs too, and more share a photo. For val and test,
    `Pair.attributes` therefore has "pair in train" ("no", "yes"; the order of the two images does not matter) and
    "images in train" ("0", "1", "2"). Probes trained on PF-PASCAL are comparable on the levels "no" (204 of the 299
    test pairs) and "0" (79); features without training are not concerned.

    Args:
        root: The folder `PF-dataset-PASCAL` with `JPEGImages` and `Annotations`, or its parent.
        split: "train" (2,940 rows, each pair of images twice), "val" (308) or "test" (299).
        lists: Folder of `train_pairs.csv`, `val_pairs.csv` and `test_pairs.csv` of NC-Net; None looks in `root`, its
            `image_pairs` and `PF-dataset-PASCAL`.
        keypoints: "list" or "annotations"; None for the list where it has coordinates, as everyone does. Only rows
            of the annotations keep their meaning from pair to pair, as held-out keypoints need it.
        threshold: "image" (longer side of the target image, the usual choice), "bbox" (needs the annotations) or
            "keypoints".
        leakage: Give val and test pairs the two attributes, which takes the training list.
        keep_going: Leave damaged pairs out and list what is wrong in `problems`, instead of raising.

    Raises:
        InputError: If an argument is not among its choices, a list is missing or lacks a column, or a pair is damaged.
    """

    name = "pf-pascal"
    unit = "source photo"

    def __init__(
        self,
        root: str | Path,
        split: Split = "test",
        lists: str | Path | None = None,
        keypoints: Keypoints | None = None,
        threshold: Base = "image",
        leakage: bool = True,
        keep_going: bool = False,
    ) -> None:
        given: list[tuple[str, object, object]] = [("split", split, Split), ("threshold", threshold, Base)]
        given += [] if keypoints is None else [("keypoints", keypoints, Keypoints)]
        for argument, value, allowed in given:
            check_choice(argument, value, allowed)
        keypoints = keypoints or ("list" if split == "test" else "annotations")
        if keypoints == "list" and split != "test":
            raise InputError("keypoints", keypoints, f'the {split} list has no coordinates; use "annotations"')
        self.split, self.keypoints, self.threshold = split, keypoints, threshold
        folder = Path(root).expanduser()
        inner = folder / INNER_FOLDER if (folder / INNER_FOLDER).is_dir() else folder
        self._folder = require_folder(inner, "JPEGImages", "PF-PASCAL")
        places = [folder, folder / "image_pairs", inner] if lists is None else [Path(lists).expanduser()]
        self._sizes, self._annotated = ImageSizes(self._file), dict[tuple[str, str], tuple[Points, Points]]()
        problems = Problems(keep_going)
        training = TrainingImages(find_list(places, "train")) if leakage and split != "train" else None
        self._pairs: list[Pair] = []
        for where, row in read_list(find_list(places, split), split, keypoints == "list", problems):
            with problems.record():
                attributes = {} if training is None else training.attributes(row.source, row.target)
                self._pairs.append(self._pair(row, where, attributes))
        self.problems = problems.found

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return self._pairs[index]

    def image(self, image_id: str) -> Tensor:
        """`(3, H, W)` uint8 RGB at native size; the mirror image where the id says so."""
        pixels = read_photo(self._file(image_id))
        return pixels.flip(-1) if image_id.endswith(_MIRRORED) else pixels

    def files(self) -> tuple[Path, ...]:
        """The photos of the pairs, each once."""
        return tuple(dict.fromkeys(self._file(image_id) for image_id in self.image_ids()))

    def _file(self, image_id: str) -> Path:
        return self._folder / "JPEGImages" / image_id.removesuffix(_MIRRORED).removeprefix("pf-pascal/")

    def _pair(self, row: Listed, where: str, attributes: dict[str, str]) -> Pair:
        if row.points is None:
            ends = [self._annotation(row.category, name) for name in (row.source, row.target)]
            rows = [len(points) for points, _ in ends]
            if rows[0] != rows[1]:
                counts = f"{row.source} has {rows[0]} keypoints and {row.target} has {rows[1]}"
                raise InputError("root", where, f"{counts}; restore their annotations")
        else:
            ends = [
                self._from_list(points, row.category, name, where)
                for points, name in zip(row.points, (row.source, row.target), strict=True)
            ]
        source = self._side(row.source, ends[0], row.flip)
        target = self._side(row.target, ends[1], row.flip)
        return Pair(len(self._pairs), row.category, f"pf-pascal/{row.source}", source, target, None, attributes)

    def _from_list(self, points: Points, category: str, name: str, where: str) -> tuple[Points, Points]:
        """Keypoints of a list; the box is annotated where thresholds need it, otherwise around the keypoints."""
        kept = inside(points, self._size(name), where)
        return kept, self._annotation(category, name)[1] if self.threshold == "bbox" else extent(kept)

    def _annotation(self, category: str, name: str) -> tuple[Points, Points]:
        """Keypoints `(K, 2)` and box of an image; some images show two classes, each with its own annotation."""
        if (category, name) not in self._annotated:
            path = self._folder / "Annotations" / category / f"{Path(name).stem}.mat"
            points, corners = read_annotation(path)
            points = inside(points, self._size(name), str(path))
            if not present(points).any():
                raise InputError("root", str(path), "no keypoints in it; restore the file")
            self._annotated[category, name] = points, corners
        return self._annotated[category, name]

    def _size(self, name: str) -> tuple[int, int]:
        return self._sizes(f"pf-pascal/{name}")

    def _side(self, name: str, annotation: tuple[Points, Points], flip: bool) -> Side:
        size, (points, corners) = self._size(name), annotation
        if not flip:
            return side(f"pf-pascal/{name}", size, points, corners)
        points, corners = points.copy(), corners.copy()
        points[:, 0] = size[1] - 1 - points[:, 0]
        corners[[0, 2]] = size[1] - 1 - corners[[2, 0]]
        return side(f"pf-pascal/{name}{_MIRRORED}", size, points, corners)


def read_annotation(path: Path) -> tuple[Points, Points]:
    """An annotation file of PF-PASCAL.

    Args:
        path: The `.mat` file.

    Returns:
        `kps` `(K, 2)` float32 with NaN where missing, and `bbox` `(4,)`.

    Raises:
        InputError: If the file is missing, not readable, or the box is empty.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise InputError("root", str(path), "no such annotation; restore the file")
    try:
        found = loadmat(str(path), variable_names=["kps", "bbox"])
        points, corners = found["kps"], np.ravel(found["bbox"])
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise InputError("root", str(path), "no readable `kps` and `bbox` in it; restore the file") from error
    return numbers(points, (None, 2), str(path), "`kps`"), box(corners, str(path))
