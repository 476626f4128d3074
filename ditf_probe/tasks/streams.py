"""One frozen model over one data set at a time: calibrate once, compute every image once, hand out feature maps."""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.data.pairs import ImageSource, Side
from ditf_probe.errors import InputError
from ditf_probe.features.bank import FeatureBank
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.loading import default_workers
from ditf_probe.features.settings import Discard, Modulate, PositionDebias
from ditf_probe.features.store import FeatureStore, definition_of
from ditf_probe.features.store.basis import Basis, read_basis
from ditf_probe.features.stored import StoredBank
from ditf_probe.geometry import crop_features
from ditf_probe.tasks.prompts import condition_settings, condition_words, conditions_for
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.together import fill_together


class Stream:
    """An extractor and the bank of the data sets that are open.

    Args:
        extractor: The model and how its features are made.
        settings: How streams are kept and images are loaded.
    """

    def __init__(self, extractor: FeatureExtractor, settings: BackboneFeatures) -> None:
        self.extractor = extractor
        self.settings = settings
        self.bank = self._empty()

    def calibrate(self, dataset: ImageSource | None, modulations: Collection[Modulate] = ()) -> None:
        """Calibrates on the images of a data set, in a bank of its own.

        Args:
            dataset: Where they are.
            modulations: As in `FeatureExtractor.calibrate`.

        Raises:
            InputError: There is no data set to calibrate on.
        """
        if dataset is None:
            remedy = "give the data module calibration pairs, or leave out discard, debias and fitted modulations"
            raise InputError("calibration", None, remedy)
        bank, loading = self._empty(), self._loading(dataset)
        if isinstance(bank, StoredBank):
            fill_together(bank, dataset, None, **loading)
        bank.calibrate(dataset, modulations=modulations, **loading)

    def open(self, dataset: ImageSource, ids: Sequence[str] | None = None) -> None:
        """Computes the images of a data set, or some of them, that are not in the bank yet.

        Ranks that share a store divide what it lacks, so that all of them must open a data set, each with its images.
        """
        loading = self._loading(dataset)
        if isinstance(self.bank, StoredBank):
            fill_together(self.bank, dataset, ids, **loading)
        self.bank.fill(dataset, ids, **loading)

    def close(self) -> None:
        """Forgets all images."""
        self.bank = self._empty()

    def maps(
        self,
        sides: Sequence[Side],
        blocks: Sequence[int],
        *,
        modulation: Modulate | None = None,
        discard: Discard | None = None,
        position_debias: PositionDebias | None = None,
        per_timestep: bool = False,
    ) -> dict[int, Tensor]:
        """Feature maps of images with one grid, of the whole prepared image; see `FeatureExtractor.features`."""
        tapped = self.bank.tapped([side.image_id for side in sides])
        chosen = {block: tapped[block] for block in blocks}
        recipe: dict[str, Any] = {"modulation": modulation, "discard": discard, "position_debias": position_debias}
        return self.extractor.features(chosen, **recipe, per_timestep=per_timestep)

    def tapped(self, images: Tensor, ids: Sequence[str], conditions: list[str] | None = None) -> dict[int, TappedBlock]:
        """The tapped blocks of images that are at hand, as a batch; with a store, from there or written to it.

        Args:
            images: `(B, 3, H, W)` uint8 RGB of the original size.
            ids: Seeds of the noise; equal ids mean equal pixels.
            conditions: One text per image; None is the null condition.
        """
        if isinstance(self.bank, StoredBank):
            return self.bank.through(images, ids, conditions)
        extractor = self.extractor
        prepared = torch.stack([extractor.prepare(image) for image in images.cpu()])
        return extractor.tapped(prepared.to(extractor.backbone.device), list(ids), conditions)

    def crop(self, features: Tensor, side: Side) -> Tensor:
        """Cuts padding off a map `(..., h, w)`, so that it covers the original image."""
        return crop_features(features, self.extractor.transform(side.size))

    def by_canvas(self, sides: Sequence[Side]) -> list[list[int]]:
        """Positions of images that can share a batch: those of equal prepared size."""
        groups: dict[tuple[int, int], list[int]] = {}
        for number, side in enumerate(sides):
            groups.setdefault(self.extractor.transform(side.size).canvas, []).append(number)
        return list(groups.values())

    def facts(self) -> dict[str, Any]:
        """Every setting that changes a number, as plain JSON values: those of the extractor, and the conditions."""
        basis = {} if self._basis is None else {"store_basis": self._basis.facts()}
        return self.extractor.settings() | {"conditions": condition_settings(self.settings)} | basis

    def definition(self) -> dict[str, Any]:
        """What a store says of these features where it keeps all channels; see `definition_of`."""
        return definition_of(self.extractor, self.settings.bank_dtype, condition_words(self.settings))

    @property
    def num_workers(self) -> int:
        """Processes that decode ahead."""
        given = self.settings.num_workers
        return default_workers(self.extractor.backbone.device) if given is None else given

    def _loading(self, dataset: ImageSource) -> dict[str, Any]:
        """How a bank loads and conditions the images of a data set."""
        settings = self.settings
        return {
            "num_workers": self.num_workers,
            "batch_size": settings.batch_size,
            "conditions": conditions_for(dataset, settings),
        }

    def _empty(self) -> FeatureBank:
        settings, basis = self.settings, self._basis
        kept: dict[str, Any] = {"dtype": settings.bank_dtype, "budget_gib": settings.bank_gib}
        if settings.store is None:
            return FeatureBank(self.extractor, **kept)
        return StoredBank(self.extractor, self._store, only=settings.store_only, basis=basis, **kept)

    @cached_property
    def _basis(self) -> Basis | None:
        """What the store reduces streams to, read once."""
        path, extractor = self.settings.store_basis, self.extractor
        if path is None:
            return None
        if self.settings.store is None:
            raise InputError("store_basis", path, "reduces what a store keeps, name a store as well")
        basis = read_basis(path)
        widths = {block: extractor.backbone.channels_at(block) for block in extractor.blocks}
        basis.check(path, self.definition(), widths)
        return basis

    @cached_property
    def _store(self) -> FeatureStore:
        """The store of these features, opened once."""
        settings, backbone = self.settings, self.extractor.backbone
        assert settings.store is not None
        basis = None if self._basis is None else self._basis.facts()
        definition = definition_of(self.extractor, settings.bank_dtype, condition_words(settings), basis)
        return FeatureStore(settings.store, definition, backbone.name, create=not settings.store_only)
