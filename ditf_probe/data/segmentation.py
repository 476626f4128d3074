"""Images with a class for every pixel: what such a data set is, and folders of images and masks."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ditf_probe.data.masks import read_values
from ditf_probe.data.photos import list_photos, photo_size, read_photo
from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError

IGNORE = 255
"""Class of pixels that count nowhere."""


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """One image of a data set with masks, without pixels.

    Attributes:
        index: Position in the data set; metrics count each index once.
        image_id: Identifies the picture; equal ids mean equal pixels.
        size: (height, width) of the image and its mask.
    """

    index: int
    image_id: str
    size: tuple[int, int]


class MaskDataset(Dataset[MaskedImage], ABC):
    """Images whose pixels are labelled with classes.

    Attributes:
        name: Key of the data set in results.
        unit: What its sampling units are, in words.
        class_names: Names of the classes, by index.
        problems: Records that were left out because they are damaged, where the data set was told to keep going.
    """

    name: str
    unit: str = "image"
    class_names: tuple[str, ...]
    problems: tuple[InputError, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> MaskedImage:
        """One image, without pixels. Raises IndexError past the end."""

    @abstractmethod
    def image(self, image_id: str) -> Tensor:
        """The pixels of an image at its native size: `(3, H, W)` uint8 RGB."""

    @abstractmethod
    def mask(self, index: int) -> Tensor:
        """The classes of an image: `(H, W)` uint8, `IGNORE` where a pixel counts nowhere."""

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) of every image."""
        images = (self[index] for index in range(len(self)))
        return {image.image_id: image.size for image in images}

    def files(self) -> tuple[Path, ...]:
        """The files of images and masks, each once; empty where images are made."""
        return ()

    def counts(self) -> dict[str, int]:
        """How many images and classes there are, for reports."""
        return {"images": len(self), "classes": len(self.class_names)}


class MaskFolder(MaskDataset):
    """A folder of images and a folder of masks with the same relative names, such as `a/1.jpg` and `a/1.png`.

    A mask is an image of one channel (grey or palette) whose values are classes.

    Args:
        root: The folder of both.
        classes: Names of the classes, or their number.
        images: Folder of images below `root`, searched at any depth.
        masks: Folder of masks below `root`.
        first_value: The mask value of class 0: 1 where 0 means "other", as in ADE20K. Lower values count nowhere.
        ignore: Further mask values that count nowhere.
        name: Key of the data set in results.
        check_masks: Decode every mask now and refuse unknown values; otherwise they are refused when they are read.
        keep_going: Leave damaged images out and list them in `problems`, instead of raising at the first.

    Raises:
        InputError: A folder is missing or empty, or a mask is missing, of another size, or damaged.
    """

    def __init__(
        self,
        root: str | Path,
        classes: list[str] | int,
        images: str = "images",
        masks: str = "masks",
        first_value: int = 0,
        ignore: Sequence[int] = (IGNORE,),
        name: str = "masks",
        check_masks: bool = False,
        keep_going: bool = False,
    ) -> None:
        self.name = name
        self.class_names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
        if not 0 < len(self.class_names) <= IGNORE:
            raise InputError("classes", classes, f"name 1 to {IGNORE} classes")
        self.first_value, self.ignore = first_value, tuple(ignore)
        folder = Path(root).expanduser() / images
        found = _masks_by_stem(Path(root).expanduser() / masks)
        problems = Problems(keep_going)
        self._items: list[tuple[MaskedImage, Path, Path]] = []
        for file in list_photos(folder, "images"):
            with problems.record():
                stem = file.relative_to(folder).with_suffix("").as_posix()
                if stem not in found:
                    raise InputError("masks", str(file), f"has no mask {stem}.png, add it or remove the image")
                size = _common_size(file, found[stem])
                if check_masks:
                    self._read(found[stem], size)
                image = MaskedImage(len(self._items), f"{name}/{file.relative_to(folder).as_posix()}", size)
                self._items.append((image, file, found[stem]))
        self._files = {image.image_id: file for image, file, _ in self._items}
        self.problems = problems.found

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> MaskedImage:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._items[index][0]

    def image(self, image_id: str) -> Tensor:
        """`(3, H, W)` uint8 RGB at native size."""
        if image_id not in self._files:
            raise InputError("image_id", image_id, f"is no image of {self.name}")
        return read_photo(self._files[image_id])

    def mask(self, index: int) -> Tensor:
        """`(H, W)` uint8 classes.

        Raises:
            InputError: The mask is damaged, or has a value that is neither a class nor ignored.
        """
        image, _, file = self._items[index]
        return self._read(file, image.size)

    def files(self) -> tuple[Path, ...]:
        """Images and masks."""
        return tuple(file for _, image, mask in self._items for file in (image, mask))

    def _read(self, file: Path, size: tuple[int, int]) -> Tensor:
        values = read_values(file)
        if values.shape != size:
            raise InputError("masks", str(file), f"is {values.shape} and its image {size}, give one class per pixel")
        classes = values - self.first_value
        ignored = np.isin(values, self.ignore) | (classes < 0)
        unknown = np.unique(values[~ignored & (classes >= len(self.class_names))])
        if len(unknown):
            last = self.first_value + len(self.class_names) - 1
            remedy = f"classes are {self.first_value} to {last}, name others in `ignore`"
            raise InputError("masks", str(file), f"has the unknown value {unknown[0]}: {remedy}")
        return torch.from_numpy(np.where(ignored, IGNORE, classes).astype(np.uint8))


class ADE20K(MaskFolder):
    """ADE20K scene parsing, 150 classes (Zhou et al., CVPR 2017): folder `ADEChallengeData2016` as published.

    Args:
        root: The folder with `images/`, `annotations/` and `objectInfo150.txt`, or its parent.
        split: "training" (20,210 images) or "validation" (2,000).
        check_masks: As in `MaskFolder`.
        keep_going: As in `MaskFolder`.

    Raises:
        InputError: As in `MaskFolder`, or the list of classes is missing or has other than 150.
    """

    def __init__(
        self, root: str | Path, split: str = "validation", check_masks: bool = False, keep_going: bool = False
    ) -> None:
        if split not in ("training", "validation"):
            raise InputError("split", split, "use training or validation")
        folder = Path(root).expanduser()
        inner = folder / "ADEChallengeData2016"
        folder = inner if inner.is_dir() else folder
        self.split = split
        super().__init__(
            folder,
            _ade_classes(folder / "objectInfo150.txt"),
            images=f"images/{split}",
            masks=f"annotations/{split}",
            first_value=1,
            ignore=(),
            name="ade20k",
            check_masks=check_masks,
            keep_going=keep_going,
        )


def _ade_classes(path: Path) -> list[str]:
    """Names in the order of their index; the last column holds synonyms after commas."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[1:]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "root", str(path), "is no readable text file, give the folder of ADEChallengeData2016"
        ) from error
    names = [re.split(r"\t+|\s{2,}", line.strip())[-1].split(",")[0].strip() for line in lines if line.strip()]
    if len(names) != 150:
        raise InputError("root", str(path), f"lists {len(names)} classes and not 150, restore the file")
    return names


def _masks_by_stem(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in list_photos(folder, "masks")}


def _common_size(image: Path, mask: Path) -> tuple[int, int]:
    size, own = photo_size(image), photo_size(mask)
    if size != own:
        raise InputError("masks", str(mask), f"is {own} and its image {size}, give one class per pixel")
    return size
