"""Losses of a configuration at work in a training."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
import pytest

from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.errors import InputError
from ditf_probe.losses import (
    CycleConsistency,
    DenseContrast,
    GaussianCrossEntropy,
    KeypointContrast,
    OptimalTransport,
    SelfDistillation,
    SoftArgmaxRegression,
)
from ditf_probe.probes import BottleneckProbe, LinearProbe, read_facts
from ditf_probe.tasks import ProbeTask
from ditf_probe.tasks.objectives import objective
from ditf_probe.tasks.settings import BackboneFeatures

Make = Callable[..., L.Trainer]
LOSSES = {
    "contrast": KeypointContrast,
    "dense": DenseContrast,
    "gauss": GaussianCrossEntropy,
    "place": SoftArgmaxRegression,
    "transport": OptimalTransport,
    "cycle": CycleConsistency,
    "keep": SelfDistillation,
}


def test_every_loss_trains_every_kind_of_head_and_is_told(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    heads = {"linear": partial(LinearProbe, width=8), "bottleneck": BottleneckProbe}
    weights = {"cycle": 0.1, "keep": 0.1, "dense": 0.0}
    task = ProbeTask(features, heads, losses=dict(LOSSES), loss_weights=weights, run_dir=str(tmp_path))
    fit = trainer(max_epochs=1, num_sanity_val_steps=0)
    fit.fit(task, pairs)
    told = {name: float(value) for name, value in fit.callback_metrics.items()}
    for probe in heads:
        values = {name: told[f"train/loss_{name}/{probe}"] for name in LOSSES}
        assert all(math.isfinite(value) for value in values.values())
        total = sum(weights.get(name, 1.0) * value for name, value in values.items())
        assert told[f"train/loss/{probe}"] == pytest.approx(total, rel=1e-4)
        kept = read_facts(tmp_path / "probes" / probe).training["losses"]
        assert kept.keys() == LOSSES.keys()
        assert kept["dense"]["weight"] == 0.0
        assert kept["keep"]["class_path"].endswith("SelfDistillation")


def test_without_losses_it_is_the_contrast_of_keypoints(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    named = {"contrast": partial(KeypointContrast, 0.1, True, 2.0)}
    found = []
    for options in ({"temperature": 0.1, "margin": 2.0}, {"losses": named}):
        L.seed_everything(0, verbose=False)
        heads = {"linear": partial(LinearProbe, width=8)}
        task = ProbeTask(features, heads, run_dir=str(tmp_path), **options)
        fit = trainer(max_epochs=1, num_sanity_val_steps=0)
        fit.fit(task, pairs)
        found.append(float(fit.callback_metrics["train/loss"]))
        assert "train/temperature/linear" in fit.callback_metrics
    assert found[0] == found[1]


def test_what_cannot_be_is_refused_in_the_names_of_the_task() -> None:
    with pytest.raises(InputError, match=r"`losses` is \{\}"):
        objective({}, None, 0.07, 1.0)
    with pytest.raises(InputError, match="`loss_weights` is 'other': use the name of a term, contrast"):
        objective(None, {"other": 1.0}, 0.07, 1.0)
    with pytest.raises(InputError, match="`loss_weights`"):
        objective(None, {"contrast": -1.0}, 0.07, 1.0)
