"""CUB-200-2011: 11,788 photos of 200 species of birds with 15 parts each (Wah et al., 2011)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from torch import Tensor

from ditf_probe.data.annotations import (
    ImageSizes,
    Points,
    box,
    decode,
    inside,
    numbers,
    present,
    require_folder,
    side,
    text_lines,
)
from ditf_probe.data.pairs import Pair, PairDataset, Side, check_range
from ditf_probe.data.photos import read_photo
from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError, check_choice

Split = Literal["train", "test", "all"]
Pairing = Literal["within", "across"]

PARTS: Final = (
    "back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape", "right eye",
    "right leg", "right wing", "tail", "throat",
)  # fmt: skip
"""Names of the parts in the order of `parts.txt`, where they count from 1."""

_GROUPS: Final = ((6, 10), (7, 11), (8, 12))  # eyes, legs, wings


class CUB200(PairDataset):
    """Pairs of birds, formed here since the data set has none.

    The layout is the published one: `images.txt`, `bounding_boxes.txt`, `train_test_split.txt`,
    `parts/part_locs.txt` and `images/SPECIES/NAME.jpg`. For each species, ordered pairs are drawn without replacement
    from a generator seeded with `seed` and the position of the species among the sorted names: both photos of the
    species ("within"), or the source of it and the target of another ("across"). Photos are sorted by name, so that
    pairs depend on the files alone. The unit of sampling is the species of the source, because pairs of a species
    share photos.

    Args:
        root: The folder `CUB_200_2011`.
        split: "train" (5,994 photos), "test" (5,794) or "all".
        pairing: "within" names the species as category, "across" calls all of them "bird".
        pairs_per_species: Number of pairs per species, fewer where there are not so many.
        min_common: Parts that both photos of a pair must show.
        seed: Another seed draws other pairs.
        keep_going: Leave damaged photos and pairs out and list what is wrong in `problems`, instead of raising.

    Raises:
        InputError: If an argument is out of range, a file is missing, or a record is damaged.
    """

    name = "cub-200-2011"
    unit = "species"
    threshold = "bbox"

    def __init__(
        self,
        root: str | Path,
        split: Split = "test",
        pairing: Pairing = "within",
        pairs_per_species: int = 10,
        min_common: int = 3,
        seed: int = 0,
        keep_going: bool = False,
    ) -> None:
        check_choice("split", split, Split)
        check_choice("pairing", pairing, Pairing)
        check_range("pairs_per_species", pairs_per_species, 1)
        check_range("min_common", min_common, 1, len(PARTS))
        check_range("seed", seed, 0)
        self.split, self.pairing, self.pairs_per_species = split, pairing, pairs_per_species
        self.min_common, self.seed = min_common, seed
        self._folder = require_folder(root, "images.txt", "CUB_200_2011")
        self._sizes = ImageSizes(self._file)
        problems = Problems(keep_going)
        birds = _read_birds(self._folder, split, problems)
        self._pairs: list[Pair] = []
        sides: dict[str, Side] = {}
        for source, target in self._draw(birds):
            with problems.record():
                for bird in (source, target):
                    if bird.name not in sides:
                        sides[bird.name] = self._side(bird)
                category = source.species if pairing == "within" else "bird"
                ends = sides[source.name], sides[target.name]
                self._pairs.append(Pair(len(self._pairs), category, source.species, *ends))
        self.problems = problems.found

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return self._pairs[index]

    def image(self, image_id: str) -> Tensor:
        """`(3, H, W)` uint8 RGB at native size."""
        return read_photo(self._file(image_id))

    def files(self) -> tuple[Path, ...]:
        """The photos of the pairs, each once."""
        return tuple(self._file(image_id) for image_id in self.image_ids())

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        """The 15 parts."""
        del category
        return PARTS

    def keypoint_groups(self, category: str) -> tuple[tuple[int, ...], ...]:
        """Left and right eye, leg and wing."""
        del category
        return _GROUPS

    def _file(self, image_id: str) -> Path:
        return self._folder / "images" / image_id.removeprefix("cub-200-2011/")

    def _side(self, bird: "_Bird") -> Side:
        image_id = f"cub-200-2011/{bird.name}"
        size, where = self._sizes(image_id), f"{self._folder / 'parts/part_locs.txt'} image {bird.name}"
        return side(image_id, size, inside(bird.points, size, where), bird.corners)

    def _draw(self, birds: list["_Bird"]) -> list[tuple["_Bird", "_Bird"]]:
        """The pairs, species by species."""
        if not birds:
            return []
        species = np.array([bird.species for bird in birds])
        shown = np.stack([present(bird.points) for bird in birds]).astype(np.int64)
        drawn = []
        for position, name in enumerate(sorted(set(species.tolist()))):
            sources = np.flatnonzero(species == name)
            targets = sources if self.pairing == "within" else np.flatnonzero(species != name)
            allowed = (shown[sources] @ shown[targets].T >= self.min_common) & (sources[:, None] != targets)
            rows, columns = np.nonzero(allowed)
            rng = np.random.default_rng([self.seed, position])
            chosen = np.sort(rng.choice(len(rows), min(self.pairs_per_species, len(rows)), replace=False))
            drawn += [(birds[sources[rows[i]]], birds[targets[columns[i]]]) for i in chosen]
        return drawn


@dataclass(frozen=True, slots=True)
class _Bird:
    """A photo: its path within `images`, `(15, 2)` places of its parts with NaN where hidden, and its box `(4,)`."""

    name: str
    points: Points
    corners: Points

    @property
    def species(self) -> str:
        return self.name.split("/")[0]


class _Tables:
    """The text files of the data set, by image number."""

    def __init__(self, folder: Path, problems: Problems) -> None:
        self.names, self.train = dict[str, str](), dict[str, bool]()
        self.boxes, self.parts = dict[str, Points](), dict[str, Points]()
        self.located, self._used = dict[str, set[int]](), set[str]()
        files: list[tuple[str, int, Callable[[list[str], str], None]]] = [
            ("images.txt", 2, self._name),
            ("train_test_split.txt", 2, self._train),
            ("bounding_boxes.txt", 5, self._box),
            ("parts/part_locs.txt", 5, self._part),
        ]
        for name, columns, take in files:
            for where, line in text_lines(folder / name):
                with problems.record():
                    cells = decode(line, where).split()
                    if len(cells) != columns:
                        raise InputError("root", where, f"{len(cells)} columns instead of {columns}; restore the file")
                    take(cells, where)

    def bird(self, number: str, folder: Path) -> _Bird:
        """The photo of a number. Raises InputError if the tables do not tell everything about it."""
        for table, file in ((self.train, "train_test_split.txt"), (self.boxes, "bounding_boxes.txt")):
            if number not in table:
                raise InputError("root", str(folder / file), f"has no line of image {number}; restore the file")
        if len(self.located.get(number, ())) != len(PARTS):
            path = str(folder / "parts/part_locs.txt")
            raise InputError("root", path, f"has not {len(PARTS)} lines of image {number}; restore the file")
        return _Bird(self.names[number], self.parts[number], self.boxes[number])

    def _name(self, cells: list[str], where: str) -> None:
        number, name = cells
        if name.count("/") != 1:
            raise InputError("root", where, f"{name!r} is not SPECIES/NAME; restore the file")
        if number in self.names or name in self._used:
            raise InputError("root", where, f"image {number} or {name} stands there twice; remove one")
        self.names[number] = name
        self._used.add(name)

    def _train(self, cells: list[str], where: str) -> None:
        if cells[1] not in ("0", "1") or cells[0] in self.train:
            raise InputError("root", where, "not one flag of 0 or 1 per image; restore the file")
        self.train[cells[0]] = cells[1] == "1"

    def _box(self, cells: list[str], where: str) -> None:
        if cells[0] in self.boxes:
            raise InputError("root", where, f"image {cells[0]} has two boxes; remove one")
        x, y, width, height = numbers(cells[1:], (4,), where, "the box").tolist()
        self.boxes[cells[0]] = box([x, y, x + width, y + height], where)

    def _part(self, cells: list[str], where: str) -> None:
        number, part, x, y, seen = cells
        known = self.located.setdefault(number, set())
        if not (part.isascii() and part.isdigit() and 1 <= int(part) <= len(PARTS)) or int(part) in known:
            raise InputError("root", where, f"part {part} is not one of 1 to {len(PARTS)}, each once; restore the file")
        if seen not in ("0", "1"):
            raise InputError("root", where, f"visibility {seen} is neither 0 nor 1; restore the file")
        place = numbers([x, y], (2,), where, "the place")
        known.add(int(part))
        points = self.parts.setdefault(number, np.full((len(PARTS), 2), np.nan, dtype=np.float32))
        if seen == "1":
            points[int(part) - 1] = place


def _read_birds(folder: Path, split: Split, problems: Problems) -> list[_Bird]:
    """The photos of a split, sorted by name."""
    tables = _Tables(folder, problems)
    birds = []
    for number in sorted(tables.names, key=lambda number: tables.names[number]):
        with problems.record():
            bird = tables.bird(number, folder)
            if split == "all" or tables.train[number] == (split == "train"):
                birds.append(bird)
    return birds
