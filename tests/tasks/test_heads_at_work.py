"""Every head through matching and training, on a small real backbone."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from torch import nn

from ditf_probe.backbones.loading import load_backbone
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.metrics.predictions import COLUMNS
from ditf_probe.probes import (
    BottleneckProbe,
    ChannelGate,
    LayerAggregation,
    LinearProbe,
    LowRankAdapter,
    TimestepAggregation,
    describe_probe,
    save_probe,
)
from ditf_probe.tasks import CorrespondenceTask
from ditf_probe.tasks.records import RowResult
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
