"""A training that was killed goes on from its last checkpoint: the command of the README, in processes of their own."""

import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ditf_probe.cli import train
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.probes import load_probe

STEPS, EPOCHS = 8, 3
SMALL = [
    "--model.init_args.features.image_size", "32",
    "--data.init_args.train.init_args.num_pairs", str(2 * STEPS),
    "--data.init_args.val.init_args.num_pairs", "4",
    "--data.init_args.batch_size", "2",
    "--trainer.max_epochs", str(EPOCHS),
    "--trainer.accelerator", "cpu",
    "--trainer.log_every_n_steps", "1",
]  # fmt: skip


def start(run_dir: Path, log: Path, *words: str) -> BaseProcess:
    """What `train.py` runs, in a process of its own."""
    config = ["--config", str(CONFIGS / "quickstart.yaml"), "--run_dir", str(run_dir)]
    process = multiprocessing.get_context("fork").Process(target=_train, args=(log, ["fit", *config, *SMALL, *words]))
    process.start()
    return process


def _train(log: Path, words: list[str]) -> None:
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    train(words)


def curves(run_dir: Path, version: int) -> dict[str, dict[int, float]]:
    """Scalars of one start of the training, by tag and step; none before it has logged."""
    folder = run_dir / "tensorboard" / f"version_{version}"
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def steps_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["global_step"])


def train_and_kill(run_dir: Path, log: Path) -> int:
    """Kills a training that has gone on after a checkpoint; returns the steps in the checkpoint."""
    last = run_dir / "checkpoints" / "last.ckpt"
    process = start(run_dir, log)
    try:
        while not (last.is_file() and max(curves(run_dir, 0)["train/loss"]) >= steps_of(last)):
            assert process.is_alive(), f"ended before it was killed:\n{log.read_text()}"
            time.sleep(0.05)
    finally:
        process.kill()
        process.join()
    return steps_of(last)


def go_on(run_dir: Path, log: Path) -> int | None:
    """Trains from the last checkpoint; returns how that ended."""
    process = start(run_dir, log, "--ckpt_path", "last")
    process.join(300)
    return process.exitcode


def test_killed_training_goes_on_from_its_last_checkpoint(tmp_path: Path, fresh: Callable[..., Any]) -> None:
    run_dir = tmp_path / "run"
    done = fresh(train_and_kill, run_dir, tmp_path / "log.txt")
    assert done in (STEPS, 2 * STEPS)
    assert fresh(go_on, run_dir, tmp_path / "rest.txt") == 0, (tmp_path / "rest.txt").read_text()

    first, second = curves(run_dir, 0), curves(run_dir, 1)
    assert list(second["train/loss"]) == list(range(done, EPOCHS * STEPS))
    assert min(first["train/loss"]) == 0
    assert max(first["train/loss"]) >= done
    for tag in ("train/loss", "train/loss/linear", "train/loss/aggregation", "train/temperature/linear", "val/pck"):
        repeated = first[tag].keys() & second[tag].keys()
        assert [second[tag][step] for step in repeated] == pytest.approx([first[tag][step] for step in repeated])
        assert (first[tag] | second[tag]).keys() == (
            {STEPS * epoch - 1 for epoch in range(1, EPOCHS + 1)} if tag == "val/pck" else set(range(EPOCHS * STEPS))
        )

    checkpoints = sorted((run_dir / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == [f"epoch={EPOCHS - 1}-step={EPOCHS * STEPS}.ckpt", "last.ckpt"]
    assert [steps_of(path) for path in checkpoints] == [EPOCHS * STEPS] * 2
    for name in ("linear", "aggregation"):
        _, facts = load_probe(run_dir / "probes" / name)
        scores = first[f"val/pck/{name}"] | second[f"val/pck/{name}"]
        best = max(scores.values())
        assert facts.training["val_pck_0.10_per_point"] == pytest.approx(best)
        assert facts.training["step"] == min(step for step, score in scores.items() if score == best) + 1
    written = [path for path in run_dir.rglob("*") if path.is_file() and "tfevents" not in path.name]
    assert {path.suffix for path in written} == {".ckpt", ".safetensors", ".yaml"}, "a temporary file remains"
