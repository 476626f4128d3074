"""Training on two ranks: the pairs are divided, the weights and their averages stay the same."""

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.probes import LayerAggregation, LoraSettings
from ditf_probe.tasks import ProbeTask
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.training_batches import TrainingBatch

BACKBONES = {"frozen": None} | ({"lora": LoraSettings(rank=2)} if find_spec("peft") else {})


def mix(channels: int, blocks: Any) -> LayerAggregation:
    return LayerAggregation(channels, blocks, width=4)


class Seen(Callback):
    """The pairs of every batch, and where they were cropped."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.windows: list[str] = []

    def on_train_batch_start(self, trainer: L.Trainer, task: Any, batch: TrainingBatch, *more: Any) -> None:
        self.batches.append([pair.index for pair in batch.pairs])
        self.windows.append(str([view.window for view in batch.views]))


def _process(features: BackboneFeatures, pairs: PairDataModule, run_dir: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    for name, lora in BACKBONES.items():
        torch.manual_seed(rank)
        seen = Seen()
        options: dict[str, Any] = {"seeds": [0, 1], "ema_decay": 0.9, "crop": 0.5, "probe_blocks": {"mix": [0, 1]}}
        task = ProbeTask(features, {"mix": mix}, run_dir=str(run_dir / name), lora=lora, **options)
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        quiet |= {"enable_checkpointing": False, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
        fit = L.Trainer(max_epochs=2, accelerator="cpu", strategy="ddp", devices=2, callbacks=[seen], **quiet)
        fit.fit(task, pairs)
        weights = {name: value.flatten().tolist() for name, value in task.state_dict().items()}
        found = {"batches": seen.batches, "windows": seen.windows, "weights": weights}
        (run_dir / name / f"rank{rank}.json").write_text(json.dumps(found))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ranks_divide_the_pairs_and_share_the_weights(
    features: BackboneFeatures,
    pairs: PairDataModule,
    tmp_path: Path,
    fresh: Callable[..., Any],
    on_two_ranks: Callable[..., None],
) -> None:
    pairs.balanced = True
    fresh(on_two_ranks, _process, features, pairs, tmp_path)
    for name in BACKBONES:
        _check(tmp_path / name, adapted=name == "lora")


def _check(folder: Path, adapted: bool) -> None:
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["weights"] == second["weights"]
    adapters = [weights for name, weights in first["weights"].items() if ".lora.up." in name]
    assert bool(adapters) == adapted
    assert all(any(weights) for weights in adapters), "they have learnt"
    assert {name.split(".")[0] for name in first["weights"]} == {"probes", "losses", "averages"}
    assert len(first["batches"]) == len(second["batches"]) == 2 * 2
    for epoch in range(2):
        batches = [batch for rank in (first, second) for batch in rank["batches"][2 * epoch : 2 * epoch + 2]]
        assert sorted(index for batch in batches for index in batch) == list(range(6)), "six categories, a pair of each"
    assert set(first["windows"]).isdisjoint(second["windows"])
    assert (folder / "probes" / "mix" / "seed1" / "probe.safetensors").is_file()
