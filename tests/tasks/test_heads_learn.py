"""What every head owes: gradients in each of its parameters, and enough room to learn a few pairs by heart."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from ditf_probe.backbones.reloadable import ReloadableBackbone
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.probes import (
    BottleneckProbe,
    ChannelGate,
    LayerAggregation,
    LinearProbe,
    LowRankAdapter,
    TimestepAggregation,
)
from ditf_probe.tasks import ProbeTask
from ditf_probe.tasks.settings import BackboneFeatures

Make = Callable[..., L.Trainer]
HEADS: dict[str, tuple[Any, list[int]]] = {
    "linear": (lambda channels, blocks: LinearProbe(channels, blocks, width=64), [2]),
    "linear_of_two_blocks": (lambda channels, blocks: LinearProbe(channels, blocks, width=64), [1, 3]),
    "aggregation": (lambda channels, blocks: LayerAggregation(channels, blocks, width=64), [1, 3]),
    "aggregation_l2": (lambda channels, blocks: LayerAggregation(channels, blocks, 64, "l2"), [1, 3]),
    "bottleneck": (BottleneckProbe, [2]),
    "low_rank": (LowRankAdapter, [2]),
    "gate": (ChannelGate, [1, 2, 3, 4]),
    "timesteps": (lambda channels, blocks: TimestepAggregation(channels, blocks, 2, "convolution"), [2]),
    "timesteps_attention": (lambda channels, blocks: TimestepAggregation(channels, blocks, 2, "attention"), [2]),
}
"""Name to what builds a head and its blocks; a further head is one more line."""


GROUPS = [[name for name in HEADS if ("timesteps" in name) == several] for several in (False, True)]
"""Heads that can be trained together: of one timestep, and of two."""


def task_of(names: list[str], run_dir: Path, **options: Any) -> ProbeTask:
    torch.manual_seed(0)
    features = BackboneFeatures(blocks=[2], timestep=[50, 150] if names[0] in GROUPS[1] else 100, image_size=64)
    probes, blocks = ({name: HEADS[name][part] for name in names} for part in (0, 1))
    return ProbeTask(features, probes, blocks, run_dir=str(run_dir), weight_decay=0.0, **options)


# The gate has `test_gate_learns.py`. Its one number per channel, squared, weighs the channel in the cosine of any two
# tokens: no channel can count against a match, and where no weighing tells partners, as in these drawings, there is
# nothing that it could learn by heart with.
@pytest.mark.parametrize("name", [name for name in HEADS if name != "gate"])
def test_a_head_learns_eight_pairs_by_heart(name: str, trainer: Make, tmp_path: Path) -> None:
    """PCK@0.10 of 100 within 200 steps, of which the rest is spared once it is there."""
    pairs = SyntheticPairs("train", 8, 64)
    task = task_of([name], tmp_path, learning_rate=2e-2)
    done = EarlyStopping(monitor="val/pck", mode="max", stopping_threshold=99.99, patience=200)
    fit = trainer(max_steps=200, callbacks=[done], check_val_every_n_epoch=20, num_sanity_val_steps=0)
    fit.fit(task, PairDataModule(pairs, pairs, batch_size=8))
    assert task.best[name] == 100.0
    assert fit.global_step <= 200


@pytest.mark.parametrize("names", GROUPS, ids=["one_timestep", "two_timesteps"])
def test_gradients_reach_every_parameter_of_a_head_and_none_of_the_backbone(
    names: list[str], trainer: Make, tmp_path: Path
) -> None:
    reached: dict[str, float] = {}

    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
            for parameter_name, parameter in pl_module.named_parameters():
                found = 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
                reached[parameter_name] = max(reached.get(parameter_name, 0.0), found)
            backbone = pl_module.backbone
            assert isinstance(backbone, ReloadableBackbone)
            weights = list(backbone.model.parameters())
            assert weights
            assert all(weight.grad is None and not weight.requires_grad for weight in weights)
            owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
            assert owned == {id(p) for p in pl_module.parameters()}

    pairs = SyntheticPairs("train", 4, 64)
    fit = trainer(max_steps=3, limit_val_batches=0, callbacks=[Gradients()])
    fit.fit(task_of(names, tmp_path), PairDataModule(pairs, pairs, batch_size=4))
    parameters = Counter(place.split(".")[1] for place in reached)
    assert parameters.keys() == set(names)
    assert min(parameters.values()) > 2
    assert all(value > 0 for value in reached.values()), reached
