"""Every head through matching and training, on a small real backbone."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from ditf_probe.backbones.loading import load_backbone
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.data.warped import WarpedPhotos
from ditf_probe.metrics.predictions import COLUMNS
from ditf_probe.probes import (
    BottleneckProbe,
    ChannelGate,
    LayerAggregation,
    LinearProbe,
    LowRankAdapter,
    TimestepAggregation,
    describe_probe,
    load_probe,
    probe_cost,
    save_probe,
)
from ditf_probe.tasks import CorrespondenceTask, ProbeTask
from ditf_probe.tasks.records import RowResult
from ditf_probe.tasks.rows import Fusion
from ditf_probe.tasks.settings import BackboneFeatures

Make = Callable[..., L.Trainer]
Head = Callable[[int, list[int]], nn.Module]
STEPS = [50, 200, 400]
HEADS: dict[str, Head] = {
    "gate": ChannelGate,
    "bottleneck": BottleneckProbe,
    "low_rank": lambda channels, blocks: LowRankAdapter(channels, blocks, rank=4),
    "convolution": lambda channels, blocks: TimestepAggregation(channels, blocks, 3, "convolution", width=8),
    "attention": lambda channels, blocks: TimestepAggregation(channels, blocks, 3, "attention", width=8),
    "softmax": lambda channels, blocks: TimestepAggregation(channels, blocks, 3, "softmax"),
}
LEARNT: dict[str, Head] = {
    "linear": lambda channels, blocks: LinearProbe(channels, blocks, width=8),
    "aggregation": lambda channels, blocks: LayerAggregation(channels, blocks, width=8, layer_projection="bottleneck"),
    "hyperfeatures": lambda channels, blocks: LayerAggregation(
        channels, blocks, width=8, layer_projection="bottleneck", num_timesteps=3
    ),
}


def save_fresh(folder: Path, features: BackboneFeatures, heads: dict[str, Head], blocks: list[int]) -> list[str]:
    backbone = load_backbone(features.backbone, device="cpu")
    for name, head in heads.items():
        probe = head(backbone.common_channels(blocks), blocks)
        settings = asdict(replace(features, blocks=blocks))
        facts = describe_probe(probe, features=settings, backbone=backbone.settings(), training={})
        save_probe(folder / name, probe.state_dict(), facts)
    return [str(folder / name) for name in heads]


def rows_of(task: CorrespondenceTask) -> dict[str, RowResult]:
    return {row.name: row for row in task.result().datasets[0].rows}


@pytest.mark.parametrize("timestep", [STEPS, 200])
@pytest.mark.parametrize("recipe", [{}, {"modulation": "none"}, {"discard": "post_adaln", "massive_ratio": 2.0}])
def test_fresh_heads_predict_what_their_zero_shot_row_predicts(
    features: BackboneFeatures, trainer: Make, tmp_path: Path, timestep: Any, recipe: dict[str, Any]
) -> None:
    features = replace(features, timestep=timestep, **recipe)
    timesteps = 3 if timestep == STEPS else 1
    heads = HEADS | {
        mode: lambda channels, blocks, mode=mode: TimestepAggregation(channels, blocks, timesteps, mode, width=8)
        for mode in ("convolution", "attention", "softmax")
    }
    folders = save_fresh(tmp_path, features, heads, [1])
    row = {"none": "raw", "adaln": "adaln"}[features.modulation] if features.discard == "none" else "adaln+discard_post"
    pairs = PairDataModule(test={"synthetic": SyntheticPairs("test", 6, 32)}, calibration=SyntheticPairs("val", 3, 32))
    task = CorrespondenceTask(features, [row], folders, run_dir=str(tmp_path))
    trainer().test(task, pairs, verbose=False)
    rows = rows_of(task)
    zero_shot = rows[row].predictions
    for name in heads:
        for column in COLUMNS:
            found, expected = (getattr(x, column) for x in (rows[name].predictions, zero_shot))
            np.testing.assert_array_equal(found, expected, err_msg=f"{name}, {column}")


def test_fresh_heads_over_several_blocks_predict_what_the_fusion_of_these_blocks_predicts(
    features: BackboneFeatures, trainer: Make, tmp_path: Path
) -> None:
    features = replace(features, timestep=STEPS)
    folders = save_fresh(tmp_path, features, HEADS, [0, 1])
    other = {"second": replace(features, blocks=[0])}
    pairs = PairDataModule(test={"synthetic": SyntheticPairs("test", 6, 32)})
    fusions = {"both": Fusion(["second", "adaln"])}
    task = CorrespondenceTask(features, ["adaln"], folders, run_dir=str(tmp_path), others=other, fusions=fusions)
    trainer().test(task, pairs, verbose=False)
    rows = rows_of(task)
    for name in HEADS:
        for column in COLUMNS:
            found, expected = (getattr(rows[x].predictions, column) for x in (name, "both"))
            np.testing.assert_array_equal(found, expected, err_msg=f"{name}, {column}")


def test_all_heads_train_together_and_every_parameter_of_each_learns(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    features = replace(features, timestep=STEPS)
    gate = {"penalised": lambda channels, blocks: ChannelGate(channels, blocks, l1=0.5)}
    heads = {**HEADS, **LEARNT, **gate}
    torch.manual_seed(0)
    task = ProbeTask(features, heads, {name: [0, 1] for name in LEARNT}, rows=["adaln"], run_dir=str(tmp_path))
    grown: dict[str, float] = {}
    losses: dict[str, float] = {}

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, *arguments: Any) -> None:
            for name, parameter in task.probes.named_parameters():
                assert parameter.grad is not None, name
                grown[name] = max(grown.get(name, 0.0), float(parameter.grad.abs().max()))

        def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
            if not losses:
                losses.update({name: float(trainer.callback_metrics[f"train/loss/{name}"]) for name in heads})

    trainer(max_epochs=2, callbacks=[Watch()]).fit(task, pairs)
    assert all(value > 0 for value in grown.values()), grown
    # At the first step all gates are open: the penalty is its weight, and the loss of every fresh head the same.
    assert losses["penalised"] == pytest.approx(losses["gate"] + 0.5, abs=1e-5)
    assert {round(losses[name], 4) for name in HEADS} == {round(losses["gate"], 4)}
    for name in heads:
        probe, facts = load_probe(tmp_path / "probes" / name)
        assert facts.features["timestep"] == STEPS
        assert type(probe) is type(task.probes[name])
    folders = [str(tmp_path / "probes" / name) for name in heads]
    again = CorrespondenceTask(replace(features, timestep=200), ["adaln"], folders, run_dir=str(tmp_path))
    trainer().test(again, PairDataModule(test={"synthetic": pairs.test["synthetic"]}), verbose=False)
    rows = rows_of(again)
    assert list(rows) == ["adaln", *heads]
    assert rows["gate"].notes == ("block 1: 0 of 16 channels closed",)
    assert rows["adaln"].cost is None
    for name, row in rows.items():
        assert (row.cost is None) == (name == "adaln")
        if row.cost is not None:
            probe, facts = load_probe(tmp_path / "probes" / name)
            assert row.cost.grid == (8, 8)  # 32 pixels at a stride of 4
            assert row.cost.flops == probe_cost(probe, 16, row.cost.grid).flops
            assert row.cost.latency_ms > 0


def test_a_fused_row_costs_what_its_parts_cost(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    folders = save_fresh(tmp_path, features, {"gate": HEADS["gate"], "low_rank": HEADS["low_rank"]}, [1])
    fusions = {"fused": Fusion(["adaln", "gate", "low_rank"])}
    task = CorrespondenceTask(features, ["adaln"], folders, run_dir=str(tmp_path), fusions=fusions)
    trainer().test(task, PairDataModule(test={"synthetic": pairs.test["synthetic"]}), verbose=False)
    rows = rows_of(task)
    costs = [rows[name].cost for name in ("gate", "low_rank", "fused")]
    assert [cost and cost.flops for cost in costs] == [
        16 * 66,
        64 * (2 * 2 * 16 * 4 + 16),
        64 * (2 * 2 * 16 * 4 + 32) + 32,
    ]


def test_a_gate_that_is_compared_beside_calibrated_rows_says_which_massive_channels_it_closed(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    features = replace(features, massive_channels=[3, 7])

    def gate(channels: int, blocks: list[int]) -> ChannelGate:
        made = ChannelGate(channels, blocks)
        with torch.no_grad():
            made.weights["1"][[2, 7]] = -0.099  # scales of 0.01
        return made

    folders = save_fresh(tmp_path, features, {"gate": gate}, [1])
    task = CorrespondenceTask(features, ["adaln"], folders, run_dir=str(tmp_path))
    trainer().test(task, PairDataModule(test={"synthetic": pairs.test["synthetic"]}), verbose=False)
    assert rows_of(task)["gate"].notes == ("block 1: 2 of 16 channels closed, 1 of 2 massive",)


class Own(nn.Module):
    """A head of one's own that inherits nothing, and has something to say."""

    def __init__(self, channels: int, blocks: list[int]) -> None:
        super().__init__()
        self.channels, self.blocks = channels, list(blocks)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: dict[int, Tensor]) -> Tensor:
        return self.scale * features[self.blocks[0]]

    def remarks(self, massive: dict[int, list[int]]) -> list[str]:
        return [f"massive: {massive}"]


def test_a_head_of_ones_own_has_its_say(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    features = replace(features, massive_channels=[3])
    task = CorrespondenceTask(
        features, ["adaln"], save_fresh(tmp_path, features, {"own": Own}, [1]), run_dir=str(tmp_path)
    )
    trainer().test(task, PairDataModule(test={"synthetic": pairs.test["synthetic"]}), verbose=False)
    assert rows_of(task)["own"].notes == ("massive: {1: [3]}",)


def test_a_head_keeps_the_calibration_of_its_training(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    """Whatever the other rows are calibrated on, and where nothing is."""
    features = replace(features, discard="pre_norm", massive_ratio=1.5, position_debias="mean")
    trainer(max_epochs=1).fit(ProbeTask(features, {"linear": LEARNT["linear"]}, run_dir=str(tmp_path)), pairs)
    folder, tests = str(tmp_path / "probes" / "linear"), {"synthetic": pairs.test["synthetic"]}
    found = {}
    for name, calibration, row in (
        ("same", pairs.train, "adaln+discard_pre"),
        ("other", WarpedPhotos(num_pairs=3, image_size=32), "adaln+discard_pre"),
        ("none", None, "adaln"),
    ):
        task = CorrespondenceTask(features, [row], [folder], run_dir=str(tmp_path))
        trainer().test(task, PairDataModule(test=tests, calibration=calibration), verbose=False)
        found[name] = rows_of(task)
    assert found["same"]["adaln+discard_pre"].notes != found["other"]["adaln+discard_pre"].notes
    for name in ("other", "none"):
        assert found[name]["linear"].notes == found["same"]["linear"].notes == ("1 channel",)
        for column in COLUMNS:
            a, b = (getattr(found[x]["linear"].predictions, column) for x in ("same", name))
            np.testing.assert_array_equal(a, b, err_msg=f"{name}, {column}")


def test_a_configuration_names_heads_by_class_path(features: BackboneFeatures) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(L.LightningModule, "model")
    given = {
        "gate": {"class_path": "ditf_probe.probes.ChannelGate", "init_args": {"l1": 0.1}},
        "bottleneck": {"class_path": "ditf_probe.probes.BottleneckProbe"},
        "low_rank": {"class_path": "ditf_probe.probes.LowRankAdapter", "init_args": {"rank": 2}},
        "time": {"class_path": "ditf_probe.probes.TimestepAggregation", "init_args": {"num_timesteps": 3}},
        "layers": {"class_path": "ditf_probe.probes.LayerAggregation", "init_args": {"layer_projection": "bottleneck"}},
    }
    arguments = {"features": {"blocks": [1], "timestep": 1}, "probes": given}
    model = {"class_path": "ditf_probe.tasks.ProbeTask", "init_args": arguments}
    task = parser.instantiate(parser.parse_object({"model": model})).model
    built = {name: factory(16, [1, 2]) for name, factory in task.plan.factories.items()}
    assert [type(head).__name__ for head in built.values()] == [x["class_path"].split(".")[-1] for x in given.values()]
    assert (built["gate"].l1, built["low_rank"].rank, built["time"].num_timesteps) == (0.1, 2, 3)
