"""Looking after stores: what is there, whether it is whole, and what can go."""

import re
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditf_probe.errors import InputError
from ditf_probe.features.store import journal
from ditf_probe.features.store.feature_store import FeatureStore
from ditf_probe.features.store.manifest import MANIFEST, address_of, read_manifest
from ditf_probe.features.store.shards import SUFFIX, Shard, problem_of

_OWN_SHARD = re.compile(r"[0-9a-f]{12}-\d{6,}\.safetensors")
_OWN_JOURNAL = re.compile(r"[0-9a-f]{12}\.jsonl")
_OWN_TEMPORARY = re.compile(r"\.([0-9a-f]{12}-\d{6,}\.safetensors|manifest\.json)\.\w+")
_DAY = 86400.0


@dataclass(frozen=True)
class StoreFacts:
    """A store at a glance.

    Attributes:
        folder: Where it is.
        label: Name of its backbone.
        definition: What it holds.
        entries: Number of images.
        blocks: Blocks of which it has any.
        bytes: Size of its shards.
        damaged: Shards that cannot be read.
        written: When something was last written, in seconds since 1970.
    """

    folder: Path
    label: str
    definition: dict[str, Any]
    entries: int
    blocks: list[int]
    bytes: int
    damaged: int
    written: float


def describe(folder: Path) -> StoreFacts:
    """What a store holds; its shards are not read.

    Raises:
        InputError: Its manifest is damaged.
    """
    manifest = read_manifest(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is damaged is counted
        store = FeatureStore(folder, manifest["definition"], create=False)
    return StoreFacts(
        folder,
        manifest.get("label", ""),
        manifest["definition"],
        len(store),
        store.blocks,
        sum(path.stat().st_size for path in _own(folder, _OWN_SHARD)),
        len(store.damaged),
        _last_written(folder),
    )


def verify(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Reads every byte of a store.

    Yields:
        Each file with what is wrong with it, None where nothing is. Foreign files are not looked at, unless they end
        like shards.
    """
    try:
        address = address_of(read_manifest(folder)["definition"])
    except InputError as error:
        yield folder / MANIFEST, error.remedy
        return
    yield folder / MANIFEST, None
    lines = journal.read(_own(folder, _OWN_JOURNAL))
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        yield path, _quick_problem(path, lines.get(path.name), address) or problem_of(path, address)


def rubbish(folder: Path, *, grace_minutes: float = 60.0, deep: bool = False) -> list[tuple[Path, str]]:
    """Files of a store that serve nobody: damaged shards, and what killed writers left. Foreign files are never named.

    Args:
        folder: Of the store.
        grace_minutes: Unfinished files younger than this may have a living writer, and stay.
        deep: Read every byte, to find shards that are damaged inside.

    Returns:
        Each file with the reason.

    Raises:
        InputError: The manifest is damaged.
    """
    address, now = address_of(read_manifest(folder)["definition"]), time.time()
    journals = _own(folder, _OWN_JOURNAL)  # before the shards, so that a new writer has not only a journal
    found = [
        (path, "was left unfinished by a writer")
        for path in _own(folder, _OWN_TEMPORARY)
        if now - path.stat().st_mtime >= grace_minutes * 60
    ]
    lines = journal.read(journals)
    for path in _own(folder, _OWN_SHARD):
        problem = _quick_problem(path, lines.get(path.name), address) or (problem_of(path, address) if deep else None)
        if problem is not None:
            found.append((path, problem))
    gone = {path for path, _ in found}
    writers = {path.name[:12] for path in _own(folder, _OWN_SHARD) if path not in gone}
    return found + [(path, "lists no shard that is there") for path in journals if path.stem not in writers]


def expired(folders: Sequence[Path], days: float) -> list[Path]:
    """Stores in which nothing was written for so many days."""
    return [folder for folder in folders if time.time() - _last_written(folder) >= days * _DAY]


def remove_store(folder: Path) -> None:
    """Removes a store, its manifest last, so that a kill leaves a smaller one; foreign files and their folder stay."""
    for pattern in (_OWN_TEMPORARY, _OWN_SHARD, _OWN_JOURNAL):
        for path in _own(folder, pattern):
            path.unlink(missing_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def size_of(folder: Path) -> int:
    """Bytes of all files of a store."""
    patterns = (_OWN_TEMPORARY, _OWN_SHARD, _OWN_JOURNAL)
    return sum(path.stat().st_size for pattern in patterns for path in _own(folder, pattern))


def _own(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Files that only a store names like this."""
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name) and path.is_file())


def _quick_problem(path: Path, line: journal.Line | None, address: str) -> str | None:
    """What size and header of a shard betray."""
    size = path.stat().st_size
    if line is not None and line.bytes != size:
        return f"has {size} bytes and was written with {line.bytes}"
    try:
        facts = Shard(path).facts
    except InputError:
        return "is cut short or no shard"
    if facts.address != address:
        return "holds features of another definition"
    if line is not None and (line.keys != facts.keys or sorted(line.blocks) != sorted(facts.blocks)):
        return "holds other entries than its journal says"
    return None


def _last_written(folder: Path) -> float:
    times = [path.stat().st_mtime for path in folder.iterdir() if path.is_file()]
    return max(times, default=0.0)
