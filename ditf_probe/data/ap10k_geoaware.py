"""The AP-10K benchmark as folders that GeoAware-SC wrote, so that published numbers can be matched."""

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ditf_probe.data.ap10k import KEYPOINTS, AnimalPairs, AnimalVisibility, animal
from ditf_probe.data.ap10k_pairs import Kind, Split
from ditf_probe.data.coco_files import Category, parse_annotation, parse_photo
from ditf_probe.data.instances import Instance
from ditf_probe.data.problems import Problems
from ditf_probe.data.text_files import read_json
from ditf_probe.errors import InputError

_SPLITS = {"train": "trn", "val": "val", "test": "test"}
_SUFFIXES = {"intra-species": "", "cross-species": "_cross_species", "cross-family": "_cross_family"}


class AP10KGeoAware(AnimalPairs):
    """The pairs that `prepare_ap10k.ipynb` of GeoAware-SC (Zhang et al., CVPR 2024) wrote on somebody's machine.

    The layout is that of the notebook, `ROOT/PairAnnotation/SPLIT/SOURCE-TARGET:CATEGORY.json` with `src_json_path` and
    `trg_json_path`, `ROOT/ImageAnnotation/FAMILY/SPECIES/NUMBER.json` and `ROOT/JPEGImages/FAMILY/SPECIES/NUMBER.jpg`;
    images may also still be in `ROOT/data`. Of the paths in a pair only what follows `ImageAnnotation` is used. Pairs
    come category by category in sorted order, as in its evaluation with `TEST_SAMPLE: 0`.

    Args:
        root: The folder with `PairAnnotation`.
        split: "train" (its folder `trn`, within species only), "val" or "test".
        kind: "intra-species", "cross-species" or "cross-family".
        visibility: Which keypoints count, as in `AP10K`; "geoaware" is what published numbers were measured with.
        keep_going: Leave out damaged records and list them in `problems`.

    Raises:
        InputError: A folder or file is missing or damaged, or there is no pair.
    """

    def __init__(
        self,
        root: str | Path,
        split: Split = "test",
        kind: Kind = "intra-species",
        visibility: AnimalVisibility = "geoaware",
        keep_going: bool = False,
    ) -> None:
        self._choose(split, kind, visibility)
        problems, folder = Problems(keep_going), Path(root).expanduser()
        files = _pair_files(folder / "PairAnnotation" / (_SPLITS[split] + _SUFFIXES[kind]))
        places: dict[str, int] = {}
        animals: list[Instance] = []
        pairs = []
        for file in files:
            with problems.record():
                names = _sides(file)
                for name in names:
                    if name not in places:
                        found = _read_animal(folder, name, visibility)
                        places[name] = len(animals)
                        animals.append(found)
                pairs.append([places[name] for name in names])
        self._pair_up(animals, lambda: np.array(pairs, dtype=np.int64).reshape(-1, 2), None, problems)


def _pair_files(folder: Path) -> list[Path]:
    """Pair files, by category and then by name."""
    files = [file for file in folder.glob("*.json") if not file.name.startswith(".")]
    if not files:
        remedy = "no such folder or no pairs in it; give the folder that prepare_ap10k.ipynb of GeoAware-SC filled"
        raise InputError("root", str(folder), remedy)
    return sorted(files, key=lambda file: (file.stem.partition(":")[2], file.name))


def _sides(file: Path) -> list[str]:
    """Source and target of a pair, as `FAMILY/SPECIES/NUMBER.json`."""
    content = read_json(file, "root")
    names = []
    for field in ("src_json_path", "trg_json_path"):
        path = content.get(field) if isinstance(content, dict) else None
        name = str(path).replace("\\", "/").partition("ImageAnnotation/")[2]
        parts = PurePosixPath(name).parts
        if len(parts) != 3 or ".." in parts:
            raise InputError(
                "root", str(file), f"{field} names no ImageAnnotation/FAMILY/SPECIES/NUMBER.json; restore it"
            )
        names.append(name)
    return names


def _read_animal(root: Path, name: str, visibility: AnimalVisibility) -> Instance:
    family, species, _ = PurePosixPath(name).parts
    file = root / "ImageAnnotation" / name
    record: Any = read_json(file, "root")
    if not isinstance(record, dict):
        raise InputError("root", str(file), "no annotation of an image; restore the file")
    photo = parse_photo(str(file), record)
    found = parse_annotation(str(file), record, photo, Category(species, family, KEYPOINTS))
    moved = root / "JPEGImages" / PurePosixPath(name).with_suffix(".jpg")
    return animal(found, moved if moved.is_file() else root / "data" / photo.file_name, visibility)
