"""Fills feature stores, on any number of ranks: Lightning's `predict` over the images that they lack."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.data import DataLoader

from ditf_probe.backbones.checks import check_blocks
from ditf_probe.data.image_module import ImageModule
from ditf_probe.data.pairs import ImageSource, PairDataset
from ditf_probe.errors import InputError
from ditf_probe.features.loading import PreparedBatch, equal_size_batches, in_step, prepared_loader, shares
from ditf_probe.features.store.behind import WriteBehind
from ditf_probe.features.stored import StoredBank
from ditf_probe.tasks.backbone_files import read_backbones
from ditf_probe.tasks.bases import BasisSettings, with_basis
from ditf_probe.tasks.models import Models, make_stream
from ditf_probe.tasks.prompts import CATEGORY, conditions_for, encode_image_prompts, image_categories
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.streams import Stream
from ditf_probe.tasks.together import patient_group, wait_for_all


@dataclass(frozen=True)
class Job:
    """One backbone over one data set.

    Attributes:
        stream: Its pass, and the bank over the store.
        source: Where the images are.
        conditions: From ids to what they are conditioned on; None is the null condition.
        planned: Number of images that the store lacked before, on all ranks together.
        batches: What this rank computes: ids of images of one prepared size.
        counts: How many images of each batch are written, from the first on; the rest keep ranks in step.
    """

    stream: Stream
    source: ImageSource
    conditions: Callable[[list[str]], list[str] | None] | None
    planned: int
    batches: list[list[str]]
    counts: list[int]

    @property
    def bank(self) -> StoredBank:
        """The bank over the store."""
        assert isinstance(self.stream.bank, StoredBank)
        return self.stream.bank


@dataclass(frozen=True)
class Extracted:
    """What an extraction did for one backbone and data set.

    Attributes:
        backbone: Name of the backbone.
        source: Name of the data set.
        store: Folder of the store.
        images: Number of images of the data set.
        computed: How many of them were not there before and are now.
        missing: How many are still not there: the run was stopped or limited.
        basis: File of the basis to which streams were reduced, if they were.
    """

    backbone: str
    source: str
    store: Path
    images: int
    computed: int
    missing: int
    basis: str | None = None

    def line(self) -> str:
        """The same in words."""
        left = f", {self.missing} still missing" if self.missing else ""
        place = str(self.store) if self.basis is None else f"{self.store}, store_basis {self.basis}"
        return f"{self.backbone} on {self.source}: {self.computed} of {self.images} images computed{left} ({place})"


class ExtractionTask(L.LightningModule):
    """Computes the streams of images that a store lacks, each image once over all ranks.

    Images of one prepared size share a batch, at most `features.batch_size` of them, decoded ahead by
    `features.num_workers` processes; noise draws run as a batch inside the backbone. The first rank says what is
    missing, and all take about as many pixels of it. A batch is written while the next one is computed, so a run that
    was killed loses these two at most, and goes on where it stopped, on as many ranks as one likes.

    Args:
        features: The backbone and its features; `blocks` may be several.
        store: Folder of stores; None takes that of the features.
        untrained: Extract the untrained control of every backbone as well, with all channels.
        run_dir: Folder of everything else that a run writes.
        shard_model: Divide transformers over the ranks of each node (FSDP), for those that are larger than a card. All
            ranks then make the same number of passes, for which some images are computed twice, and written once.
        others: Further backbones by name.
        backbone_files: The same as YAML files.
        basis: Fit a basis for each backbone that names no `store_basis`, and reduce streams to it; see `docs/store.md`.

    Raises:
        InputError: Features without a store, a backbone file that cannot be read, or untrained controls of models that
            are divided.
    """

    def __init__(
        self,
        features: BackboneFeatures,
        store: str | None = None,
        untrained: bool = False,
        run_dir: str = "runs/default",
        shard_model: bool = False,
        others: dict[str, BackboneFeatures] | None = None,
        backbone_files: Sequence[str] = (),
        basis: BasisSettings | None = None,
    ) -> None:
        super().__init__()
        given = [features, *read_backbones(backbone_files, others or {}).values()]
        self.features = [one if store is None else replace(one, store=store) for one in given]
        for one in self.features:
            if one.store is None:
                raise InputError("store", None, f"name the folder that the features of {one.backbone} go to")
        if shard_model and untrained:
            raise InputError("untrained", True, "controls are not divided over ranks, leave it or shard_model out")
        self.untrained, self.run_dir = untrained, Path(run_dir)
        self.shard_model, self.basis = shard_model, basis
        self._jobs: list[Job] = []
        self._behind = WriteBehind()
        self._patient: Any = None

    def configure_callbacks(self) -> list[L.Callback]:
        """Where the run fails, what is being written is written first."""
        return [_LastWrite(self._behind)]

    @property
    def images(self) -> ImageModule:
        """The data module of the trainer.

        Raises:
            InputError: It is another one.
        """
        module = getattr(self.trainer, "datamodule", None)
        if not isinstance(module, ImageModule):
            raise InputError("datamodule", type(module).__name__, "give the trainer an ImageModule")
        return module

    def prepare_data(self) -> None:
        """Encodes the prompts of the images once per node, so that text encoders are gone before the backbone comes."""
        for features in self.features:
            if features.prompt is None and features.captions is None:
                continue
            for source in self.images.sources.values():
                pairs = source if isinstance(source, PairDataset) and CATEGORY in (features.prompt or "") else None
                named = {} if pairs is None else image_categories(pairs)
                encode_image_prompts(features, list(source.image_sizes()), named, self._device_of_rank)

    def setup(self, stage: str) -> None:
        """Tells the data module what to load.

        Raises:
            InputError: Another verb than predict.
        """
        if stage != "predict":
            raise InputError("subcommand", stage, "features are extracted by eval.py predict")
        self.images.loaders = self._loaders
        self._patient = patient_group()

    def predict_step(self, batch: PreparedBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Computes a batch of images, which is written as the next one is computed."""
        job = self._jobs[dataloader_idx]
        ids, count = job.batches[batch.number], job.counts[batch.number]
        condition = None if job.conditions is None else job.conditions(ids)
        tapped = job.stream.extractor.tapped(batch.images(), ids, condition)
        if count < len(ids):
            tapped = {index: block.map(lambda x: x[:count]) for index, block in tapped.items()}
        if count:
            job.bank.write(ids[:count], tapped, self._behind)

    def on_predict_epoch_end(self) -> None:
        """Waits for the last batch to be written."""
        self._behind.close()

    def teardown(self, stage: str) -> None:
        """Waits until every rank has written, so that the first can say what is there."""
        wait_for_all(self._patient)

    def result(self) -> list[Extracted]:
        """What the last run did, looked up in the stores.

        Raises:
            InputError: Nothing was extracted.
        """
        if not self._jobs:
            raise InputError("task", type(self).__name__, "run trainer.predict first")
        return [_outcome(job) for job in self._jobs]

    @property
    def _device_of_rank(self) -> Any:
        return self.trainer.strategy.root_device

    def _loaders(self) -> list[DataLoader[Any]]:
        """Plans every job, and makes its loader."""
        models = Models(self._device_of_rank, self.features, mesh=self._mesh() if self.shard_model else None)
        self._jobs = []
        for features in self.features:
            backbone = models[features]
            blocks = check_blocks(features.blocks, backbone.num_blocks)
            ranks = {"first": self.trainer.is_global_zero, "in_step": self.shard_model}
            kept = with_basis(backbone, features, blocks, self.images.sources, self.basis, **ranks)
            chosen = [(backbone, kept)]
            if self.untrained:
                chosen.append((backbone.untrained(), replace(features, store_basis=None)))
            for model, own in chosen:
                planned: set[str] = set()
                for source in self.images.sources.values():
                    self._jobs.append(self._plan(make_stream(model, own, blocks), source, planned))
        return [
            prepared_loader(
                [(job.source, ids) for ids in job.batches],
                job.stream.extractor.size_rule,
                job.stream.num_workers,
            )
            for job in self._jobs
        ]

    def _plan(self, stream: Stream, source: ImageSource, planned: set[str]) -> Job:
        """What this rank computes of a data set; entries that an earlier data set has planned are left to it."""
        bank, settings = stream.bank, stream.settings
        assert isinstance(bank, StoredBank)
        conditions = conditions_for(source, settings)
        own = bank.plan(source, None, conditions)
        missing = {i: canvas for i, canvas in own.items() if bank.key(i) not in planned}
        # Ranks look at different moments, and must divide the same list.
        missing = self.trainer.strategy.broadcast(missing)
        planned |= {bank.key(image_id) for image_id in missing}
        batches = equal_size_batches(missing, settings.batch_size)
        divided, rank = shares(batches, missing, self.trainer.world_size), self.trainer.global_rank
        share, counts = in_step(divided, rank) if self.shard_model else (divided[rank], list(map(len, divided[rank])))
        return Job(stream, source, conditions, len(missing), share, counts)

    def _mesh(self) -> Any:
        """The ranks of this node.

        Raises:
            InputError: There is a single one.
        """
        ranks = self.trainer.world_size // self.trainer.num_nodes
        if ranks < 2:
            remedy = "a single rank has nothing to divide, use --trainer.devices and --trainer.strategy ddp"
            raise InputError("shard_model", True, remedy)
        shape, names = (self.trainer.num_nodes, ranks), ("node", "rank")
        return init_device_mesh(self._device_of_rank.type, shape, mesh_dim_names=names)["rank"]


class _LastWrite(L.Callback):
    """Leaves nothing half-written where a run fails; its first error is the one to see."""

    def __init__(self, behind: WriteBehind) -> None:
        self.behind = behind

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Waits for the last batch."""
        with suppress(Exception):
            self.behind.close()


def _outcome(job: Job) -> Extracted:
    bank = job.bank
    bank.store.refresh()
    missing = sum(image_id not in bank for image_id in bank.planned)
    name = job.stream.extractor.backbone.name
    counts = len(bank), max(job.planned - missing, 0), missing
    return Extracted(name, job.source.name, bank.store.folder, *counts, job.stream.settings.store_basis)
