"""Seeds, averages, accumulation, precision, and trainings that go on bit by bit."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn

from ditf_probe.comparison import summarise
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.flipped import Flipped
from ditf_probe.data.loading_ahead import LoadedAhead
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.errors import InputError
from ditf_probe.losses import DenseContrast, KeypointContrast, Objective
from ditf_probe.probes import LayerAggregation, LinearProbe, load_probe, read_facts
from ditf_probe.tasks import CorrespondenceTask, ProbeTask
from ditf_probe.tasks.held_probes import held_probes
from ditf_probe.tasks.rows import probe_names
from ditf_probe.tasks.schedules import averaged
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.training_batches import TrainingBatch

Make = Callable[..., L.Trainer]


class Dropped(LinearProbe):
    """A linear probe that draws random numbers in training."""

    def forward(self, features: Any) -> Tensor:
        return nn.functional.dropout(super().forward(features), 0.2, self.training)


PROBES: dict[str, Any] = {
    "linear": lambda channels, blocks: Dropped(channels, blocks, width=8),
    "mix": lambda channels, blocks: LayerAggregation(channels, blocks, width=8),
}


def task_of(features: BackboneFeatures, run_dir: Path, **options: Any) -> ProbeTask:
    torch.manual_seed(0)
    given: dict[str, Any] = {"probes": PROBES, "probe_blocks": {"mix": [0, 1]}, "run_dir": str(run_dir)}
    return ProbeTask(features, **(given | options))


class Gradients(Callback):
    """The gradients of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        found = {name: p.grad for name, p in pl_module.named_parameters()}
        self.steps.append({name: grad.clone() for name, grad in found.items() if grad is not None})


def test_each_seed_trains_a_copy_of_each_probe(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    names = [f"{head}/seed{seed}" for head in PROBES for seed in (4, 0)]
    task = task_of(features, tmp_path, seeds=[4, 0])
    fit = trainer(max_epochs=2)
    fit.fit(task, pairs)
    assert list(task.probes) == names
    logged = set(fit.callback_metrics)
    assert {f"val/pck/{name}" for name in names} | {f"train/loss/{name}" for name in names} <= logged
    for name in names:
        assert read_facts(tmp_path / "probes" / name).training["seed"] == int(name[-1])
    # Copies start differently, whatever the generator of the process was, and equal seeds equally.
    starts = {}
    for attempt in range(2):
        torch.manual_seed(attempt)
        built = {
            name: task.plan.build(name, task.backbone, replace(features, blocks=[0, 1])).state_dict() for name in names
        }
        starts[attempt] = built
        assert not torch.equal(*(built[f"mix/seed{seed}"]["projections.0.weight"] for seed in (4, 0)))
    for name in names:
        assert all(torch.equal(value, starts[1][name][key]) for key, value in starts[0][name].items())


def test_copies_are_compared_as_one_row(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    trainer(max_epochs=2).fit(task_of(features, tmp_path, seeds=[0, 1, 2]), pairs)
    folders = [str(tmp_path / "probes" / name) for name in PROBES]
    task = CorrespondenceTask(features, ["adaln"], folders, run_dir=str(tmp_path))
    trainer().test(task, pairs, verbose=False)
    for dataset in summarise(task.result())["datasets"].values():
        rows = {row["name"]: row["pck"]["per_point"]["0.10"] for row in dataset["rows"]}
        assert list(rows) == ["adaln", *(f"{head}/seed{seed}" for head in PROBES for seed in range(3))]
        for head, entry in zip(PROBES, dataset["seeds"], strict=True):
            scores = [rows[f"{head}/seed{seed}"] for seed in range(3)]
            assert entry["name"] == head
            assert entry["pck"]["per_point"]["0.10"] == pytest.approx(statistics.mean(scores), abs=1e-3)
            assert entry["pck_std"]["per_point"]["0.10"] == pytest.approx(statistics.stdev(scores), abs=1e-3)


def test_copies_that_were_not_trained_alike_are_refused(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    """Left from another training, they would have a part in the mean over seeds; those that were added have it."""
    mix: dict[str, Any] = {"probes": {"mix": PROBES["mix"]}}
    for seeds in ([0, 1], [2]):
        trainer(max_epochs=1).fit(task_of(features, tmp_path, seeds=seeds, **mix), pairs)
    folder = tmp_path / "probes" / "mix"
    names = [f"mix/seed{seed}" for seed in range(3)]
    assert [probe.name for probe in held_probes(probe_names([str(folder)]), features)] == names
    trainer(max_epochs=1).fit(task_of(features, tmp_path, seeds=[1], learning_rate=0.5, **mix), pairs)
    with pytest.raises(InputError, match=r"'mix/seed1': it was not trained like mix/seed0 \(learning_rate"):
        held_probes(probe_names([str(folder)]), features)
    assert held_probes(probe_names([str(folder / "seed1")]), features)


def test_copies_train_as_if_alone(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    mix = {"mix": PROBES["mix"]}
    found = []
    for seeds in ([1], [3, 1]):
        task = task_of(features, tmp_path, probes=mix, seeds=seeds)
        trainer(max_epochs=2).fit(task, pairs)
        found.append(task.probes["mix/seed1"].state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": []}, "`seeds` is"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"seeds": [-1]}, "from 0 on"),
        ({"seeds": [0, 1], "init_from": {"mix": "x"}}, "leave out init_from"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"crop": 0.0}, "crop"),
        ({"crop": 1.5}, "crop"),
        ({"batches_ahead": -1}, "batches_ahead"),
    ],
)
def test_options_that_cannot_work_are_named(
    features: BackboneFeatures, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        task_of(features, tmp_path, **options)


def test_crops_need_features_without_positions(features: BackboneFeatures, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`crop` is 0.5.*position_debias \(mean\)"):
        task_of(replace(features, position_debias="mean"), tmp_path, crop=0.5)


def test_the_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    mean = averaged(model, 0.3)
    values, expected = [1.0, 2.0, -3.0, 5.0, 0.5], 0.0
    for number, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
        mean.update_parameters(model)
        decay = min(0.3, (1 + number) / (10 + number))
        expected = value if number == 0 else decay * expected + (1 - decay) * value
        assert float(mean.module.weight) == pytest.approx(expected)
    assert not any(p.requires_grad for p in mean.parameters())


def test_validation_and_kept_probes_use_the_average(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    """Against an average that is kept by hand over the steps."""
    mine: dict[str, Tensor] = {}
    steps = 0

    class ByHand(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *arguments: Any) -> None:
            nonlocal steps
            decay = min(0.9, (1 + steps) / (10 + steps)) if steps else 0.0
            for name, value in pl_module.probes.state_dict().items():
                mine[name] = value.clone() if not steps else decay * mine[name] + (1 - decay) * value
            steps += 1

    task = task_of(features, tmp_path, ema_decay=0.9, learning_rate=3e-2)
    fit = trainer(max_epochs=3, callbacks=[ByHand()], check_val_every_n_epoch=3)
    fit.fit(task, pairs)
    assert steps == 9
    assert task.averages is not None
    for name, value in task.averages.module.state_dict().items():
        torch.testing.assert_close(value, mine[name], atol=1e-6, rtol=1e-5)
        assert not torch.allclose(value, task.probes.state_dict()[name], atol=1e-4)
    for name in PROBES:
        kept, facts = load_probe(tmp_path / "probes" / name)
        assert facts.training["ema_decay"] == 0.9
        for key, value in kept.state_dict().items():
            torch.testing.assert_close(value, mine[f"{name}.{key}"], atol=1e-6, rtol=1e-5)
    # What the table says of the kept probe is what validation said.
    assert pairs.val is not None
    again = CorrespondenceTask(features, ["raw"], [str(tmp_path / "probes" / "mix")], run_dir=str(tmp_path))
    trainer().test(again, PairDataModule(test={"val": pairs.val}), verbose=False)
    score = float(again.scores[0].pck["mix"].compute()["per_point"]["0.10"])
    assert score == pytest.approx(float(fit.callback_metrics["val/pck/mix"]), abs=1e-4)


def test_accumulated_gradients_are_the_mean_over_batches(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    """Three batches of one step have the mean of the gradients that each has from the same weights."""
    one = Gradients()
    mix: dict[str, Any] = {"probes": {"mix": PROBES["mix"]}}
    trainer(max_epochs=1, accumulate_grad_batches=3, callbacks=[one]).fit(task_of(features, tmp_path, **mix), pairs)
    assert len(one.steps) == 1
    apart = Gradients()
    task = task_of(features, tmp_path, learning_rate=1e-30, weight_decay=0.0, **mix)
    trainer(max_epochs=1, callbacks=[apart]).fit(task, pairs)
    assert len(apart.steps) == 3
    for name, value in one.steps[0].items():
        torch.testing.assert_close(value, torch.stack([step[name] for step in apart.steps]).mean(0))
    facts = read_facts(tmp_path / "probes" / "mix").training
    assert (facts["step"], facts["batch_size"], facts["data_seed"]) == (3, 2, 0)


def test_bfloat16_trains_like_float32_and_is_validated_in_float32(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    losses: dict[str, list[float]] = {}
    kinds: set[tuple[torch.dtype, torch.dtype]] = set()

    class Spy(LinearProbe):
        def forward(self, features: Any) -> Tensor:
            found = super().forward(features)
            if self.training:
                kinds.add((features[1].dtype, found.dtype))
            else:
                assert (features[1].dtype, found.dtype) == (torch.float32, torch.float32)
            return found

    class Float32Only(KeypointContrast):
        def forward(self, sources: Sequence[Tensor], targets: Sequence[Tensor], pairs: Any, *more: Any) -> Tensor:
            assert {maps.dtype for maps in (*sources, *targets)} == {torch.float32}
            assert not torch.is_autocast_enabled("cpu")
            return super().forward(sources, targets, pairs, *more)

    for precision in ("32-true", "bf16-mixed"):
        kinds.clear()
        curve: list[float] = []

        class Curve(Callback):
            def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any, curve: list[float] = curve) -> None:
                curve.append(float(trainer.callback_metrics["train/loss"]))

        options: dict[str, Any] = {"probes": {"linear": lambda channels, blocks: Spy(channels, blocks, width=8)}}
        task = task_of(features, tmp_path / precision, probe_blocks=None, **options)
        task.losses["linear"] = Objective({"contrast": Float32Only()})
        trainer(max_epochs=4, precision=precision, callbacks=[Curve()]).fit(task, pairs)
        losses[precision] = curve
        half = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        assert kinds == {(half, half)}
        assert all(p.dtype == torch.float32 for p in task.parameters())
        assert read_facts(tmp_path / precision / "probes" / "linear").training["precision"] == precision
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.05)
    assert losses["bf16-mixed"] != losses["32-true"]


class OneWay(KeypointContrast):
    """Keypoints of the sources searched on the targets; nothing else of the sources counts, told so or not."""

    def __init__(self, lean: bool) -> None:
        super().__init__()
        self.dense = DenseContrast(symmetric=False)
        self.needs = self.dense.needs if lean else self.dense.needs | {"source_maps"}

    def forward(self, *arguments: Any) -> Tensor:
        return self.dense(*arguments)


@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_training_on_cells_of_sources_is_training_on_their_maps(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path, crop: float
) -> None:
    class Apart(LayerAggregation):
        pointwise = True

    weights, shapes = [], []
    for lean in (True, False):
        options: dict[str, Any] = {"probes": {"mix": lambda channels, blocks: Apart(channels, blocks, width=8)}}
        task = task_of(features, tmp_path, crop=crop, **options)
        task.losses["mix"] = Objective({"one_way": OneWay(lean)})
        seen: list[bool] = []

        class Look(Callback):
            def on_train_batch_start(
                self, trainer: L.Trainer, pl_module: Any, batch: TrainingBatch, *more: Any, seen: list[bool] = seen
            ) -> None:
                seen.append(batch.cells is not None and not batch.sources)

        trainer(max_epochs=2, callbacks=[Look()]).fit(task, pairs)
        weights.append(task.probes.state_dict())
        shapes.append(seen)
    assert shapes == [[True] * 6, [False] * 6]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=1e-4)


class Killed(Callback):
    """Ends a training after so many batches."""

    def __init__(self, after: int) -> None:
        self.after, self.seen = after, 0

    def on_train_batch_start(self, *arguments: Any) -> None:
        if self.seen == self.after:
            raise KeyError("killed")
        self.seen += 1


def test_a_killed_training_goes_on_bit_by_bit(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    """Killed after each kind of batch of an epoch of three, with everything that has a state of its own."""
    craft: dict[str, Any] = {"seeds": [0, 1], "ema_decay": 0.9, "crop": 0.6, "learning_rate": 1e-2}
    pairs.balanced = True
    whole = task_of(features, tmp_path / "whole", **craft)
    trainer(max_epochs=3, num_sanity_val_steps=0).fit(whole, pairs)
    for after in (1, 5, 6):
        folder = tmp_path / str(after)

        def training(*callbacks: Callback, folder: Path = folder) -> L.Trainer:
            keeper = ModelCheckpoint(folder / "kept", save_last=True, every_n_train_steps=1, save_top_k=1)
            options = {"enable_checkpointing": True, "num_sanity_val_steps": 0}
            return trainer(max_epochs=3, callbacks=[keeper, *callbacks], **options)

        with pytest.raises(KeyError, match="killed"):
            training(Killed(after)).fit(task_of(features, folder, **craft), pairs)
        task = task_of(features, folder, **craft)
        torch.manual_seed(99)
        rest = training()
        rest.fit(task, pairs, ckpt_path=folder / "kept" / "last.ckpt")
        assert rest.global_step == 9
        own, other = whole.state_dict(), task.state_dict()
        assert own.keys() == other.keys()
        assert [name for name in own if not torch.equal(own[name], other[name])] == [], f"killed after {after}"


def test_random_numbers_of_a_checkpoint_serve_one_training(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    seeds: list[int] = []

    class Look(Callback):
        def on_train_batch_start(self, *arguments: Any) -> None:
            seeds.append(torch.initial_seed())

    keeper, task = ModelCheckpoint(tmp_path / "kept", save_last=True), task_of(features, tmp_path)
    torch.manual_seed(5)
    trainer(max_epochs=1, callbacks=[keeper], enable_checkpointing=True).fit(task, pairs)
    task = task_of(features, tmp_path)
    torch.manual_seed(6)
    trainer(max_epochs=2, callbacks=[Look()]).fit(task, pairs, ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert set(seeds) == {5}
    seeds.clear()
    torch.manual_seed(7)
    trainer(max_epochs=1, callbacks=[Look()]).fit(task, pairs)
    assert set(seeds) == {7}


def test_early_stopping_on_the_mean_of_val_pck(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    stop = EarlyStopping(monitor="val/pck", mode="max", patience=2, min_delta=200.0)
    fit = trainer(max_epochs=50, callbacks=[stop])
    fit.fit(task_of(features, tmp_path), pairs)
    assert fit.current_epoch == 3
    assert stop.stopped_epoch == 2


def test_flipped_copies_are_computed_once_and_trained_on(
    features: BackboneFeatures, trainer: Make, tmp_path: Path
) -> None:
    dataset = SyntheticPairs("train", 4, 32)
    pairs = PairDataModule(train=Flipped(dataset, "target"), val=dataset, batch_size=4)
    kept = replace(features, store=str(tmp_path / "store"))
    trainer(max_epochs=2).fit(task_of(kept, tmp_path), pairs)
    only = replace(kept, store_only=True)
    trainer(max_epochs=1).fit(task_of(only, tmp_path), pairs)
    facts = read_facts(tmp_path / "probes" / "linear").training["train"]
    assert (facts["pairs"], facts["flip"], facts["dataset"]["pairs"]) == (8, "target", 4)


def test_the_data_module_serves_pairs_alone_after_a_training(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    trainer(max_epochs=1).fit(task_of(features, tmp_path), pairs)
    assert not isinstance(pairs.train_dataloader(), LoadedAhead)
