"""Is a data set whole? Annotations, then files, then counts; everything that is wrong, one line each."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from ditf_probe.data.instances import check_size
from ditf_probe.data.photos import SUFFIXES, check_name, photo_size, read_photo
from ditf_probe.errors import InputError
from ditf_probe.progress import progress


class Verifiable(Protocol):
    """What a data set must offer to be verified; every `PairDataset` does.

    Attributes:
        problems: Records that are damaged.
    """

    problems: tuple[InputError, ...]

    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        ...

    def counts(self) -> dict[str, int]:
        """How much of what there is."""
        ...


@runtime_checkable
class Sized(Protocol):
    """A data set whose annotations say how large the images are."""

    def sizes(self) -> Mapping[Path, tuple[int, int]]:
        """Height and width by file."""
        ...


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        counts: How much of what there is, as far as it was reached.
        problems: Everything that is wrong.
        stopped: The phase in which something was wrong and after which nothing else was looked at; None if all was.
    """

    counts: dict[str, int]
    problems: tuple[InputError, ...]
    stopped: str | None = None


def verify(build: Callable[[], Verifiable], decode: bool = False, keep_going: bool = False) -> Verification:
    """Reads the annotations, checks every file, and counts.

    Args:
        build: Builds the data set, with damaged records collected where it can.
        decode: Decode whole images instead of their headers only.
        keep_going: Go on with what is left after a phase in which something was wrong.
    """
    try:
        dataset = build()
    except InputError as error:
        return Verification({}, (error,), "annotations")
    problems, files = dataset.problems, dataset.files()
    if problems and not keep_going:
        return Verification({}, problems, "annotations")
    sizes = dataset.sizes() if isinstance(dataset, Sized) else {}
    counts = {"files": len(files)}
    problems += _damaged(files, sizes, decode)
    if problems and not keep_going:
        return Verification(counts, problems, "files")
    try:
        counts |= dataset.counts()
    except InputError as error:  # a data set that reads files while it counts meets the damaged ones again
        problems += () if str(error) in map(str, problems) else (error,)
    return Verification(counts, problems)


def check_file(file: Path, size: tuple[int, int] | None = None, decode: bool = False) -> None:
    """Checks the name, the header and, if wanted, the pixels of an image; of another file, that it can be read.

    Args:
        file: The file.
        size: Height and width that it must have, if known.
        decode: Decode the whole image.

    Raises:
        InputError: Something is wrong with it.
    """
    check_name(file)
    if file.suffix.lower() not in SUFFIXES:
        _check_readable(file)
        return
    found = photo_size(file)
    if size is not None:
        check_size(file, found, size)
    if decode:
        read_photo(file)


def _damaged(files: tuple[Path, ...], sizes: Mapping[Path, tuple[int, int]], decode: bool) -> tuple[InputError, ...]:
    def check(file: Path) -> InputError | None:
        try:
            check_file(file, sizes.get(file), decode)
        except InputError as error:
            return error
        return None

    found = []
    with progress("verify", len(files), "files") as advance, ThreadPoolExecutor() as pool:
        for error in pool.map(check, files):
            advance(1)
            if error is not None:
                found.append(error)
    return tuple(found)


def _check_readable(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            first = stream.read(1)
    except OSError as error:
        raise InputError("file", str(file), f"cannot be read ({error.strerror}); restore it") from error
    if not first:
        raise InputError("file", str(file), "is empty; restore it")
