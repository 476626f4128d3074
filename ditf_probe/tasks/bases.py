"""The basis that a feature store reduces streams to: fitted once to some of the images, then read by all ranks."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ditf_probe.backbones.base import Backbone
from ditf_probe.data.pairs import ImageSource
from ditf_probe.errors import InputError
from ditf_probe.features.loading import equal_size_batches, prepared_loader
from ditf_probe.features.store.basis import Basis, RunningMoments, principal_components, write_basis
from ditf_probe.features.store.manifest import MANIFEST
from ditf_probe.features.stored import entry_keys
from ditf_probe.progress import progress
from ditf_probe.tasks.models import make_stream
from ditf_probe.tasks.prompts import conditions_for
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.streams import Stream
from ditf_probe.tasks.together import patient_group, wait_for_all


@dataclass(frozen=True)
class BasisSettings:
    """How a basis is fitted.

    Attributes:
        components: Coefficients that are kept of a token, at most the channels of any of the blocks.
        images: To how many images it is fitted, those whose hashed ids come first; to all where there are fewer.
        seed: Of the hash.
    """

    components: int = 256
    images: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("components", "images"):
            if getattr(self, name) < 1:
                raise InputError(f"basis.{name}", getattr(self, name), "use at least 1")


def chosen_images(sources: Mapping[str, ImageSource], settings: BasisSettings) -> dict[str, ImageSource]:
    """The images that a basis is fitted to, whatever the order of the data sets; each with where it is."""
    where: dict[str, ImageSource] = {}
    for source in sources.values():
        for image_id in source.image_sizes():
            where.setdefault(image_id, source)

    def place(image_id: str) -> str:
        return hashlib.sha256(f"{settings.seed} {image_id}".encode()).hexdigest()

    return {image_id: where[image_id] for image_id in sorted(where, key=place)[: settings.images]}


def with_basis(
    backbone: Backbone,
    features: BackboneFeatures,
    blocks: Sequence[int],
    sources: Mapping[str, ImageSource],
    settings: BasisSettings | None,
    *,
    first: bool = True,
    in_step: bool = False,
) -> BackboneFeatures:
    """The same features with the file of a basis, which is fitted where it is not there yet; all ranks must call this.

    The name of the file follows from what is asked for, so that a run that goes on takes the basis that it began with.

    Args:
        backbone: Whose raw streams are reduced.
        features: With a store; the basis stands beside the stores.
        blocks: Of the backbone.
        sources: Data sets whose images it may be fitted to.
        settings: How it is fitted; None, or features that name a basis, leave them as they are.
        first: Whether this is the rank that fits and writes; the others wait for it.
        in_step: All ranks compute, because they hold parts of one model.

    Raises:
        InputError: An image that cannot be read, too many components, or it cannot be written.
    """
    if settings is None or features.store_basis is not None:
        return features
    for block in blocks:
        if settings.components > (width := backbone.channels_at(block)):
            remedy = f"block {block} has {width} channels, use no more"
            raise InputError("basis.components", settings.components, remedy)
    stream, chosen = make_stream(backbone, replace(features, store=None), blocks), chosen_images(sources, settings)
    root = Path(str(features.store)).expanduser()
    file = (root.parent if (root / MANIFEST).is_file() else root) / _name(stream, chosen, settings)
    there = file.is_file()
    wait_for_all(patient_group())  # nobody writes before all have looked, so that those in step agree
    patient = patient_group()
    if not there and (first or in_step):
        found = _fit(stream, chosen, settings)
        if first:
            write_basis(file, found)
    wait_for_all(patient)
    return replace(features, store_basis=str(file))


def _name(stream: Stream, chosen: Mapping[str, ImageSource], settings: BasisSettings) -> str:
    keys = [key for source, ids in _by_source(chosen) for key in entry_keys(ids, _conditions(stream, source))]
    asked = [stream.definition(), stream.extractor.blocks, settings.components, sorted(keys)]
    return f"basis-{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]}.safetensors"


def _fit(stream: Stream, chosen: Mapping[str, ImageSource], settings: BasisSettings) -> Basis:
    extractor = stream.extractor
    running = {index: RunningMoments() for index in extractor.blocks}
    with progress(f"basis of {extractor.backbone.name}", len(chosen)) as advance:
        for source, ids in _by_source(chosen):
            sizes, conditions = source.image_sizes(), _conditions(stream, source)
            canvases = {image_id: extractor.transform(sizes[image_id]).canvas for image_id in ids}
            batches = equal_size_batches(canvases, stream.settings.batch_size)
            loader = prepared_loader([(source, names) for names in batches], extractor.size_rule, stream.num_workers)
            for loaded in loader:
                names = batches[loaded.number]
                condition = None if conditions is None else conditions(names)
                for index, block in extractor.tapped(loaded.images(), names, condition).items():
                    running[index].add(block.hidden_states)
                advance(len(names))
    blocks = {index: principal_components(found.moments(), settings.components) for index, found in running.items()}
    return Basis(blocks, len(chosen), stream.definition())


def _by_source(chosen: Mapping[str, ImageSource]) -> list[tuple[ImageSource, list[str]]]:
    groups: dict[int, tuple[ImageSource, list[str]]] = {}
    for image_id, source in chosen.items():
        groups.setdefault(id(source), (source, []))[1].append(image_id)
    return list(groups.values())


def _conditions(stream: Stream, source: ImageSource) -> Any:
    return conditions_for(source, stream.settings)
