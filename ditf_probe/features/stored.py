"""A feature bank over a store on disk: what any run has computed before is read, what is new is written."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.data.pairs import ImageSource
from ditf_probe.errors import InputError
from ditf_probe.features.bank import FeatureBank, nbytes_of, row_of
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.fetching import fetch
from ditf_probe.features.store import FeatureStore
from ditf_probe.features.store.basis import Basis
from ditf_probe.features.store.behind import WriteBehind

_MOST_HELD = 20_000  # each may be the last view of a mapped file, of which Linux allows a process 65,530


class StoredBank(FeatureBank):
    """A bank whose images are in a store, and of which as many stay in memory as fit the budget.

    Images leave memory when others need the room, those first that were asked for longest ago, and come back from the
    store. So the budget bounds memory and refuses nothing; what must fit is the disk. With a basis, both hold
    coefficients, and streams are made of them, in float32, when they are asked for.

    Args:
        extractor: As in `FeatureBank`.
        store: Where streams are kept, of the definition of this extractor, dtype and basis.
        dtype: As in `FeatureBank`.
        budget_gib: Most memory that streams may take, in GiB; those that are mapped from disk count as well.
        only: Refuse to compute what the store lacks.
        basis: What streams are reduced to, of all blocks of the extractor; None keeps all channels.

    Raises:
        InputError: As in `FeatureBank`.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        store: FeatureStore,
        *,
        dtype: str = "float32",
        budget_gib: float = 4.0,
        only: bool = False,
        basis: Basis | None = None,
    ) -> None:
        super().__init__(extractor, dtype=dtype, budget_gib=budget_gib)
        self.store, self.only, self.basis = store, only, basis
        self._behind: WriteBehind | None = None  # while it is filled
        self._keys: dict[str, str] = {}
        self._sizes: dict[str, tuple[int, int]] = {}
        self._held = 0
        self._lock = Lock()  # a training reads ahead in a thread while it validates

    def __len__(self) -> int:
        """Number of images that can be asked for."""
        return len(self._keys)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._keys and self._has(str(image_id))

    @property
    def planned(self) -> list[str]:
        """Images that can be asked for, or are yet to be computed."""
        return list(self._keys)

    def key(self, image_id: str) -> str:
        """Entry of a planned image in the store."""
        return self._keys[image_id]

    def plan(
        self,
        dataset: ImageSource,
        ids: Sequence[str] | None = None,
        conditions: Callable[[list[str]], Any] | None = None,
    ) -> dict[str, tuple[int, int]]:
        """What `fill` would compute; see `FeatureBank.plan`.

        Raises:
            InputError: An id that the data set does not have, an image of another size than the store has it, too
                little room on the disk; or, where nothing is to be computed, images that the store lacks.
        """
        self.store.refresh()
        sizes = dataset.image_sizes()
        names = list(dict.fromkeys(sizes if ids is None else ids))
        canvases = self._canvases(dataset.name, names, sizes)
        self._expect(names, sizes, entry_keys(names, conditions))
        missing = {name: canvases[name] for name in names if not self._has(name)}
        self._admit(list(missing), list(missing.values()))
        return missing

    def through(
        self, images: Tensor, ids: Sequence[str], conditions: list[Any] | None = None
    ) -> dict[int, TappedBlock]:
        """The tapped blocks of images that are at hand: from the store, or computed and written now.

        Args:
            images: `(B, 3, H, W)` uint8 RGB of the original size.
            ids: Their ids.
            conditions: One plain value per image; None is the null condition.

        Returns:
            As `tapped`.

        Raises:
            InputError: As in `plan` and `keep`.
        """
        size = (images.shape[2], images.shape[3])
        given = None if conditions is None else dict(zip(ids, conditions, strict=True))
        names = list(dict.fromkeys(ids))

        def chosen(some: list[str]) -> list[Any] | None:
            return None if given is None else [given[name] for name in some]

        self._expect(names, dict.fromkeys(names, size), entry_keys(names, chosen))
        missing = [name for name in names if not self._has(name)]
        if missing:
            self._admit(missing, [self.extractor.transform(size).canvas] * len(missing))
            prepared = torch.stack([self.extractor.prepare(images[ids.index(name)].cpu()) for name in missing])
            device = self.extractor.backbone.device
            self.keep(missing, self.extractor.tapped(prepared.to(device), missing, chosen(missing)))
        return self.tapped(ids)

    def fill(self, dataset: ImageSource, ids: Sequence[str] | None = None, **loading: Any) -> None:
        """As `FeatureBank.fill`; a batch is written as the next one is computed."""
        with WriteBehind() as behind:
            self._behind = behind
            try:
                super().fill(dataset, ids, **loading)
            finally:
                self._behind = None

    def write(self, names: Sequence[str], tapped: dict[int, TappedBlock], behind: WriteBehind) -> None:
        """Writes the tapped blocks of a batch of planned images.

        Args:
            names: Their ids.
            tapped: Block index to tensors on the device of the backbone, one row per image.
            behind: Writes them while the next batch is computed, and raises what the last one met.

        Raises:
            InputError: Streams are not finite or too large for the dtype, or they cannot be written.
        """
        behind.put(partial(self._write, list(names), self._fetch(tapped)))

    def keep(self, names: Sequence[str], tapped: dict[int, TappedBlock]) -> None:
        """As `write`, and holds the images in memory as long as there is room."""
        write = partial(self._write_and_hold, list(names), self._fetch(tapped))
        if self._behind is None:
            write()
        else:
            self._behind.put(write)

    def _fetch(self, tapped: dict[int, TappedBlock]) -> Callable[[], dict[int, TappedBlock]]:
        """What is kept of tapped blocks, reduced where they are, so that coefficients travel alone."""
        return fetch(tapped if self.basis is None else self.basis.reduced(tapped), self.dtype)

    def _width(self, block: int) -> int:
        return super()._width(block) if self.basis is None else len(self.basis.blocks[block].components)

    def _whole(self, index: int, block: TappedBlock) -> TappedBlock:
        return block if self.basis is None else self.basis.restored(index, block)

    def _write(self, names: list[str], fetched: Callable[[], dict[int, TappedBlock]]) -> dict[int, TappedBlock]:
        kept = fetched()
        self.store.write([self.key(name) for name in names], [self._sizes[name] for name in names], kept)
        return kept

    def _write_and_hold(self, names: list[str], fetched: Callable[[], dict[int, TappedBlock]]) -> None:
        kept = self._write(names, fetched)
        for row, name in enumerate(names):
            self._hold(self.key(name), {index: block.map(partial(row_of, row=row)) for index, block in kept.items()})

    def _entry(self, image_id: str) -> dict[int, TappedBlock]:
        if image_id not in self:
            return super()._entry(image_id)  # says so
        key = self._keys[image_id]
        with self._lock:
            if key in self._blocks:
                self._blocks[key] = self._blocks.pop(key)  # to the end: asked for last
            else:
                self._hold(key, self.store.read(key, self.extractor.blocks))
            return self._blocks[key]

    def _has(self, image_id: str) -> bool:
        key = self._keys[image_id]
        return key in self._blocks or self.store.has(key, self.extractor.blocks)

    def _hold(self, key: str, blocks: dict[int, TappedBlock]) -> None:
        """Takes an entry into memory, the last of all to leave; it stays even where it is larger than the budget."""
        self._held += _nbytes(blocks) - _nbytes(self._blocks.pop(key, {}))
        self._blocks[key] = blocks
        while (self._held > self.budget or len(self._blocks) > _MOST_HELD) and len(self._blocks) > 1:
            self._held -= _nbytes(self._blocks.pop(next(iter(self._blocks))))

    def _expect(self, names: Sequence[str], sizes: Mapping[str, tuple[int, int]], keys: Sequence[str]) -> None:
        """Remembers what images are called in the store, and refuses those that are of another size there."""
        self._keys |= dict(zip(names, keys, strict=True))
        self._sizes |= {name: sizes[name] for name in names}
        for name, key in zip(names, keys, strict=True):
            if self.store.has(key, self.extractor.blocks) and self.store.size(key) != sizes[name]:
                there, here = (" x ".join(map(str, size)) for size in (self.store.size(key), sizes[name]))
                remedy = f"it is {there} in {self.store.folder} and {here} here, but ids must mean equal pixels"
                raise InputError("ids", name, f"{remedy}: name another store")

    def _admit(self, missing: Sequence[str], canvases: Sequence[tuple[int, int]]) -> None:
        """Refuses to compute what may not be computed, or would not fit the disk."""
        if missing and self.only:
            lacking = f"{self.store.folder} lacks {len(missing)} images, {missing[0]} first"
            raise InputError("store_only", True, f"{lacking}; extract them first, or set it to false")
        if missing:
            self.store.check_space(self.estimate(canvases), len(missing))


def entry_keys(ids: Sequence[str], conditions: Callable[[list[str]], Any] | None) -> list[str]:
    """Keys of images in a store: the id, and a hash of its condition where there is one.

    Args:
        ids: Image ids.
        conditions: From ids to their conditions, as plain values (texts or class labels).

    Raises:
        InputError: Conditions that are no list of one plain value per image.
    """
    found = None if conditions is None else conditions(list(ids))
    if found is None:
        return list(ids)
    if not isinstance(found, list) or len(found) != len(ids) or not all(isinstance(x, str | int) for x in found):
        raise InputError("conditions", type(found).__name__, "a store takes a list of texts or class labels")
    digests = {value: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16] for value in set(found)}
    return [f"{image_id} {digests[value]}" for image_id, value in zip(ids, found, strict=True)]


def _nbytes(blocks: Mapping[int, TappedBlock]) -> int:
    return sum(map(nbytes_of, blocks.values()))
