"""DAVIS 2016 and 2017: video object segmentation (Perazzi et al., CVPR 2016; Pont-Tuset et al., arXiv 1704.00675)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.data.masks import count_objects, is_binary, read_objects
from ditf_probe.data.photos import photo_size, read_photo
from ditf_probe.data.problems import Problems
from ditf_probe.data.videos import VideoDataset, VideoSequence
from ditf_probe.errors import InputError, check_choice

Version = Literal["2016", "2017"]
Masks = Literal["auto", "binary", "indexed"]


class DAVIS(VideoDataset):
    """The sequences of a list of DAVIS, in the published layout.

    Frames lie in `JPEGImages/RESOLUTION/SEQUENCE/00000.jpg`, masks in `Annotations/RESOLUTION/SEQUENCE/00000.png`, and
    `ImageSets/VERSION/SPLIT.txt` names the sequences, one per line. Lists of the 2016 release stand in
    `ImageSets/RESOLUTION` and name a frame and its mask per line instead; those are read too.

    A mask is "binary" (one object, pixels 0 and 255: DAVIS-2016) or "indexed" (the pixel is the number of the object, 0
    is the background: the palette images of DAVIS-2017). The objects of a sequence are those of its first mask,
    numbered from 1 without gaps, as the official evaluation counts them; a later mask may lack objects, not add any.
    Either all frames of a sequence have masks, or only the first (test-dev), which then has no score.

    Headers of all files, and the first mask of each sequence, are read at once; `check` reads the rest.

    Args:
        root: The folder that holds `JPEGImages`.
        version: Whose list of sequences: "2016" (20 in its val) or "2017" (30 in its val).
        split: Name of the list.
        resolution: Name of the inner folder, "480p" or "Full-Resolution".
        masks: "auto" takes a first mask of the values 0 and 255 for binary and any other for indexed.
        sequences: Names of those to use; None for the whole list.
        keep_going: Leave damaged sequences out instead of raising at the first, and note them in `problems`. Every
            frame and mask is decoded beforehand.

    Raises:
        InputError: If the folder, the list, a sequence or a frame is missing, a file is damaged, a mask has a size or
            values that do not belong, or the choice of an option is unknown.
    """

    name = "davis"

    def __init__(
        self,
        root: str | Path,
        version: Version = "2017",
        split: str = "val",
        resolution: str = "480p",
        masks: Masks = "auto",
        sequences: Sequence[str] | None = None,
        keep_going: bool = False,
    ) -> None:
        check_choice("version", version, Version)
        check_choice("masks", masks, Masks)
        self.version, self.split, self.resolution, self.masks = version, split, resolution, masks
        self._root = Path(root).expanduser()
        if not self._root.is_dir():
            raise InputError("root", str(root), "no such folder; give the folder of DAVIS")
        names = _read_list(self._root, version, resolution, split)
        problems = Problems(keep_going)
        self._videos: list[_Video] = []
        for name in _chosen(names, sequences):
            with problems.record():
                video = self._read(name, names[name])
                if keep_going:
                    video.decode()
                self._videos.append(video)
        self.problems = problems.found

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, index: int) -> VideoSequence:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        video = self._videos[index]
        ids = tuple(f"davis/{self.resolution}/{video.name}/{frame.stem}" for frame in video.frames)
        annotated = tuple(mask is not None for mask in video.masks)
        return VideoSequence(index, video.name, video.size, ids, annotated, video.num_objects)

    def frame(self, index: int, time: int) -> Tensor:
        """`(3, H, W)` uint8 RGB."""
        return read_photo(self._videos[index].frames[time])

    def mask(self, index: int, time: int) -> Tensor:
        """`(H, W)` uint8, 0 the background, objects from 1.

        Raises:
            InputError: The frame has no mask, or one that does not belong.
        """
        return torch.from_numpy(self._videos[index].objects(time))

    def frame_name(self, index: int, time: int) -> str:
        """Such as "00000"."""
        return self._videos[index].frames[time].stem

    def files(self) -> tuple[Path, ...]:
        """All frames, each followed by its mask."""
        pairs = (pair for video in self._videos for pair in zip(video.frames, video.masks, strict=True))
        return tuple(path for pair in pairs for path in pair if path is not None)

    def check(self) -> None:
        """Decodes every frame and mask.

        Raises:
            InputError: One is damaged or holds values that do not belong.
        """
        for video in self._videos:
            video.decode()

    def _read(self, name: str, listed: Sequence[str]) -> "_Video":
        """What a sequence consists of, from names and headers, and the objects of its first mask."""
        folder = self._root / "JPEGImages" / self.resolution / name
        frames = sorted(folder.glob("*.jpg"))
        if not frames:
            raise InputError("root", str(folder), "holds no frame; restore the sequence or take it off the list")
        pictures = self._root / "Annotations" / self.resolution / name
        masks = {path.stem: path for path in sorted(pictures.glob("*.png"))}
        _check_complete(folder, {frame.stem for frame in frames}, [*listed, *masks])
        if frames[0].stem not in masks:
            raise InputError(
                "root", str(pictures / f"{frames[0].stem}.png"), "no such mask of the first frame; restore it"
            )
        if 1 < len(masks) < len(frames):
            lacking = next(frame.stem for frame in frames if frame.stem not in masks)
            raise InputError(
                "root", str(pictures / f"{lacking}.png"), "no such mask; restore it, or keep only the first"
            )
        chosen = tuple(masks.get(frame.stem) for frame in frames)
        size = photo_size(frames[0])
        for path in (*frames, *masks.values()):
            if photo_size(path) != size:
                found = "x".join(map(str, reversed(photo_size(path))))
                raise InputError("root", str(path), f"is {found} and {frames[0].name} {size[1]}x{size[0]}; restore it")
        first = masks[frames[0].stem]
        binary = self.masks == "binary" or (self.masks == "auto" and (self.version == "2016" or is_binary(first)))
        return _Video(name, tuple(frames), chosen, size, binary, count_objects(first, binary))


@dataclass(frozen=True, slots=True)
class _Video:
    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    size: tuple[int, int]
    binary: bool
    num_objects: int

    def objects(self, time: int) -> NDArray[np.uint8]:
        """The numbers of the objects of one mask, checked."""
        path = self.masks[time]
        if path is None:
            raise InputError(
                "root", str(self.frames[time]), "has no mask; only the first frame of its sequence has one"
            )
        return read_objects(path, self.binary, self.num_objects)

    def decode(self) -> None:
        """Reads every frame and mask; raises InputError at the first that is damaged."""
        for time, frame in enumerate(self.frames):
            read_photo(frame)
            if self.masks[time] is not None:
                self.objects(time)


def _read_list(root: Path, version: str, resolution: str, split: str) -> dict[str, list[str]]:
    """Sequence names in order, each with the frames that the list names, if it does."""
    folders = [version, resolution] if version == "2016" else [version]
    paths = [root / "ImageSets" / folder / f"{split}.txt" for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise InputError("root", str(paths[0]), "no such list of sequences; restore it or choose another split")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError("root", str(path), "is not UTF-8 text; restore the list") from error
    found: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, lines)):
        frame = Path(line.split()[0])
        if len(frame.parts) > 1:  # "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png"
            found.setdefault(frame.parent.name, []).append(frame.stem)
        else:
            found.setdefault(line, [])
    if not found:
        raise InputError("root", str(path), "names no sequence; restore the list")
    return found


def _chosen(names: Sequence[str] | dict[str, list[str]], wanted: Sequence[str] | None) -> list[str]:
    if wanted is None:
        return list(names)
    for name in wanted:
        if name not in names:
            raise InputError("sequences", name, f"no such sequence; choose from {', '.join(names)}")
    if not wanted:
        raise InputError("sequences", list(wanted), f"name at least one of {', '.join(names)}")
    return list(dict.fromkeys(wanted))


def _check_complete(folder: Path, frames: set[str], expected: Sequence[str]) -> None:
    """Refuses a sequence with a frame that the list or a mask names and that is not there, or a gap in its numbers."""
    width = len(next(iter(frames)))
    if all(re.fullmatch(rf"[0-9]{{{width}}}", stem) for stem in frames):
        numbers = sorted(map(int, frames))
        step = min((b - a for a, b in pairwise(numbers)), default=1)
        expected = [*expected, *(f"{number:0{width}d}" for number in range(numbers[0], numbers[-1], step))]
    missing = sorted(set(expected) - frames)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError("root", str(folder / f"{missing[0]}.jpg"), f"no such frame{more}; restore the sequence")
