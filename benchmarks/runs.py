"""Runs of `eval.py` in processes of their own: how long they take, and what they leave in a feature store."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from benchmarks.measuring import run_apart
from ditf_probe.features.store import journal


class StageClock(Callback):
    """Writes, per rank, when the loop of a run began (models are loaded before that of predict) and ended.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.began = Path(folder), 0.0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = time.time()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = time.time()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"rank{trainer.global_rank}.json"
        file.write_text(json.dumps([self.began, time.time()]))


@dataclass(frozen=True)
class Timed:
    """What a run took.

    Attributes:
        whole: Seconds of the whole process.
        loop: From the first rank's beginning of the loop to the last one's end.
        peak_mb: As in `measuring.Finished`.
        output: What it printed.
    """

    whole: float
    loop: float
    peak_mb: float
    output: str


def evaluate(
    folder: Path,
    words: Sequence[str],
    more: Mapping[str, Any],
    ranks: int = 1,
    threads: int = 1,
    accelerator: str = "cpu",
) -> Timed:
    """Runs `eval.py` with a clock.

    Args:
        folder: New, for all that the run writes.
        words: Verb and options.
        more: Configuration beside that of the options.
        ranks: Processes, on gloo if there are several.
        threads: Of each.
        accelerator: Where they compute, as Lightning calls it.
    """
    clocks = folder / "clocks"
    clock = {"class_path": "benchmarks.runs.StageClock", "init_args": {"folder": str(clocks)}}
    trainer = {"accelerator": accelerator, "devices": ranks, "callbacks+": [clock]}
    trainer |= {} if ranks == 1 else {"strategy": "ddp"}
    config = folder / "benchmark.yaml"
    folder.mkdir(parents=True)
    config.write_text(json.dumps({"run_dir": str(folder), **more, "trainer": trainer}))  # JSON is YAML
    verb, *options = words
    command = ["eval.py", verb, *options, "--config", str(config)]
    done = run_apart("eval.py", " ".join(words), command, threads)
    times = [json.loads(file.read_text()) for file in clocks.iterdir()]
    assert len(times) == ranks, f"{len(times)} of {ranks} ranks wrote their times"
    loop = max(end for _, end in times) - min(begin for begin, _ in times)
    return Timed(done.seconds, loop, done.peak_mb, done.output)


def entries(root: Path) -> dict[str, tuple[int, int]]:
    """Of every store in a folder: how many entries it has, and how often one was written."""
    found = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        lines = journal.read(sorted(folder.glob(f"*{journal.SUFFIX}"))).values()
        keys = [(key, block) for line in lines for key in line.keys for block in line.blocks]
        found[folder.name] = (len(set(keys)), len(keys))
    return found


def shards(root: Path) -> int:
    """Number of files with features below a folder."""
    return sum(name.endswith(".safetensors") for _, _, files in os.walk(root) for name in files)
