"""A trained head together with its frozen backbone."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.errors import InputError
from ditf_probe.features.kept_calibration import keep, restore
from ditf_probe.inference.exporting import export_head
from ditf_probe.inference.features import DenseFeatures, load_for
from ditf_probe.probes import PROBE_SETTINGS, ProbeFacts, describe_probe, load_probe, save_probe
from ditf_probe.probes.folder import load_beside
from ditf_probe.tasks.held_probes import check_backbone
from ditf_probe.tasks.settings import BackboneFeatures


class ProbedBackbone(DenseFeatures):
    """A trained head over the features of a frozen backbone: images in, descriptors out.

    Its folder is that of a trained probe (`probes.folder`): the weights of the head, the settings of its features, what
    calibration found, and the backbone by name and hash. So what `train.py` writes can be loaded here, and what `save`
    writes can be compared by `eval.py test --probe`.

    Args:
        head: A head with its arguments `channels` and `blocks` kept as attributes; set to eval mode.
        backbone: Where its features come from.
        settings: How they are made. `settings.backbone` is the name or path under which `load` finds the backbone.
        training: How the head was trained, for the record.

    Raises:
        InputError: Blocks or width of the head are not those of the features, or as in `DenseFeatures`.
    """

    head: nn.Module

    def __init__(
        self,
        head: nn.Module,
        backbone: Backbone,
        settings: BackboneFeatures,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone, settings, head.to(backbone.device))
        check_head(head, self.extractor.blocks, backbone)
        self.training_facts = dict(training or {})

    @classmethod
    def load(
        cls,
        folder: str | Path,
        backbone: Backbone | str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Self:
        """Loads a trained probe and its backbone, ready to use: frozen, in eval mode.

        Args:
            folder: A probe folder, of `train.py` or `save`.
            backbone: The backbone where it is loaded already, or another name or path of the same weights; None loads
                what the folder names.
            device: As in `load_backbone`; not for a backbone that is loaded already.
            dtype: Of the backbone as in `load_backbone`, in place of that of the training.
            changes: Settings of the features in place of those of the training, by name: size, ensemble, seed, prompt.

        Raises:
            InputError: Not a probe folder; weights, blocks or width of the backbone differ from those of the training;
                a change to what the head was trained on; or a backbone that cannot be loaded.
        """
        head, facts = load_probe(folder)
        settings = settings_of(str(folder), facts, changes or {})
        check_blocks_of(str(folder), head, facts)
        if not isinstance(backbone, Backbone):
            named = settings.backbone if backbone is None else str(backbone)
            settings = replace(settings, backbone=named, dtype=settings.dtype if dtype is None else dtype)
            backbone = load_for(settings, device)
        check_weights(str(folder), facts, backbone)
        probed = cls(head, backbone, settings, facts.training)
        restore(probed.extractor, facts.calibration, load_beside(folder), "folder")
        probed.requires_grad_(False)
        return probed

    def save(self, folder: str | Path) -> None:
        """Writes the head, its settings and calibration, and the name and hash of the backbone; not its weights.

        Raises:
            InputError: The head cannot be rebuilt from its attributes; see `probes.folder.init_args`.
        """
        calibration, beside = keep(self.extractor, self.extractor.blocks)
        facts = describe_probe(
            self.head,
            features=asdict(replace(self.settings, blocks=list(self.extractor.blocks))),
            backbone=self.backbone.settings(),
            training=self.training_facts,
            calibration=calibration,
        )
        save_probe(Path(folder), self.head.state_dict(), facts, beside)

    def export_head(self, path: str | Path, grid: tuple[int, int] | None = None) -> None:
        """Writes the head alone as a `torch.export` program; see `inference.exporting.export_head`."""
        export_head(self.head, self.extractor.blocks, path, grid)


def check_head(head: nn.Module, blocks: list[int], backbone: Backbone) -> None:
    """Refuses a head that does not fit the features it is given.

    Raises:
        InputError: It needs a block that is not among them, or another width.
    """
    needed, width = getattr(head, "blocks", None), getattr(head, "channels", None)
    if needed is None or width is None:
        raise InputError("head", type(head).__name__, "keep its arguments channels and blocks as attributes")
    missing = sorted(set(needed) - set(blocks))
    if missing:
        raise InputError("blocks", blocks, f"the head also needs {missing}, name the blocks it was trained on")
    for block in needed:
        found = backbone.channels_at(block)
        if found != width:
            remedy = f"{backbone.name} has {found} at block {block}, use the backbone it was trained on"
            raise InputError("head.channels", width, remedy)


def check_weights(folder: str, facts: ProbeFacts, backbone: Backbone) -> None:
    """Refuses a backbone that a head was not trained on; see `tasks.held_probes.check_backbone`."""
    try:
        check_backbone(folder, facts, backbone)
    except InputError as error:
        raise InputError("folder", error.value, error.remedy) from error


def check_blocks_of(folder: str, head: nn.Module, facts: ProbeFacts) -> None:
    """Refuses a folder whose head uses blocks that its features do not have.

    Raises:
        InputError: There is one.
    """
    used, made = getattr(head, "blocks", None), list(facts.features["blocks"])
    if used is None or not set(used) <= set(made):
        raise InputError("folder", folder, f"its head uses blocks {used}, its features are of {made}: train it again")


def settings_of(folder: str, facts: ProbeFacts, changes: Mapping[str, Any]) -> BackboneFeatures:
    """The features that a head was trained on, with changes to what it was not trained for.

    Raises:
        InputError: A setting that is not known, or a change to what the head was trained on.
    """
    known = BackboneFeatures.__dataclass_fields__
    unknown = sorted(set(facts.features) - set(known))
    if unknown:
        raise InputError("folder", folder, f"its setting {unknown[0]} is not known here, use the version that wrote it")
    changes = {name: list(value) if isinstance(value, tuple) else value for name, value in changes.items()}
    for name, value in changes.items():
        if name not in known or name in ("backbone", "dtype"):
            raise InputError("changes", name, "name a setting of the features, such as image_size or ensemble")
        trained = facts.features.get(name)
        if name in ("blocks", *PROBE_SETTINGS) and value != trained:
            raise InputError(f"changes.{name}", value, f"the head was trained on {trained!r}, leave it out")
    return BackboneFeatures(**{**facts.features, **changes})
