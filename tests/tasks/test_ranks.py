"""Two processes find what one finds: the same rows, the same scores, one set of files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from ditf_probe.comparison import summarise
from ditf_probe.comparison.predictions_files import read_predictions, write_predictions
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.metrics.predictions import COLUMNS
from ditf_probe.probes import LinearProbe, load_probe
from ditf_probe.tasks import CorrespondenceTask, ProbeTask
from ditf_probe.tasks.settings import BackboneFeatures

ROWS = ["raw", "adaln+debias", "same_position", "untrained"]


def linear(channels: int, blocks: Any) -> LinearProbe:
    return LinearProbe(channels, blocks, width=4)


def train_and_test(features: BackboneFeatures, pairs: PairDataModule, run_dir: Path, **options: Any) -> None:
    """Trains a probe for two epochs and compares it with a few rows; the first rank writes the predictions."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "enable_checkpointing": False, "use_distributed_sampler": False}
    torch.manual_seed(0)
    task = ProbeTask(features, {"linear": linear}, run_dir=str(run_dir))
    fit = L.Trainer(max_epochs=2, num_sanity_val_steps=0, **quiet, **options)
    fit.fit(task, pairs)
    test = CorrespondenceTask(features, ROWS, [str(run_dir / "probes" / "linear")], run_dir=str(run_dir))
    trainer = L.Trainer(**quiet, **options)
    trainer.test(test, pairs, verbose=False)
    scores = {row: float(metric.compute()["per_image"]["0.10"]) for row, metric in test.scores[0].pck.items()}
    rank = trainer.global_rank
    # Deciding what to do next from these must not make ranks differ.
    (run_dir / f"rank{rank}.json").write_text(json.dumps([fit.callback_metrics["val/pck"].item(), scores]))
    if trainer.is_global_zero:
        write_predictions(run_dir, test.result())


def _process(features: BackboneFeatures, pairs: PairDataModule, run_dir: Path) -> None:
    train_and_test(features, pairs, run_dir, strategy="ddp", devices=2)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_ranks_agree_with_one(
    features: BackboneFeatures,
    pairs: PairDataModule,
    tmp_path: Path,
    fresh: Callable[..., Any],
    on_two_ranks: Callable[..., None],
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    fresh(on_two_ranks, _process, features, pairs, tmp_path / "two")
    ranks = [json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    # The same probe in both, since batches of two ranks make other steps than those of one.
    probe, _ = load_probe(tmp_path / "two" / "probes" / "linear")
    assert isinstance(probe, LinearProbe)
    test = CorrespondenceTask(
        features, ROWS, [str(tmp_path / "two" / "probes" / "linear")], run_dir=str(tmp_path / "one")
    )
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.test(test, pairs, verbose=False)
    expected, found = test.result(), read_predictions(tmp_path / "two")
    assert [d.name for d in found.datasets] == ["synthetic", "warped"]
    for one, two in zip(expected.datasets, found.datasets, strict=True):
        assert [row.name for row in two.rows] == ["raw", "adaln+debias", "linear", "same_position", "untrained"]
        for a, b in zip(one.rows, two.rows, strict=True):
            exact = [name for name in COLUMNS if name not in ("x", "y", "similarity", "nearest")]
            for name in exact:
                np.testing.assert_array_equal(getattr(a.predictions, name), getattr(b.predictions, name))
            same = (a.predictions.x == b.predictions.x) & (a.predictions.y == b.predictions.y)
            assert same.mean() >= 0.95, (one.name, a.name)
    summary = summarise(found)
    for row in summary["datasets"]["synthetic"]["rows"]:
        assert row["pck"]["per_image"]["0.10"] == pytest.approx(ranks[0][1][row["name"]], abs=1e-3)
