"""Extraction of archives that the user already has: inside one folder, whole files only, resumable."""

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Final, Literal

from ditf_probe.errors import InputError
from ditf_probe.files import ensure_writable, replacing
from ditf_probe.progress import progress

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
_BLOCK: Final = 1 << 20
_MARGIN: Final = 1 << 26
"""Bytes that shall stay free beside what is extracted."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive.

    Attributes:
        path: Where it belongs, relative to the folder.
        kind: What it is.
        size: Bytes of a file.
        crc: CRC-32 of a file, where the archive has one.
        target: What a link points to, relative to where it stands; of a hard link, relative to the folder.
        open: Opens the contents of a file.
    """

    path: PurePosixPath
    kind: Literal["file", "folder", "symlink", "hardlink"]
    size: int = 0
    crc: int | None = None
    target: str = ""
    open: Callable[[], IO[bytes]] | None = None


@dataclass(frozen=True)
class Extraction:
    """What became of one archive: how many files were written, and how many were there already."""

    written: int
    kept: int


def extract(archives: Sequence[str | Path], root: str | Path) -> list[Extraction]:
    """Extracts zip and tar archives (plain, gz, bz2, xz) into a folder, one after the other.

    Every entry of an archive is looked at before the first one is written. Files are written under a temporary name and
    renamed, so what is interrupted leaves whole files only, and a second call writes those that are missing: a file
    of the right size, and for zip archives of the right CRC-32, is kept.

    Args:
        archives: The archives.
        root: The folder.

    Returns:
        What became of each archive.

    Raises:
        InputError: An archive is missing, damaged, encrypted or of another kind, an entry would lie or point outside
            the folder, or there is not enough space.
    """
    paths = [Path(archive).expanduser() for archive in archives]
    for path in paths:
        if not path.is_file():
            raise InputError("archive", str(path), "no such file; check the path")
    folder = ensure_writable(Path(root).expanduser(), "root").resolve()
    return [_extract_one(path, folder) for path in paths]


def _extract_one(path: Path, folder: Path) -> Extraction:
    with _naming_damage(path), _members(path) as entries:
        # Of two entries with one path the later one counts, as in every other program.
        members = list({member.path: member for member in entries}.values())
        for member in members:
            _check_member(path, member)
        missing = [member for member in members if not _is_there(member, folder)]
        _check_space(path, folder, sum(member.size for member in missing))
        files = sum(member.kind == "file" for member in members)
        with progress(path.name, len(missing), "files") as advance:
            # Folders and files come first: a link may point to what stands later in the archive.
            for member in sorted(missing, key=lambda member: member.kind in ("symlink", "hardlink")):
                _write(path, member, folder)
                advance(1)
    written = sum(member.kind == "file" for member in missing)
    return Extraction(written, files - written)


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Turns what the archive libraries raise into one line that names the archive."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, NotImplementedError) as error:  # zipfile: an encrypted entry, an unknown compression
        raise InputError("archive", str(path), f"cannot be extracted ({error}); unpack it by other means") from error
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(
                "archive", str(path), f"extraction failed ({error.strerror}); see to it, run again"
            ) from error
        raise InputError("archive", str(path), f"is damaged ({error}); get it again, then run again") from error


@contextmanager
def _members(path: Path) -> Iterator[list[Member]]:
    """All entries of an archive, which stays open."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield [_zip_member(archive, info) for info in archive.infolist()]
    elif _is_tar(path):
        with path.open("rb") as stream, tarfile.open(fileobj=stream) as archive:
            yield list(_tar_members(path, archive, stream))
    else:
        raise InputError(
            "archive", str(path), "no zip or tar archive, or its beginning or end is missing; get it again"
        )


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except _DAMAGE:
        return False


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    path = PurePosixPath(info.filename)
    if info.is_dir():
        return Member(path, "folder")
    if stat.S_ISLNK(info.external_attr >> 16):
        return Member(path, "symlink", target=archive.read(info).decode("utf-8", "surrogateescape"))
    return Member(path, "file", info.file_size, info.CRC, open=lambda: archive.open(info))


def _tar_members(path: Path, archive: tarfile.TarFile, stream: IO[bytes]) -> Iterator[Member]:
    """Entries of a tar archive, which has no table of contents: all of it is read."""
    done = 0
    with progress(f"{path.name}: list", path.stat().st_size // _BLOCK, "MiB") as advance:
        for info in archive:
            yield _tar_member(path, archive, info)
            advance(stream.tell() // _BLOCK - done)
            done = stream.tell() // _BLOCK


def _tar_member(path: Path, archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    place = PurePosixPath(info.name)
    if info.isdir():
        return Member(place, "folder")
    if info.issym() or info.islnk():
        return Member(place, "symlink" if info.issym() else "hardlink", target=info.linkname)
    if not info.isfile():
        raise InputError("archive", str(path), f"entry {info.name!r} is a device or pipe; do not trust this archive")

    def opened() -> IO[bytes]:
        stream = archive.extractfile(info)
        if stream is None:
            raise tarfile.ReadError(f"no data for {info.name}")
        return stream

    return Member(place, "file", info.size, open=opened)


def _check_member(archive: Path, member: Member) -> None:
    """Refuses an entry whose path or link target leaves the folder, by its words alone."""
    name = str(member.path)
    foreign = PureWindowsPath(name)
    if ".." in foreign.parts or foreign.drive or foreign.root:
        raise InputError(
            "archive", str(archive), f"entry {name!r} would lie outside the folder; do not trust this archive"
        )
    if "\\" in name:
        remedy = f"entry {name!r} has a backslash in its path; pack it again with slashes"
        raise InputError("archive", str(archive), remedy)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        remedy = f"entry {name!r} has a name that is not UTF-8; pack it again with UTF-8 names"
        raise InputError("archive", str(archive), remedy) from error
    if member.kind in ("symlink", "hardlink"):
        steps = member.target.split("/")
        ups = next((i for i, step in enumerate(steps) if step != ".."), len(steps))
        base = len(member.path.parts) - 1 if member.kind == "symlink" else 0
        # A way up after a name may start anywhere, since the name can be a link itself.
        if ups > base or ".." in steps[ups:] or steps[0] == "" or "\\" in member.target:
            raise _leaving(archive, member)


def _leaving(archive: Path, member: Member) -> InputError:
    remedy = f"link {str(member.path)!r} points outside the folder ({member.target!r}); do not trust this archive"
    return InputError("archive", str(archive), remedy)


def _is_there(member: Member, folder: Path) -> bool:
    """Whether an earlier run has written an entry."""
    place = folder / member.path
    if member.kind == "folder":
        return place.is_dir()
    if member.kind == "symlink":
        return place.is_symlink() and os.readlink(place) == member.target
    if member.kind == "hardlink":
        return place.is_file() and (folder / member.target).is_file() and place.samefile(folder / member.target)
    whole = place.is_file() and not place.is_symlink() and place.stat().st_size == member.size
    return whole and (member.crc is None or _crc(place) == member.crc)


def _crc(path: Path) -> int:
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def _check_space(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed and needed + _MARGIN > free:
        sizes = f"needs {needed / 2**30:.2f} GiB in {folder}, where {free / 2**30:.2f} GiB are free"
        raise InputError("archive", str(archive), f"{sizes}; free some or name another folder")


def _write(archive: Path, member: Member, folder: Path) -> None:
    """Writes one entry; a link that an earlier entry or somebody else made must not lead out of the folder."""
    place = folder / member.path
    parent = place if member.kind == "folder" else place.parent
    linked = [folder / member.target] if member.kind == "hardlink" else []
    for path in (parent, *linked):
        if not _inside(path, folder):
            remedy = f"entry {str(member.path)!r} would leave the folder through a link; remove the link"
            raise InputError("archive", str(archive), remedy)
    parent.mkdir(parents=True, exist_ok=True)
    if member.kind == "symlink":
        if not _inside(parent / member.target, folder):
            raise _leaving(archive, member)
        if place.is_symlink() or place.exists():
            place.unlink()
        place.symlink_to(member.target)
    elif member.kind == "hardlink":
        with replacing(place) as temporary:
            temporary.unlink()
            os.link(folder / member.target, temporary, follow_symlinks=False)
    elif member.open is not None:
        with replacing(place) as temporary, member.open() as source, temporary.open("wb") as sink:
            shutil.copyfileobj(source, sink, _BLOCK)
            if sink.tell() != member.size:
                raise EOFError(f"{member.path} has {sink.tell()} of {member.size} bytes")


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder)
