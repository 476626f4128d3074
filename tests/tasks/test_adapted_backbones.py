"""Heads that are trained with LoRA inside the backbone: they learn, they come back, and every table says so."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from ditf_probe import ProbedBackbone, load_backbone
from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.reloadable import ReloadableBackbone
from ditf_probe.comparison.csv_files import to_csv
from ditf_probe.comparison.predictions_files import read_predictions, write_predictions
from ditf_probe.comparison.summary import summarise
from ditf_probe.comparison.tables import tables
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.losses import KeypointContrast, SelfDistillation
from ditf_probe.probes import (
    ChannelGate,
    LinearProbe,
    LoraSettings,
    attach,
    describe_probe,
    load_probe,
    lora_of,
    save_probe,
)
from ditf_probe.tasks import CorrespondenceTask, ProbeTask
from ditf_probe.tasks.adapted_data import AdaptedData
from ditf_probe.tasks.held_probes import held_probes
from ditf_probe.tasks.image_rows import ImageRows
from ditf_probe.tasks.models import Models
from ditf_probe.tasks.planning import plan
from ditf_probe.tasks.records import RunResult
from ditf_probe.tasks.rows import ROWS, Fusion
from ditf_probe.tasks.settings import BackboneFeatures

pytest.importorskip("peft", reason="adapts the layers: pip install peft")
from ditf_probe.backbones.lora import fresh_weights

Make = Callable[..., L.Trainer]
LORA = LoraSettings(rank=2, alpha=4.0)


def gate(channels: int, blocks: Any) -> ChannelGate:
    return ChannelGate(channels, blocks)


def linear(channels: int, blocks: Any) -> LinearProbe:
    return LinearProbe(channels, blocks, width=8)


def task_of(features: BackboneFeatures, run_dir: Path, **options: Any) -> ProbeTask:
    given: dict[str, Any] = {"probes": {"gate": gate}, "lora": LORA, "seeds": [0], "run_dir": str(run_dir)}
    return ProbeTask(features, **(given | options))


def compared(
    trainer: L.Trainer, features: BackboneFeatures, pairs: PairDataModule, folders: list[Path], **options: Any
) -> RunResult:
    names = [str(folder) for folder in folders]
    task = CorrespondenceTask(features, ["adaln", "same_position", "rgb"], names, run_dir="unused", **options)
    trainer.test(task, pairs, verbose=False)
    return task.result()


def model_of(task: ProbeTask) -> Backbone:
    backbone = task.backbone
    assert isinstance(backbone, ReloadableBackbone)
    return backbone.model


def fresh(features: BackboneFeatures, folder: Path) -> Path:
    """A folder of a gate and adapters, none of which was trained."""
    backbone = load_backbone(features.backbone, device="cpu")
    head = gate(16, features.blocks)
    attach(head, fresh_weights(backbone, LORA, features.blocks, features.tap))
    facts: dict[str, Any] = {"features": vars(features), "backbone": backbone.settings(), "training": {}}
    save_probe(folder, head.state_dict(), describe_probe(head, **facts))
    return folder


def test_a_fresh_adapter_repeats_the_zero_shot_row(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    for dataset in compared(trainer(), features, pairs, [fresh(features, tmp_path / "lora")]).datasets:
        zero_shot, own = (row.predictions for row in (dataset.rows[0], dataset.rows[1]))
        for column in ("x", "y", "similarity"):
            assert np.array_equal(getattr(zero_shot, column), getattr(own, column), equal_nan=True)


def test_training_adapts_the_backbone_and_leaves_it_as_it_was(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    features, losses = replace(features, timestep=[50, 200]), []

    class Curve(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    task = task_of(features, tmp_path, probes={"gate": lambda c, b: ChannelGate(c, b, rate=1e-6)}, learning_rate=2e-2)
    fit = trainer(max_epochs=25, check_val_every_n_epoch=25, callbacks=[Curve()])
    fit.fit(task, pairs)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])  # by the adapters: the gate can hardly move
    optimised = {id(x) for group in task.trainer.optimizers[0].param_groups for x in group["params"]}
    own = lora_of(task.probes["gate/seed0"])
    assert own is not None
    assert {id(x) for x in own.parameters()} <= optimised
    frozen = model_of(task)
    assert optimised.isdisjoint(id(x) for x in frozen.parameters())
    assert all(x.grad is None for x in frozen.parameters())
    before = load_backbone(features.backbone, device="cpu").state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in frozen.state_dict().items())
    assert not any("transformer" in name for name in task.state_dict())

    # The score that it was kept for is that of a later test on the same pairs, and of the folder loaded in Python.
    tested = PairDataModule(test={"val": pairs.val}, calibration=pairs.calibration)
    folder = tmp_path / "probes" / "gate" / "seed0"
    head, facts = load_probe(folder)
    result = compared(trainer(), features, tested, [folder])
    row = result.datasets[0].rows[1]
    assert row.backbone == "LoRA rank 2 in block 1"
    assert row.parameters == sum(x.numel() for x in head.parameters()) == 16 + 4 * 2 * (16 + 16)
    score = summarise(result)["datasets"]["val"]["rows"][1]["pck"]["per_point"]["0.10"]
    assert score == pytest.approx(facts.training["val_pck_0.10_per_point"], abs=0.01)
    probed = ProbedBackbone.load(folder, device="cpu")
    pair = pairs.val[0]
    images = [pairs.val.image(side.image_id) for side in (pair.source, pair.target)]
    points = pair.source.keypoints[pair.source.visible]
    found, _ = probed.match(*images, points, image_ids=(pair.source.image_id, pair.target.image_id))
    first = row.predictions.pair_index == 0
    expected = torch.from_numpy(np.stack([row.predictions.x[first], row.predictions.y[first]], -1))
    torch.testing.assert_close(found, expected)
    assert not any(x.requires_grad for x in probed.parameters())
    probed.save(tmp_path / "saved")
    again = ProbedBackbone.load(tmp_path / "saved", device="cpu")
    assert torch.equal(again(images[0][None], ["a"]), probed(images[0][None], ["a"]))
    with pytest.raises(InputError, match="LoRA rank 2 in block 1"):
        probed.export_head(tmp_path / "head.pt2")


def test_each_probe_learns_as_if_alone(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    heads = {"gate": gate, "linear": linear}

    def trained(name: str, probes: dict[str, Any]) -> dict[str, torch.Tensor]:
        task = task_of(features, tmp_path / name, probes=probes, crop=0.6, ema_decay=0.9)
        trainer(max_epochs=2, num_sanity_val_steps=0).fit(task, pairs)
        return task.state_dict()

    together = trained("together", heads)
    for name, head in heads.items():
        alone = trained(name, {name: head})
        assert any(".lora.up.0" in key for key in alone)
        for key, weights in alone.items():
            if not key.endswith("n_averaged"):
                assert torch.equal(weights, together[key]), key
    up = together["probes.gate/seed0.lora.up.0"]
    assert up.abs().max() > 0
    assert not torch.equal(up, together["averages.module.gate/seed0.lora.up.0"])
    _, facts = load_probe(tmp_path / "together" / "probes" / "linear" / "seed0")
    assert facts.lora is not None
    assert facts.lora["blocks"] == [1]


def test_a_killed_training_goes_on(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    whole, part = (task_of(features, tmp_path / name, ema_decay=0.9) for name in ("whole", "part"))
    trainer(max_epochs=2).fit(whole, pairs)
    kept = trainer(max_epochs=2)

    class Keeper(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, task: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    kept.callbacks.append(Keeper())
    kept.fit(part, pairs)
    task = task_of(features, tmp_path / "rest", ema_decay=0.9)
    trainer(max_epochs=2).fit(task, pairs, ckpt_path=tmp_path / "half.ckpt")
    own, other = whole.state_dict(), task.state_dict()
    assert own.keys() == other.keys()
    assert [name for name in own if not torch.equal(own[name], other[name])] == []


def test_what_a_step_sees(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under bf16 the backbone keeps its dtype; zero-shot maps are those of the frozen backbone."""
    seen: list[Any] = []
    tapped, zero_shot = FeatureExtractor.tapped, AdaptedData.zero_shot

    def watched(self: FeatureExtractor, *arguments: Any) -> Any:
        found = tapped(self, *arguments)
        seen.append((torch.is_autocast_enabled("cpu"), found[1].hidden_states.dtype, torch.is_grad_enabled()))
        return found

    def compare(self: AdaptedData, batch: Any) -> Any:
        ends = zero_shot(self, batch)
        assert ends is not None
        for pair, own in zip(batch.pairs, ends[0], strict=True):
            image = extractor.prepare(pairs.train.image(pair.source.image_id))[None]
            with torch.autocast("cpu", enabled=False):
                expected = extractor(image, [pair.source.image_id])[1][0]
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
            assert not own.requires_grad
        compared.append(len(ends[0]))
        return ends

    compared: list[int] = []
    losses = {"contrast": KeypointContrast, "distil": SelfDistillation}
    task = task_of(features, tmp_path, losses=losses, learning_rate=5e-2)
    fit = trainer(max_epochs=2, precision="bf16-mixed", num_sanity_val_steps=0)
    extractor = FeatureExtractor(
        load_backbone(features.backbone, device="cpu"), blocks=[1], timestep=200, image_size=32
    )
    monkeypatch.setattr(FeatureExtractor, "tapped", watched)
    monkeypatch.setattr(AdaptedData, "zero_shot", compare)
    fit.fit(task, pairs)
    assert sum(compared) == 2 * 6
    assert {found[:2] for found in seen} == {(False, torch.float32)}


def test_every_table_says_which_rows_are_frozen(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    fused = {"fused": Fusion(["adaln", "lora"]), "plain": Fusion(["adaln", "rgb"])}
    logger = CSVLogger(tmp_path)
    fit = trainer(logger=logger)
    result = compared(fit, features, pairs, [fresh(features, tmp_path / "lora")], fusions=fused)
    words = "LoRA rank 2 in block 1"
    expected = {"adaln": "frozen", "fused": words, "plain": "frozen", "lora": words}
    expected |= {"same_position": "none", "rgb": "none"}
    assert {row.name: row.backbone for row in result.datasets[0].rows} == expected
    write_predictions(tmp_path, result)
    comparison = summarise(read_predictions(tmp_path))
    assert {row["name"]: row["backbone"] for row in comparison["datasets"]["synthetic"]["rows"]} == expected
    lines = csv.DictReader(io.StringIO(to_csv(comparison)))
    assert {line["row"]: line["backbone"] for line in lines} == expected
    console = Console(file=io.StringIO(), width=400)
    console.print(next(tables(comparison)))
    assert isinstance(console.file, io.StringIO)
    caption = f"backbones of all rows are frozen but for fused ({words}), lora ({words})"
    assert caption in console.file.getvalue()
    assert caption == logger.experiment.hparams["backbones"]
    assert comparison["settings"]["probes"]["lora"]["lora"]["rank"] == 2
    assert [model["backbone"].get("lora", {}).get("rank") for model in comparison["settings"]["models"]].count(2) == 1


def test_rows_of_single_images_have_their_adapters(features: BackboneFeatures, tmp_path: Path) -> None:
    folder = fresh(features, tmp_path / "lora")
    held = held_probes({"lora": folder}, features)
    weights = lora_of(held[0].module)
    assert weights is not None
    rows = ImageRows(plan(Models("cpu"), features, [ROWS["adaln"]], held))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = rows(images, ["a", "b"])
    assert torch.equal(found["adaln"], found["lora"])
    with torch.no_grad():
        weights.up[0].fill_(1.0)
    again = rows(images, ["a", "b"])
    assert torch.equal(found["adaln"], again["adaln"])
    assert not torch.allclose(again["adaln"], again["lora"])
    assert [set(part.matchers) for part in rows.by_backbone()] == [{"adaln"}, {"lora"}]


def test_a_copy_of_every_seed_says_so(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    for seed in (0, 1):
        fresh(features, tmp_path / "head" / f"seed{seed}")
    comparison = summarise(compared(trainer(), features, pairs, [tmp_path / "head"]))
    (entry,) = comparison["datasets"]["synthetic"]["seeds"]
    assert entry["backbone"] == "LoRA rank 2 in block 1"
    json.dumps(comparison)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"store": "anywhere"}, "features.store"),
        ({"discard": "post_adaln"}, "features.discard"),
        ({"position_debias": "svd"}, "features.position_debias"),
        ({"modulation": "standardise"}, "features.modulation"),
    ],
)
def test_features_that_cannot_follow_are_refused(
    features: BackboneFeatures, tmp_path: Path, change: dict[str, Any], argument: str
) -> None:
    with pytest.raises(InputError) as caught:
        task_of(replace(features, **change), tmp_path)
    assert caught.value.argument == argument
    task_of(replace(features, **change), tmp_path, lora=None)


def test_adapters_are_nowhere_ignored(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    folder = fresh(features, tmp_path / "lora")
    kept = replace(features, store=str(tmp_path / "store"))
    # A store serves the frozen rows; of an adapted one it gets nothing.
    compared(trainer(), kept, pairs, [folder])
    rows = {path.name for path in (tmp_path / "store").rglob("*") if path.is_dir()}
    compared(trainer(), kept, pairs, [])
    assert {path.name for path in (tmp_path / "store").rglob("*") if path.is_dir()} == rows
    with pytest.raises(InputError, match="store_only"):
        compared(trainer(), replace(kept, store_only=True), pairs, [folder])
    with pytest.raises(InputError, match="lora"):  # nor can a training of heads alone start from it
        trainer(max_epochs=1).fit(
            task_of(features, tmp_path / "b", lora=None, seeds=None, init_from={"gate": str(folder)}), pairs
        )


def test_the_option_in_a_configuration(weights: Path, tmp_path: Path) -> None:
    init: dict[str, Any] = {
        "features": {"backbone": str(weights), "blocks": [1], "timestep": 200, "image_size": 32},
        "probes": {"gate": {"class_path": "ditf_probe.probes.ChannelGate"}},
        "lora": {"rank": 2, "targets": ["to_q"]},
        "run_dir": str(tmp_path),
    }
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"model": {"class_path": "ditf_probe.tasks.ProbeTask", "init_args": init}})
    )
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(L.LightningModule, "model")
    parsed = parser.parse_args(["--config", str(tmp_path / "run.yaml"), "--model.init_args.lora.blocks", "2"])
    task = parser.instantiate(parsed).model
    assert isinstance(task, ProbeTask)
    assert task.plan.lora == LoraSettings(rank=2, blocks=2, targets=["to_q"])
    assert isinstance(task._data, AdaptedData)
