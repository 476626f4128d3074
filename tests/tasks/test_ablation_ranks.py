"""An ablation over two processes has the table of one, bit by bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from ditf_probe.comparison import report
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.tasks import AblationTask
from ditf_probe.tasks.ablation import Ablation
from ditf_probe.tasks.settings import BackboneFeatures

SMALL = Ablation(modulations=["none", "whiten", "adaln"], counts=[4], seeds=[3], conditions=["t"])


def ablate(features: BackboneFeatures, pairs: PairDataModule, run_dir: Path, **options: Any) -> None:
    """Tests every row; the first rank writes what a test writes."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(**quiet, enable_checkpointing=False, use_distributed_sampler=False, **options)
    task = AblationTask(features, SMALL, run_dir=str(run_dir))
    trainer.test(task, pairs, verbose=False)
    result = task.result()
    if trainer.is_global_zero:
        report(result, run_dir)


def _process(features: BackboneFeatures, pairs: PairDataModule, run_dir: Path) -> None:
    ablate(features, pairs, run_dir, strategy="ddp", devices=2)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_ranks_have_the_table_of_one(
    features: BackboneFeatures, pairs: PairDataModule, tmp_path: Path, on_two_ranks: Callable[..., None]
) -> None:
    """From one store: an image that is computed in another batch is rounded otherwise."""
    features = replace(features, store=str(tmp_path / "store"))
    on_two_ranks(_process, features, pairs, tmp_path / "two")
    ablate(features, pairs, tmp_path / "one")
    one, two = ((tmp_path / name / "ablation.csv").read_text() for name in ("one", "two"))
    assert len(one.splitlines()) == 1 + 2 * len(SMALL.rows())
    assert one == two
    files = [(tmp_path / name / "comparison.csv").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
