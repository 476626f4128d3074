"""Overrides and scores of every run where TensorBoard shows hyperparameters, side by side."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ditf_probe.sweeping.records import Record
from ditf_probe.sweeping.results import Score

FOLDER = "tensorboard"


def write_hparams(folder: Path, record: Record, scores: Sequence[Score]) -> None:
    """Writes one session of the HParams dashboard, in place of an older one of the same run.

    Args:
        folder: Of the sweep; the session goes to `tensorboard/<run>`, so that this one logdir holds those of all runs.
        record: The run.
        scores: What it found; of these the primary ones are metrics.
    """
    from torch.utils.tensorboard import summary, writer  # slow to import

    metrics = {
        f"hparams/{score.dataset}/{score.metric}/{score.row}": score.score
        for score in scores
        if score.primary and score.score is not None
    }
    home = folder / FOLDER
    home.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder, prefix=".tensorboard."))
    try:
        events, make = writer.FileWriter(str(fresh)), cast(Any, summary)  # torch leaves them untyped
        for session in make.hparams({key: plain(value) for key, value in record.overrides.items()}, metrics):
            events.add_summary(session)
        for tag, value in metrics.items():
            events.add_summary(make.scalar(tag, value), global_step=0)
        events.close()
        fresh.chmod(0o755)
        shutil.rmtree(home / record.name, ignore_errors=True)
        os.replace(fresh, home / record.name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def plain(text: str) -> float | bool | str:
    """A value of the command line as a number or a truth value where it is one."""
    try:
        return float(text)  # YAML reads 1e-3 as text
    except ValueError:
        return text.lower() == "true" if text.lower() in ("true", "false") else text
