"""Tapped streams on disk, by image and block: written once by any number of processes, read in mapped memory."""

import os
import shutil
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.errors import InputError
from ditf_probe.features.store import journal
from ditf_probe.features.store.journal import Line
from ditf_probe.features.store.manifest import address_of, claim_folder
from ditf_probe.features.store.shards import SUFFIX, Shard, write_shard

GIBIBYTE = 2**30
_MOST_OPEN = 64
_SPARE = 64 * 2**20  # bytes that a disk keeps free


class FeatureStore:
    """The streams of one definition, in one folder.

    A batch of images becomes one shard, which appears under its final name once it is whole; names are unique to the
    writer, so processes share a folder without locks, and whoever is killed loses the batch that it was writing. Of an
    entry that two of them wrote, the shard whose name comes first is read.

    Args:
        root: Folder of any number of stores, or that of this one.
        definition: From `manifest.definition_of`.
        label: Name of the backbone, for the reader of the manifest.
        create: Make the folder where it is missing; without, the store is read only.

    Raises:
        InputError: As in `manifest.claim_folder`.
    """

    def __init__(
        self, root: str | Path, definition: Mapping[str, Any], label: str = "", *, create: bool = True
    ) -> None:
        self.folder = claim_folder(root, definition, label, create)
        self.address = address_of(definition)
        self.damaged: list[Path] = []
        self._writer = uuid.uuid4().hex[:12]
        self._written = 0
        self._known: set[str] = set()
        self._places: dict[int, dict[str, tuple[str, int]]] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._open: OrderedDict[str, Shard] = OrderedDict()
        self.refresh()

    def __len__(self) -> int:
        """Number of entries, with at least one block."""
        return len(self._sizes)

    @property
    def blocks(self) -> list[int]:
        """Blocks of which it has any entry."""
        return sorted(self._places)

    def entries(self) -> list[str]:
        """All entries."""
        return list(self._sizes)

    def has(self, key: str, blocks: Sequence[int]) -> bool:
        """Whether all of these blocks of an entry are there."""
        return all(key in self._places.get(block, ()) for block in blocks)

    def size(self, key: str) -> tuple[int, int]:
        """(height, width) of the original image of an entry."""
        return self._sizes[key]

    def refresh(self) -> None:
        """Looks for what other processes have written since."""
        found, journals = _listing(self.folder)
        new = sorted(found.keys() - self._known)
        if not new:
            return
        lines = journal.read(journals)
        for name in new:
            line = lines.get(name) or self._line(name, found[name])
            self._known.add(name)
            if line is None or line.bytes != found[name]:
                self._damage(name)
            else:
                self._add(line)

    def write(self, keys: Sequence[str], sizes: Sequence[tuple[int, int]], tapped: Mapping[int, TappedBlock]) -> None:
        """Keeps the blocks of a batch of images; those that are there for all of them are left out.

        Args:
            keys: Entries.
            sizes: (height, width) of their original images.
            tapped: Block index to tensors in CPU memory in the dtype of the store, one row per entry.

        Raises:
            InputError: The disk is full, or the folder cannot be written to.
        """
        new = {index: block for index, block in tapped.items() if not all(self.has(key, [index]) for key in keys)}
        if not new:
            return
        stem = f"{self._writer}-{self._written:06d}"
        path = self.folder / f"{stem}{SUFFIX}"
        write_shard(path, self.address, keys, sizes, new)
        self._written += 1
        self._known.add(path.name)
        line = Line(path.name, path.stat().st_size, sorted(new), list(keys), list(sizes))
        try:
            journal.append(self.folder / f"{self._writer}{journal.SUFFIX}", line)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            remedy = f"cannot be written to ({reason}), free some space or name another folder"
            raise InputError("store", str(self.folder), remedy) from error
        self._add(line)

    def read(self, key: str, blocks: Sequence[int]) -> dict[int, TappedBlock]:
        """Some blocks of an entry, as views of mapped files with a batch axis of one.

        Raises:
            InputError: It is not there, or its shard is damaged.
        """
        if not self.has(key, blocks):
            raise InputError("store", key, f"is not in {self.folder}, fill it first")
        found: dict[int, TappedBlock] = {}
        for block in blocks:
            name, row = self._places[block][key]
            shard = self._shard(name)
            if shard.facts.keys[row] != key:
                raise InputError("store", str(shard.path), "holds other entries than its journal says, restore it")
            found |= shard.entry(row, [block])
        return found

    def check_space(self, needed: int, images: int) -> None:
        """Refuses to begin what would not fit the disk.

        Args:
            needed: Bytes that will be written.
            images: Number of images, for the message.

        Raises:
            InputError: There is less room.
        """
        free = shutil.disk_usage(self.folder).free - _SPARE
        if needed > free:
            remedy = (
                f"{images} images need {needed / GIBIBYTE:.2f} GiB and {max(free, 0) / GIBIBYTE:.2f} GiB are free: "
                "name a folder on another disk, keep streams in bfloat16, or use fewer blocks or images"
            )
            raise InputError("store", str(self.folder), remedy)

    def _shard(self, name: str) -> Shard:
        if name not in self._open:
            shard = Shard(self.folder / name)
            if shard.facts.address != self.address:
                raise InputError("store", str(shard.path), "holds features of another definition, remove it")
            self._open[name] = shard
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def _line(self, name: str, size: int) -> Line | None:
        """What the journal of a writer would say that was killed before it did; None for what is no shard of ours."""
        try:
            facts = Shard(self.folder / name).facts
        except InputError:
            return None
        return (
            Line(name, size, sorted(facts.blocks), facts.keys, facts.sizes) if facts.address == self.address else None
        )

    def _add(self, line: Line) -> None:
        for block in line.blocks:
            places = self._places.setdefault(block, {})
            for row, key in enumerate(line.keys):
                if key not in places or line.file < places[key][0]:
                    places[key] = (line.file, row)
        self._sizes.update(zip(line.keys, map(_size, line.sizes), strict=True))

    def _damage(self, name: str) -> None:
        self.damaged.append(self.folder / name)
        remedy = "its images are computed again; ditf-probe store verify and gc say and remove what is damaged"
        warnings.warn(f"{self.folder / name} is damaged or no shard of this store: {remedy}", stacklevel=4)


def _listing(folder: Path) -> tuple[dict[str, int], list[Path]]:
    """Names and sizes of the shards of a folder, and its journals, without files that are still being written."""
    shards, journals = {}, []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.endswith(SUFFIX):
                with suppress(FileNotFoundError):  # removed in this very moment
                    shards[entry.name] = entry.stat().st_size
            elif entry.name.endswith(journal.SUFFIX):
                journals.append(folder / entry.name)
    return shards, sorted(journals)


def _size(size: Sequence[int]) -> tuple[int, int]:
    return (size[0], size[1])
