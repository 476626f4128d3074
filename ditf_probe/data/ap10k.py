"""AP-10K as a correspondence benchmark: animals of one species, of one family, of two families.

Photos and keypoints are those of Yu et al., "AP-10K: A Benchmark for Animal Pose Estimation in the Wild" (NeurIPS
2021, Datasets and Benchmarks), the benchmark that of Zhang et al., "Telling Left from Right" (CVPR 2024, GeoAware-SC).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.data.ap10k_pairs import Kind, Split, form_pairs
from ditf_probe.data.coco_files import Annotation, read_coco, visible_flags
from ditf_probe.data.instances import Instance, InstancePairs, check_keypoints
from ditf_probe.data.pairs import Side, check_range
from ditf_probe.data.problems import Problems
from ditf_probe.data.text_files import read_text
from ditf_probe.errors import InputError, check_choice

AnimalVisibility = Literal["clear", "labelled", "geoaware"]

KEYPOINTS: Final = (
    "left_eye", "right_eye", "nose", "neck", "root_of_tail",
    "left_shoulder", "left_elbow", "left_front_paw", "right_shoulder", "right_elbow", "right_front_paw",
    "left_hip", "left_knee", "left_back_paw", "right_hip", "right_knee", "right_back_paw",
)  # fmt: skip
"""The 17 keypoints of every species, in row order."""

GROUPS: Final = ((5, 8), (6, 9, 12, 15), (7, 10, 13, 16), (11, 14))
"""Shoulders, elbows with knees, paws, hips: the groups `AP10K_GEO_AWARE` of GeoAware-SC, where eyes stand alone."""

UNITS: Final[Mapping[Kind, str]] = {
    "intra-species": "species",
    "cross-species": "family",
    "cross-family": "pair of families",
}
_FEWEST_KEYPOINTS = 3
_PADDED_SIDE = 840


class AnimalPairs(InstancePairs):
    """What every reader of the AP-10K benchmark has in common: names, groups, and what a pair is called.

    A pair within a species has the species as its category, one across species the family; pairs across families
    are all of one category, "animal". Species, family or pair of families is the sampling unit.

    Attributes:
        split: "train", "val" or "test".
        kind: "intra-species", "cross-species" or "cross-family".
        visibility: Which keypoints count.
    """

    name = "ap10k"
    threshold = "bbox"
    _across_categories = True

    def _choose(self, split: Split, kind: Kind, visibility: AnimalVisibility) -> None:
        """Checks and keeps the choices that every reader offers."""
        check_choice("split", split, Split)
        check_choice("kind", kind, Kind)
        check_choice("visibility", visibility, AnimalVisibility)
        self.split, self.kind, self.visibility = split, kind, visibility
        self.unit = UNITS[kind]

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        """The 17 names, which are those of every species."""
        del category
        return KEYPOINTS

    def keypoint_groups(self, category: str) -> tuple[tuple[int, ...], ...]:
        """The groups of GeoAware-SC, which are those of every species."""
        del category
        return GROUPS

    def _facts(self, source: Instance, target: Instance) -> tuple[str, str, Mapping[str, str]]:
        family, species = (
            a if a == b else f"{a}-{b}" for a, b in ((source.family, target.family), (source.category, target.category))
        )
        attributes = {"kind": self.kind, "family": family, "species": species}
        category = {"intra-species": source.category, "cross-species": source.family, "cross-family": "animal"}[
            self.kind
        ]
        return category, source.category if self.kind == "intra-species" else family, attributes

    def _pair_settings(self) -> dict[str, str]:
        return {"split": self.split, "kind": self.kind}


class AP10K(AnimalPairs):
    """The AP-10K benchmark, built from the official files in the same way on every machine.

    The layout is the official one: `ROOT/annotations/ap10k-{train,test,val}-split1.json` and `ROOT/data/*.jpg`. As in
    `prepare_ap10k.ipynb` of GeoAware-SC the three files are merged, the first object of each image is kept, and images
    with fewer than 3 keypoints are left out; of each species the last 30 images test, the 20 before them
    validate, the others train. Pairs share at least 3 visible keypoints. Tests take all pairs within a species, at
    most 900 per family across species, and at most 30 per pair of families (validation: all, 400, 20); training takes
    at most 50 times as many pairs within a species as it has images.

    The notebook takes files in the order of the file system, so every machine gets another split. Here names
    are sorted and draws are seeded: the split is none of the published ones, but the same everywhere, and
    `pairs_sha256` tells which. `AP10KGeoAware` reads the folders that the notebook wrote.

    Args:
        root: The folder with `annotations` and `data`.
        split: Which images are paired. Training pairs exist within species only.
        kind: Pairs of one species ("intra-species"), of two species of one family ("cross-species") or of two
            families ("cross-family").
        visibility: "clear" takes keypoints that are labelled visible (2), "labelled" also occluded ones (1).
            "geoaware" does what the code of GeoAware-SC does: an occluded keypoint counts for half when pairs are
            formed, and its coordinates are halved; see `halved_keypoints`.
        seed: Seed of the pairs that are drawn.
        exclude_species: Species to leave out.
        crowd_list: A text file of image numbers to leave out, one a line: `data/ap-10k_is_crowd.txt` of GeoAware-SC.
        keep_crowd: Keep objects that are marked `iscrowd`.
        parts: Which of the official files to merge. Splits are made anew, so leaving one out changes all of them.
        pairs_file: A list that `write_pairs` wrote, or a CSV file of file names, in place of forming pairs.
        keep_going: Leave out damaged records and list them in `problems`.

    Raises:
        InputError: An argument cannot be used, a file is missing or damaged, or no pair can be formed.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split = "test",
        kind: Kind = "intra-species",
        visibility: AnimalVisibility = "clear",
        seed: int = 42,
        exclude_species: Sequence[str] = (),
        crowd_list: str | Path | None = None,
        keep_crowd: bool = False,
        parts: Sequence[Split] = ("train", "test", "val"),
        pairs_file: str | Path | None = None,
        keep_going: bool = False,
    ) -> None:
        self._choose(split, kind, visibility)
        check_range("seed", seed, 0)
        self.seed, self.exclude_species, self.keep_crowd, self.parts = (
            seed,
            tuple(exclude_species),
            keep_crowd,
            tuple(parts),
        )
        self.crowd_list = None if crowd_list is None else str(crowd_list)
        problems = Problems(keep_going)
        merged = _merged(Path(root).expanduser() / "annotations", parts, problems)
        _check_species(exclude_species, merged)
        crowded = _crowded(crowd_list)
        usable = [
            found
            for found in sorted(merged, key=lambda found: found.photo.file_name)
            if found.num_keypoints >= _FEWEST_KEYPOINTS
            and found.category.name not in exclude_species
            and found.photo.number not in crowded
            and (keep_crowd or not found.crowd)
        ]
        animals, weights = [], []
        for found in usable:
            with problems.record():
                file = Path(root).expanduser() / "data" / found.photo.file_name
                animals.append(animal(found, file, visibility))
                weights.append(_weights(found, visibility))
        shares = np.array(weights).reshape(-1, len(KEYPOINTS))
        self._pair_up(animals, lambda: form_pairs(animals, shares, split, kind, seed), pairs_file, problems)


def animal(found: Annotation, file: Path, visibility: AnimalVisibility) -> Instance:
    """An annotated object as one side of pairs.

    Args:
        found: The annotation.
        file: Its image file.
        visibility: As in `AP10K`.

    Raises:
        InputError: There is no such file, its species has other keypoints than AP-10K, or a labelled keypoint lies
            outside the image.
    """
    if not file.is_file():
        raise InputError("image", str(file), "no such file, though it is annotated; restore it")
    if found.category.keypoints != KEYPOINTS:
        raise InputError("annotations", found.category.name, "its keypoints are not those of AP-10K; restore the file")
    visible = visible_flags(found.flags, visibility)
    check_keypoints(found.photo.file_name, found.keypoints, visible, found.photo.size)
    points = (
        halved_keypoints(found.keypoints, found.flags, found.photo.size)
        if visibility == "geoaware"
        else found.keypoints
    )
    points = torch.where(visible[:, None], points, 0.0)
    key = Path(found.photo.file_name).name
    side = Side(f"ap10k/{key}", found.photo.size, points, visible, torch.tensor(found.bbox))
    return Instance(key, file, found.category.name, side, found.category.family)


def halved_keypoints(keypoints: Tensor, flags: Tensor, size: tuple[int, int]) -> Tensor:
    """Keypoints as the code of GeoAware-SC sees them, in original pixels.

    That code resizes to a longer side of 840, pads to a square, and then multiplies coordinates by half the
    visibility flag. Occluded keypoints (flag 1) so move half-way to the top-left corner of the padded square, which
    can be outside the image; there, this package reads features at the nearest position inside.

    Args:
        keypoints: `(K, 2)` original pixels, x before y.
        flags: `(K,)` visibility flags.
        size: Height and width of the original image.

    Returns:
        `(K, 2)` original pixels.
    """
    height, width = size
    scale = _PADDED_SIDE / max(size)
    # The offset is a whole number of pixels of the padded square, cut and not rounded.
    left, top = (int((_PADDED_SIDE - int(np.around(_PADDED_SIDE * side / max(size)))) / 2) for side in (width, height))
    offset = torch.tensor([left, top], dtype=torch.float64)
    padded = keypoints.double() * scale + offset
    halved = (padded * flags[:, None] / 2 - offset) / scale
    return torch.where(flags[:, None] == 1, halved, keypoints.double()).float()


def _weights(found: Annotation, visibility: AnimalVisibility) -> NDArray[np.float64]:
    """`(17,)`: what each keypoint counts for when pairs are formed."""
    flags = found.flags.double() / 2 if visibility == "geoaware" else visible_flags(found.flags, visibility).double()
    return np.asarray(flags)


def _merged(folder: Path, parts: Sequence[Split], problems: Problems) -> list[Annotation]:
    """The first object of every image of the three files."""
    found: dict[int, Annotation] = {}
    for part in parts:
        check_choice("parts", part, Split)
        file = folder / f"ap10k-{part}-split1.json"
        with problems.record():
            if not file.is_file():
                raise InputError(
                    "root", str(file), "no such file; restore it, or name those that you have with `parts`"
                )
            for annotation in read_coco(file, problems, "root"):
                found.setdefault(annotation.photo.number, annotation)
    return list(found.values())


def _check_species(names: Sequence[str], merged: Sequence[Annotation]) -> None:
    known = {found.category.name for found in merged}
    for name in names:
        if name not in known:
            raise InputError("exclude_species", name, f"no such species; choose from {', '.join(sorted(known))}")


def _crowded(path: str | Path | None) -> set[int]:
    if path is None:
        return set()
    lines = read_text(Path(path).expanduser(), "crowd_list").split()
    for line in lines:
        if not line.isdecimal():
            raise InputError("crowd_list", str(path), f"{line!r} is no image number; give one number a line")
    return {int(line) for line in lines}
