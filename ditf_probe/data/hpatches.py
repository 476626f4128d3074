"""HPatches: 116 sequences of six images with homographies (Balntas, Lenc, Vedaldi, Mikolajczyk, CVPR 2017)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.data.photos import photo_size, read_photo
from ditf_probe.data.planar import Change, PlanarDataset, PlanarImage, PlanarPair, PlanarSequence
from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError, check_choice

INNER_FOLDER = "hpatches-sequences-release"
NUMBERS = (2, 3, 4, 5, 6)

LARGE = (
    *("i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding"),
    *("v_artisans", "v_astronautis", "v_talent"),
)
"""The sequences with images of more than 1600x1200 pixels that D2-Net leaves out (Dusmanu et al., CVPR 2019; the script
`hpatches_sequences/download.sh` of its code removes their folders). CAPS, LoFTR and DIFT use what is left."""

_CHANGES: dict[str, Change] = {"v": "viewpoint", "i": "illumination"}
# Of a singular value to the largest, in coordinates where both images have side one.
_SINGULAR = 1e-9


class HPatches(PlanarDataset):
    """The full images of HPatches: each sequence pairs image 1 with images 2 to 6, 580 pairs in all.

    The layout is the published one: `ROOT[/hpatches-sequences-release]/SEQUENCE/K.ppm` for K from 1 to 6, and
    `H_1_K`, three lines of three numbers that take pixels of image 1 to image K. Sequences are called `v_*` (viewpoint,
    59) or `i_*` (illumination, 57). Their homographies count from the centre of the top-left pixel, as here and as
    published evaluations take them.

    Args:
        root: The folder of the sequences, or its parent.
        subset: "d2net" leaves the eight sequences with large images out, as nearly every published number does: 108
            sequences (56 viewpoint, 52 illumination), 540 pairs. "all" takes each.
        sequences: Names of the sequences to use, whatever `subset` says; None for all of it.
        keep_going: Leave damaged pairs out and keep what is wrong with each in `problems`; otherwise the first one
            raises. Without image 1 a sequence is left out whole.

    Raises:
        InputError: If the folder or a sequence is missing, an image or homography cannot be read, or a homography is
            singular.
    """

    name = "hpatches"

    def __init__(
        self,
        root: str | Path,
        subset: Literal["all", "d2net"] = "d2net",
        sequences: Sequence[str] | None = None,
        keep_going: bool = False,
    ) -> None:
        check_choice("subset", subset, Literal["all", "d2net"])
        self.subset = subset
        folders = _sequence_folders(Path(root).expanduser(), subset, sequences)
        problems = Problems(keep_going)
        self._sequences: list[PlanarSequence] = []
        self._files: dict[str, Path] = {}
        first = 0
        for folder in folders:
            with problems.record():
                sequence = self._read_sequence(folder, first, problems)
                self._sequences.append(sequence)
                first += len(sequence.pairs)
        self.problems = problems.found

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> PlanarSequence:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        return self._sequences[index]

    def image(self, image_id: str) -> Tensor:
        """`(3, H, W)` uint8 RGB at native size."""
        return read_photo(self._files[image_id])

    def files(self) -> tuple[Path, ...]:
        """The images, by sequence and number."""
        return tuple(self._files.values())

    def _read_sequence(self, folder: Path, first: int, problems: Problems) -> PlanarSequence:
        reference = self._image(folder, 1)
        pairs: list[PlanarPair] = []
        for number in NUMBERS:
            with problems.record():
                homography = _read_homography(folder / f"H_1_{number}")
                target = self._image(folder, number)
                _check_regular(homography, folder / f"H_1_{number}", reference.size, target.size)
                pairs.append(PlanarPair(first + len(pairs), target, torch.from_numpy(homography)))
        kept = (reference, *(pair.target for pair in pairs))
        if not pairs:
            raise InputError("root", str(folder), "no pair of this sequence is whole; restore it or remove the folder")
        self._files |= {image.image_id: folder / Path(image.image_id).name for image in kept}
        return PlanarSequence(folder.name, _CHANGES[folder.name[0]], reference, tuple(pairs))

    def _image(self, folder: Path, number: int) -> PlanarImage:
        return PlanarImage(f"{self.name}/{folder.name}/{number}.ppm", photo_size(folder / f"{number}.ppm"))


def _sequence_folders(root: Path, subset: str, sequences: Sequence[str] | None) -> list[Path]:
    if not root.is_dir():
        raise InputError("root", str(root), "no such folder; give the folder of the HPatches sequences")
    if (root / INNER_FOLDER).is_dir():
        root = root / INNER_FOLDER
    found = {folder.name: folder for folder in sorted(root.iterdir()) if folder.is_dir() and folder.name[1:2] == "_"}
    found = {name: folder for name, folder in found.items() if name[0] in _CHANGES}
    if not found:
        raise InputError("root", str(root), "holds no folder v_* or i_*; give the folder of the HPatches sequences")
    if sequences is None:
        return [folder for name, folder in found.items() if subset == "all" or name not in LARGE]
    for name in sequences:
        if name not in found:
            raise InputError("sequences", name, f"no such sequence in {root}; choose from {', '.join(found)}")
    return [found[name] for name in dict.fromkeys(sequences)]


def _read_homography(file: Path) -> NDArray[np.float64]:
    if not file.is_file():
        raise InputError("root", str(file), "no such homography; restore the file")
    try:
        rows = [[float(number) for number in line.split()] for line in file.read_text(encoding="ascii").splitlines()]
        matrix = np.array([row for row in rows if row], dtype=np.float64)
    except ValueError as error:  # of letters, of other bytes, and of lines that differ in length
        raise InputError("root", str(file), "no matrix of numbers in it; restore the file") from error
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        found = f"holds numbers of shape {matrix.shape}" if matrix.shape != (3, 3) else "holds NaN or infinity"
        raise InputError("root", str(file), f"{found}; it must be three lines of three finite numbers")
    return matrix


def _check_regular(
    matrix: NDArray[np.float64],
    file: Path,
    source: tuple[int, int],
    target: tuple[int, int],
) -> None:
    enlarge, shrink = np.diag([source[1], source[0], 1.0]), np.diag([1 / target[1], 1 / target[0], 1.0])
    values = np.linalg.svd(shrink @ matrix @ enlarge, compute_uv=False)
    if values[-1] <= _SINGULAR * values[0]:
        raise InputError("root", str(file), "the matrix is singular, no homography; restore the file")
