"""Annotated objects, one of an image each, and pair data sets made of two of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.data.pair_lists import PairList, pairs_digest, read_pair_list, write_pair_list
from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.data.photos import read_photo
from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One object of one image.

    Attributes:
        key: Names it in pair lists; unique in its data set.
        file: The image file.
        category: Name of its category.
        side: What a pair says of it.
        family: Name of the group that its category belongs to, if any.
    """

    key: str
    file: Path
    category: str
    side: Side
    family: str = ""


class InstancePairs(PairDataset):
    """Pairs of two instances. A subclass reads the instances and forms the pairs.

    Attributes:
        pairs_sha256: SHA-256 of the pair list, which stands in the settings of every result.
    """

    pairs_sha256: str
    _across_categories = False
    """Whether a listed pair may be of two categories; their keypoints are then the same."""

    def _pair_up(
        self,
        instances: Sequence[Instance],
        form: Callable[[], Indices],
        pairs_file: str | Path | None,
        problems: Problems,
    ) -> None:
        """Takes what a constructor read, at its end.

        Args:
            instances: The annotated objects.
            form: Forms `(N, 2)` indices into them.
            pairs_file: A pair list to use instead.
            problems: What was wrong; that no pair can be formed becomes one of them.
        """
        self._instances, self._pairs = tuple(instances), np.zeros((0, 2), np.int64)
        with problems.record():
            self._pairs = form() if pairs_file is None else _listed_pairs(pairs_file, self, instances, problems)
        used = (self._instances[i] for i in np.unique(self._pairs))
        self._images = {instance.side.image_id: (instance.file, instance.side.size) for instance in used}
        self.problems = problems.found
        self.pairs_sha256 = pairs_digest(self._keys())

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        source, target = (self._instances[i] for i in self._pairs[index])
        category, unit, attributes = self._facts(source, target)
        return Pair(index, category, unit, source.side, target.side, attributes=attributes)

    def image(self, image_id: str) -> Tensor:
        """`(3, H, W)` uint8 RGB at native size.

        Raises:
            InputError: The file is damaged, or has another size than its annotation says.
        """
        file, size = self._images[image_id]
        pixels = read_photo(file)
        check_size(file, (pixels.shape[1], pixels.shape[2]), size)
        return pixels

    def files(self) -> tuple[Path, ...]:
        """The images of the pair list, each once."""
        return tuple(dict.fromkeys(file for file, _ in self._images.values()))

    def sizes(self) -> dict[Path, tuple[int, int]]:
        """Height and width that the annotations give for each image of the pair list."""
        return dict(self._images.values())

    def write_pairs(self, path: str | Path) -> None:
        """Stores the pair list as JSON, with its SHA-256; `pairs_file` reads it back."""
        write_pair_list(Path(path), PairList(self.name, self._pair_settings(), self._keys()))

    def _facts(self, source: Instance, target: Instance) -> tuple[str, str, Mapping[str, str]]:
        """Category, sampling unit and attributes of a pair; the unit is the source image."""
        del target
        return source.category, source.side.image_id, {}

    def _pair_settings(self) -> dict[str, str]:
        """What a pair list must agree on with the data set that reads it back."""
        return {}

    def _keys(self) -> list[tuple[str, str]]:
        return [(self._instances[a].key, self._instances[b].key) for a, b in self._pairs.tolist()]


def _listed_pairs(
    file: str | Path, dataset: InstancePairs, instances: Sequence[Instance], problems: Problems
) -> Indices:
    """Indices of the pairs that a file lists.

    Args:
        file: A pair list, as JSON or CSV.
        dataset: The data set that reads it; its name and settings must agree with the list's.
        instances: What keys refer to.
        problems: Collects pairs of instances that are not there.

    Returns:
        `(N, 2)` int64.

    Raises:
        InputError: The file cannot be used.
    """
    found = read_pair_list(Path(file).expanduser(), dataset.name, dataset._pair_settings(), problems)
    places = {instance.key: index for index, instance in enumerate(instances)}
    pairs: dict[tuple[int, int], None] = {}
    for pair in found:
        with problems.record():
            for key in pair:
                if key not in places:
                    raise InputError("pairs_file", key, f"not among the annotated images, though {file} lists it")
            source, target = (instances[places[key]] for key in pair)
            if source.side.image_id == target.side.image_id:
                raise InputError("pairs_file", ", ".join(pair), f"one picture twice; correct {file}")
            if source.category != target.category and not dataset._across_categories:
                remedy = f"a pair of {source.category} and {target.category}; correct {file}"
                raise InputError("pairs_file", ", ".join(pair), remedy)
            place = (places[pair[0]], places[pair[1]])
            if place in pairs:
                raise InputError("pairs_file", ", ".join(pair), f"listed twice; correct {file}")
            pairs[place] = None
    return np.array(list(pairs), dtype=np.int64).reshape(-1, 2)


def check_keypoints(where: str, keypoints: Tensor, visible: Tensor, size: tuple[int, int]) -> None:
    """Refuses visible keypoints outside their image; its border counts as inside.

    Args:
        where: What is at fault, for the error.
        keypoints: `(K, 2)` pixels, x before y.
        visible: `(K,)` bool.
        size: Height and width of the image.

    Raises:
        InputError: A visible keypoint is outside the image or no number.
    """
    height, width = size
    for x, y in keypoints[visible].tolist():
        # Annotations may count from the corner of the image, where the border is at the full width.
        if not (-0.5 <= x <= width and -0.5 <= y <= height):
            raise InputError(
                "keypoints", where, f"keypoint ({x:g}, {y:g}) outside the {width}x{height} image; correct it"
            )


def check_box(where: str, box: Sequence[float]) -> None:
    """Refuses a box without extent.

    Args:
        where: What is at fault, for the error.
        box: x0, y0, x1, y1 in pixels.

    Raises:
        InputError: Width or height is not above 0.
    """
    x0, y0, x1, y1 = box
    if not (x1 > x0 and y1 > y0):
        raise InputError("bbox", where, f"empty box of {x1 - x0:g} x {y1 - y0:g} pixels; correct it")


def check_size(file: Path, found: tuple[int, int], stated: tuple[int, int]) -> None:
    """Refuses an image of another size than its annotation says.

    Raises:
        InputError: Height or width differ.
    """
    if found != stated:
        sizes = f"the image has {found[1]}x{found[0]} pixels, its annotation says {stated[1]}x{stated[0]}"
        raise InputError("image", str(file), f"{sizes}; restore the file")


def mirrored_groups(names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Groups of keypoints whose names differ in left and right only.

    Args:
        names: Names in row order, such as "left_eye", "right_eye", "nose".

    Returns:
        Row numbers, such as ((0, 1),).
    """
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        plain = name.lower().replace("left", "*").replace("right", "*")
        if "*" in plain:
            groups.setdefault(plain, []).append(row)
    return tuple(tuple(rows) for rows in groups.values() if len(rows) > 1)
