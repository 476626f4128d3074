"""Linear semantic segmentation on frozen features: one head per row, all trained on the same batches."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ditf_probe.data.segmentation_module import LoadedImage, MaskModule, by_size, stacked_pixels
from ditf_probe.errors import InputError
from ditf_probe.geometry import crop_features
from ditf_probe.losses import pixel_cross_entropy
from ditf_probe.metrics.miou import MeanIntersectionOverUnion
from ditf_probe.probes.segmentation import SegmentationHead, enlarged
from ditf_probe.tasks.image_rows import ImageRows
from ditf_probe.tasks.image_task import ImageTask
from ditf_probe.tasks.measured import MeasuredRun
from ditf_probe.tasks.schedules import adamw, check_optimisation, cosine_with_warmup
from ditf_probe.tasks.segmentation_heads import HeadFacts, load_heads, save_head
from ditf_probe.tasks.segmentation_scores import SegmentationSheet, dataset_facts
from ditf_probe.tasks.settings import BackboneFeatures


class SegmentationTask(ImageTask):
    """Trains a linear head on the features of every row, and compares the rows by mIoU.

    The heads see the same batches; their parameters are disjoint, so that each learns as if alone. The best weights of
    each by validation mIoU are kept in `<run_dir>/heads/<row>/`, and a test reads them from there. There is no
    augmentation: a frozen backbone sees every image once, and its features serve all epochs. Predictions are bilinearly
    enlarged to the mask, and scored at its size.

    Args:
        features: As in `ImageTask`.
        rows: As in `ImageTask`; rows without features ("same_position") have no head.
        probe_folders: As in `ImageTask`: correspondence probes whose features get a head.
        run_dir: As in `ImageTask`.
        others: As in `ImageTask`.
        backbone_files: As in `ImageTask`.
        heads: Folder of trained heads for a test; `<run_dir>/heads` by default.
        keep: Keep the features of all training and validation images in memory (`features.bank_gib` for each); False
            computes them anew in every epoch, for data sets that are too large.
        scales: Sizes of a multi-scale test, as factors of `features.image_size`; [1.0] is single scale.
        flip: Average with the mirrored image in a test.
        learning_rate: Highest learning rate of AdamW; a cosine takes it to zero.
        weight_decay: Decoupled weight decay.
        warmup_steps: Steps of linear warm-up.

    Raises:
        InputError: As in `ImageTask`, or a number out of range.
    """

    def __init__(
        self,
        features: BackboneFeatures,
        rows: Sequence[str] = ("raw", "layer_norm", "adaln", "rgb", "untrained"),
        probe_folders: Sequence[str] = (),
        run_dir: str = "runs/default",
        others: dict[str, BackboneFeatures] | None = None,
        backbone_files: Sequence[str] = (),
        heads: str | None = None,
        keep: bool = True,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        learning_rate: float = 1e-2,
        weight_decay: float = 1e-4,
        warmup_steps: int = 20,
    ) -> None:
        super().__init__(features, rows, probe_folders, run_dir, others, backbone_files)
        check_optimisation(learning_rate, weight_decay, warmup_steps)
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise InputError("scales", list(scales), "give positive factors, such as [0.75, 1.0, 1.25]")
        self.heads_folder = self.run_dir / "heads" if heads is None else Path(heads)
        self.keep, self.scales, self.flip = keep, tuple(scales), flip
        self.learning_rate, self.weight_decay, self.warmup_steps = learning_rate, weight_decay, warmup_steps
        self.heads = nn.ModuleDict()
        self.best: dict[str, float] = {}
        self._validation: dict[str, MeanIntersectionOverUnion] = {}
        self._sheets: dict[str, SegmentationSheet] = {}
        self._scaled: list[ImageRows] = []

    @property
    def masks(self) -> MaskModule:
        """The data module of the trainer.

        Raises:
            InputError: The trainer was given bare loaders.
        """
        module = getattr(self.trainer, "datamodule", None)
        if not isinstance(module, MaskModule):
            raise InputError("datamodule", type(module).__name__, "give the trainer a MaskModule")
        return module

    def categories(self) -> dict[str, str]:
        """Every image of the stage; what it shows is not known before it is segmented."""
        module = self.masks
        sets = list(module.test.values()) if self.trainer.testing else [module.train, module.val]
        return {image_id: "image" for dataset in sets if dataset is not None for image_id in dataset.image_sizes()}

    def configure_model(self) -> None:
        """Builds the heads, once the width of every row is known."""
        if self.heads or self.trainer.state.fn != "fit":
            return
        self.start_rows()
        self.masks.train_pixels = not self.keep
        train = self.masks.train
        assert train is not None
        image = train[0]
        found = self.image_rows(train.image(image.image_id)[None], [image.image_id])
        for name, maps in found.items():
            self.heads[name] = SegmentationHead(maps.shape[1], len(train.class_names))

    def configure_optimizers(self) -> Any:
        """AdamW over the heads alone, on a cosine over the whole training."""
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            remedy = "give the trainer an end, the learning rate needs it"
            raise InputError("max_epochs", self.trainer.max_epochs, remedy)
        optimizer = adamw((self.heads,), self.learning_rate, self.weight_decay)
        schedule = LambdaLR(optimizer, cosine_with_warmup(self.warmup_steps, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Runs the backbones over all images once, where features are kept."""
        sets = [dataset for dataset in (self.masks.train, self.masks.val) if dataset is not None]
        for stream in self.image_rows.streams if self.keep else ():
            for dataset in sets:
                stream.open(dataset)

    def on_fit_end(self) -> None:
        """Forgets the images."""
        for stream in self.image_rows.streams:
            stream.close()

    def training_step(self, batch: list[LoadedImage], batch_idx: int) -> Tensor:
        """The sum of the cross-entropies of all heads; pixels without a class count nowhere."""
        groups = by_size(batch)
        masks = [loaded.mask.to(self.device) for group in groups for loaded in group]
        maps: dict[str, list[Tensor]] = {name: [] for name in self.heads}
        for group in groups:
            for name, found in self._maps(group).items():
                maps[name] += found.to(self.device).unbind()
        losses = []
        for name, head in self.heads.items():
            losses.append(pixel_cross_entropy(head(maps[name]), masks))
            self.log(f"train/loss/{name}", losses[-1], batch_size=len(batch))
        total = torch.stack(losses).sum()
        self.log("train/loss", total, prog_bar=True, batch_size=len(batch))
        return total

    def on_validation_epoch_start(self) -> None:
        """Starts a count per row."""
        val = self.masks.val
        if val is None or not self.heads:
            raise InputError("subcommand", "validate", "validation is part of fit; use test for trained heads")
        classes = len(val.class_names)
        self._validation = {name: MeanIntersectionOverUnion(classes).to(self.device) for name in self.heads}

    def validation_step(self, batch: list[LoadedImage], batch_idx: int) -> None:
        """Counts the pixels of a batch, single scale."""
        for group in by_size(batch):
            for name, maps in self._maps(group).items():
                scores = torch.stack(self.heads[name](maps.to(self.device).unbind()))
                classes = enlarged(scores, group[0].image.size).argmax(1)
                for loaded, found in zip(group, classes, strict=True):
                    self._validation[name].update(found, loaded.mask.to(self.device), loaded.image.index)

    def on_validation_epoch_end(self) -> None:
        """Logs mIoU of every row and their mean, `val/miou`, and keeps the best weights of each."""
        values = {name: float(metric.compute()["mIoU"]) for name, metric in self._validation.items()}
        self.log_dict({f"val/miou/{name}": value for name, value in values.items()})
        self.log("val/miou", sum(values.values()) / len(values), prog_bar=True)
        for name, value in values.items():
            if not self.trainer.sanity_checking and value > self.best.get(name, -1.0):
                self.best[name] = value
                if self.trainer.is_global_zero:
                    training = {"val_miou": value, "step": self.global_step, "epoch": self.current_epoch}
                    head = self.heads[name]
                    assert isinstance(head, SegmentationHead)
                    save_head(self.heads_folder / name, head, self._facts(name), training)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remembers which scores the kept weights have."""
        checkpoint["best_miou"] = dict(self.best)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from there."""
        self.best = dict(checkpoint.get("best_miou", {}))

    def on_test_start(self) -> None:
        """Gets the rows ready at every scale, and reads their heads."""
        self.start_rows()
        self._scaled = [self.make_rows(scale) if scale != 1 else self.image_rows for scale in self.scales]
        sets = self.masks.test
        classes = len(next(iter(sets.values())).class_names)
        facts = {name: self._facts(name) for name in self.image_rows.matchers}
        self.heads = nn.ModuleDict(load_heads(self.heads_folder, facts, classes)).to(self.device)
        self._sheets = {name: SegmentationSheet(list(facts), classes, self.device) for name in sets}

    def test_step(self, batch: list[LoadedImage], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Segments a batch of images with every head."""
        sheet = list(self._sheets.values())[dataloader_idx]
        for group in by_size(batch):
            for name, shares in self._shares(group).items():
                sheet.update(name, group, shares.argmax(1))

    def on_test_epoch_end(self) -> None:
        """Gathers what all ranks found, once."""
        rows = self.image_rows.matchers
        datasets = [
            sheet.result(name, self.masks.test[name], [rows[row].row for row in rows], self._trained())
            for name, sheet in self._sheets.items()
        ]
        self.log_result(MeasuredRun(datasets, self.settings()))

    def settings(self) -> dict[str, Any]:
        """As in `ImageTask`, with scales, mirroring and the data."""
        data = {name: dataset_facts(dataset) for name, dataset in self.masks.sets.items()}
        return super().settings() | {"scales": list(self.scales), "flip": self.flip, "data": data}

    def _maps(self, group: list[LoadedImage]) -> dict[str, Tensor]:
        """Per row the features `(B, D, h, w)` of images of one size, each map covering its image."""
        ids = [loaded.image.image_id for loaded in group]
        if not self.keep:
            return self.image_rows(stacked_pixels(group), ids)
        found = {}
        for name, matcher in self.image_rows.matchers.items():
            maps = matcher.features(matcher.stream.bank.tapped(ids))
            found[name] = crop_features(maps, matcher.stream.extractor.transform(group[0].image.size))
        return found

    def _shares(self, group: list[LoadedImage]) -> dict[str, Tensor]:
        """Per row the class probabilities `(B, classes, H, W)` of images of one size, summed over scales and sides."""
        total: dict[str, Tensor] = {}
        straight = stacked_pixels(group)
        for rows in self._scaled:
            for mirrored in (False, True) if self.flip else (False,):
                ids = [loaded.image.image_id + ("/mirrored" if mirrored else "") for loaded in group]
                for name, maps in rows(straight.flip(-1) if mirrored else straight, ids).items():
                    scores = torch.stack(self.heads[name](maps.to(self.device).unbind()))
                    share = enlarged(scores, group[0].image.size).softmax(1)
                    share = share.flip(-1) if mirrored else share
                    total[name] = total[name] + share if name in total else share
        return total

    def _trained(self) -> dict[str, int]:
        """Trained parameters of each row: those of its head, and of its probe."""
        return {
            name: matcher.parameters + sum(parameter.numel() for parameter in self.heads[name].parameters())
            for name, matcher in self.image_rows.matchers.items()
        }

    def _facts(self, name: str) -> HeadFacts:
        """What a head of a row belongs to."""
        matcher = self.image_rows.matchers[name]
        settings = matcher.stream.settings
        recipe = asdict(matcher.row) | {
            "blocks": list(matcher.blocks),
            "timestep": settings.timestep,
            "tap": settings.tap,
        }
        return HeadFacts(recipe, asdict(settings), matcher.stream.extractor.backbone.settings())
