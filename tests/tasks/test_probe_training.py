import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from ditf_probe.backbones.reloadable import ReloadableBackbone
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.pairs import Pair
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.probes import LayerAggregation, LinearProbe, load_probe, read_facts
from ditf_probe.tasks import ProbeTask
from ditf_probe.tasks.settings import BackboneFeatures

Make = Callable[..., L.Trainer]
PROBES = {
    "linear": lambda channels, blocks: LinearProbe(channels, blocks, width=8),
    "mix": lambda channels, blocks: LayerAggregation(channels, blocks, width=8),
}


def task_of(features: BackboneFeatures, run_dir: Path, **options: Any) -> ProbeTask:
    torch.manual_seed(0)
    given: dict[str, Any] = {"probes": PROBES, "probe_blocks": {"mix": [0, 1]}, "run_dir": str(run_dir)}
    return ProbeTask(features, **(given | options))


class Curve(Callback):
    """Loss by global step, and every score of the validations."""

    def __init__(self) -> None:
        self.loss: dict[int, float] = {}
        self.rate: dict[int, float] = {}
        self.scores: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        self.loss[trainer.global_step] = float(trainer.callback_metrics["train/loss"])
        self.rate[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]

    def on_validation_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        if not trainer.sanity_checking:
            self.scores[trainer.global_step] = found


def test_training_writes_the_best_probes_and_learns(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    curve = Curve()
    task = task_of(replace(features, timestep=0), tmp_path, learning_rate=2e-2)
    trainer(max_epochs=25, check_val_every_n_epoch=5, callbacks=[curve]).fit(task, pairs)
    assert len(curve.loss) == 25 * 3
    losses = list(curve.loss.values())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    for name in PROBES:
        _, facts = load_probe(tmp_path / "probes" / name)
        best = max(scores[f"val/pck/{name}"] for scores in curve.scores.values())
        assert facts.training["val_pck_0.10_per_point"] == pytest.approx(best)
        assert facts.features["timestep"] == 0
    assert read_facts(tmp_path / "probes" / "mix").features["blocks"] == [0, 1]
    last = curve.scores[75]
    assert last["val/pck"] > curve.scores[15]["val/pck"] + 4
    assert last["val/pck"] == pytest.approx((last["val/pck/linear"] + last["val/pck/mix"]) / 2)


def test_a_sanity_check_over_a_few_pairs_keeps_nothing(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    task = task_of(features, tmp_path)

    class Look(Callback):
        def on_sanity_check_end(self, *arguments: Any) -> None:
            assert not task.best
            assert not (tmp_path / "probes").exists()
            raise KeyError("looked")

    with pytest.raises(KeyError, match="looked"):
        trainer(max_epochs=1, num_sanity_val_steps=1, callbacks=[Look()]).fit(task, pairs)


def test_a_training_without_a_validation_says_that_it_kept_nothing(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="no probe was kept"):
        trainer(max_epochs=1, check_val_every_n_epoch=2, num_sanity_val_steps=0).fit(task_of(features, tmp_path), pairs)
    assert not (tmp_path / "probes").exists()


def test_the_kept_probe_scores_what_training_said(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    trainer(max_epochs=2).fit(task_of(features, tmp_path), pairs)
    folder = tmp_path / "probes" / "mix"
    assert pairs.val is not None
    again = PairDataModule(test={"val": pairs.val})
    task = task_of(features, tmp_path, rows=["raw"], probe_folders=[str(folder)])
    trainer().test(task, again, verbose=False)
    score = task.scores[0].pck["mix"].compute()["per_point"]["0.10"]
    assert float(score) == pytest.approx(read_facts(folder).training["val_pck_0.10_per_point"], abs=1e-4)
    assert [row.name for row in task.result().datasets[0].rows] == ["raw", "mix"]


def test_backbone_is_frozen_and_in_no_checkpoint_and_every_probe_weight_learns(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    task = task_of(features, tmp_path)
    grown: dict[str, float] = {}

    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, *arguments: Any) -> None:
            for name, parameter in task.named_parameters():
                assert parameter.grad is not None, name
                grown[name] = max(grown.get(name, 0.0), float(parameter.grad.abs().max()))
            backbone = task.backbone
            assert isinstance(backbone, ReloadableBackbone)
            assert not backbone.training
            assert not backbone.model.training
            weights = list(backbone.model.parameters())
            assert weights
            assert all(p.grad is None and not p.requires_grad for p in weights)
            owned = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
            assert owned == {id(p) for p in task.parameters()}

    fit = trainer(max_epochs=1, callbacks=[Gradients()])
    fit.fit(task, pairs)
    # A constant added to all descriptors shifts every cosine a little, so biases learn as well.
    assert all(value > 0 for value in grown.values()), grown
    fit.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {name for name, _ in task.named_parameters()}
    assert {name.split(".")[0] for name in checkpoint["state_dict"]} == {"probes", "losses"}


def test_every_image_passes_the_backbone_once(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = FeatureExtractor.tapped

    def counted(self: FeatureExtractor, images: Any, ids: Any = None, conditions: Any = None) -> Any:
        seen.extend(ids)
        return original(self, images, ids, conditions)

    monkeypatch.setattr(FeatureExtractor, "tapped", counted)
    trainer(max_epochs=3).fit(task_of(features, tmp_path), pairs)
    assert pairs.train is not None
    assert pairs.val is not None
    assert sorted(seen) == sorted({*pairs.train.image_ids(), *pairs.val.image_ids()})


def test_probes_learn_as_if_alone(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    weights = {}
    for names in (("linear",), ("mix", "linear")):
        torch.manual_seed(3)
        alone = LinearProbe(16, [1], width=8)
        task = task_of(
            features, tmp_path / "-".join(names), probes={name: PROBES[name] for name in names}, probe_blocks=None
        )
        task.plan.factories["linear"] = lambda channels, blocks, alone=alone: alone
        trainer(max_epochs=2).fit(task, pairs)
        weights[names] = alone.projections["1"].weight.detach()
    torch.testing.assert_close(*weights.values(), atol=1e-6, rtol=1e-5)


def test_resumed_training_continues_steps_curve_and_schedule(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    whole, first, second = Curve(), Curve(), Curve()
    trainer(max_epochs=4, callbacks=[whole]).fit(task_of(features, tmp_path / "whole"), pairs)

    class Killed(Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
            if trainer.current_epoch == 2:
                raise KeyError("killed")

    keeper = ModelCheckpoint(tmp_path / "run" / "checkpoints", save_last=True, save_top_k=1)
    part = trainer(max_epochs=4, callbacks=[first, Killed(), keeper], enable_checkpointing=True)
    with pytest.raises(KeyError):
        part.fit(task_of(features, tmp_path / "run"), pairs)
    keeper = ModelCheckpoint(tmp_path / "run" / "checkpoints", save_last=True, save_top_k=1)
    rest = trainer(max_epochs=4, callbacks=[second, keeper], enable_checkpointing=True)
    task = task_of(features, tmp_path / "run")
    rest.fit(task, pairs, ckpt_path=tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert min(second.loss) == 2 * 3 + 1
    joined = first.loss | second.loss
    assert joined.keys() == whole.loss.keys()
    assert list(joined.values()) == pytest.approx(list(whole.loss.values()), abs=1e-4)
    assert first.rate | second.rate == pytest.approx(whole.rate)
    scores = first.scores | second.scores
    assert scores.keys() == whole.scores.keys()
    assert all(scores[step] == pytest.approx(whole.scores[step], abs=1e-3) for step in scores)
    for name in PROBES:
        a, b = (read_facts(tmp_path / run / "probes" / name).training for run in ("run", "whole"))
        assert a["step"] == b["step"]


def test_warm_start(features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path) -> None:
    trainer(max_epochs=1).fit(task_of(features, tmp_path), pairs)
    folder = tmp_path / "probes" / "linear"
    expected, _ = load_probe(folder)
    started: dict[str, torch.Tensor] = {}

    class Look(Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            started.update({k: v.clone() for k, v in pl_module.probes["linear"].state_dict().items()})

    task = task_of(features, tmp_path / "warm", init_from={"linear": str(folder)})
    trainer(max_epochs=1, callbacks=[Look()]).fit(task, pairs)
    assert all(torch.equal(started[name], value) for name, value in expected.state_dict().items())
    wide = {"linear": lambda channels, blocks: LinearProbe(channels, blocks, width=9)}
    task = task_of(features, tmp_path / "wide", probes=wide, probe_blocks=None, init_from={"linear": str(folder)})
    with pytest.raises(InputError, match=r"\(8,\) there and \(9,\) here"):
        trainer(max_epochs=1).fit(task, pairs)


def test_wrong_checkpoint_is_named(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    fit = trainer(max_epochs=1)
    fit.fit(task_of(features, tmp_path / "a"), pairs)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    other = task_of(features, tmp_path / "b", probe_blocks=None)
    with pytest.raises(InputError, match=r"ckpt_path.*tensors differ"):
        trainer(max_epochs=2).fit(other, pairs, ckpt_path=tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probes": {}}, "probes"),
        ({"probes": {"adaln": PROBES["linear"]}, "probe_blocks": None}, "adaln"),
        ({"probes": {"keys": PROBES["linear"]}, "probe_blocks": None}, "`probes` is 'keys': choose another name"),
        ({"probes": {"seed0": PROBES["linear"]}, "probe_blocks": None}, "that of a copy from a seed"),
        ({"probe_blocks": {"other": [1]}}, "other"),
        ({"init_from": {"other": "x"}}, "other"),
        ({"temperature": math.nan}, "temperature"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"weight_decay": math.nan}, "weight_decay"),
    ],
)
def test_options_that_cannot_work_are_named(
    features: BackboneFeatures, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        task_of(features, tmp_path, **options)


def test_blocks_out_of_range_and_missing_data_are_named(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="blocks 0 to 3"):
        trainer(max_epochs=1).fit(task_of(features, tmp_path, probe_blocks={"mix": [7]}), pairs)
    with pytest.raises(InputError, match="val"):
        trainer(max_epochs=1).fit(task_of(features, tmp_path), PairDataModule(train=pairs.train))
    with pytest.raises(InputError, match="max_epochs"):
        trainer(max_epochs=-1).fit(task_of(features, tmp_path), pairs)
    debias = replace(features, position_debias="mean")
    data = PairDataModule(train=pairs.train, val=pairs.val)
    data.calibration = None
    with pytest.raises(InputError, match="calibration"):
        trainer(max_epochs=1).fit(task_of(debias, tmp_path), data)


class Blind(SyntheticPairs):
    """Nothing is visible in both images."""

    def __getitem__(self, index: int) -> Pair:
        pair = super().__getitem__(index)
        return replace(pair, target=replace(pair.target, visible=torch.zeros_like(pair.target.visible)))


def test_pairs_without_a_visible_keypoint(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    fit = trainer(max_epochs=1)
    task = task_of(features, tmp_path)
    fit.fit(task, PairDataModule(train=Blind("train", 2, 32), val=pairs.val, batch_size=2))
    assert float(fit.callback_metrics["train/loss"]) == 0
    with pytest.raises(InputError, match="visible"):
        trainer(max_epochs=1).fit(
            task_of(features, tmp_path), PairDataModule(train=pairs.train, val=Blind("val", 2, 32))
        )


def test_one_file_gives_the_task_and_the_command_line_overrides_it(tmp_path: Path) -> None:
    (tmp_path / "backbone.yaml").write_text("backbone: ditf-tiny\nblocks: [2]\ntimestep: 100\ntap: mlp\n")
    linear = {"class_path": "ditf_probe.probes.LinearProbe", "init_args": {"width": 7}}
    arguments = {"features": "backbone.yaml", "probes": {"linear": linear, "mix": "ditf_probe.probes.LayerAggregation"}}
    model = {"class_path": "ditf_probe.tasks.ProbeTask", "init_args": arguments}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": model}))
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(L.LightningModule, "model")
    override = ["--model.init_args.features.timestep", "7", "--model.init_args.probes.linear.init_args.width", "5"]
    parsed = parser.parse_args(["--config", str(tmp_path / "run.yaml"), *override])
    task = parser.instantiate(parsed).model
    assert isinstance(task, ProbeTask)
    assert (task.features.timestep, task.features.blocks, task.features.tap) == (7, [2], "mlp")
    built = task.plan.factories["linear"](16, [1, 2])
    assert isinstance(built, LinearProbe)
    assert (built.channels, built.blocks, built.width) == (16, [1, 2], 5)
    assert isinstance(task.plan.factories["mix"](16, [1]), LayerAggregation)
    (tmp_path / "again.yaml").write_text(parser.dump(parsed))
    again = parser.instantiate(parser.parse_args(["--config", str(tmp_path / "again.yaml")])).model
    assert again.features == task.features
