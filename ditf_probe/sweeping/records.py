"""What is known of a run, in its folder: which steps it has done and how they ended."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ditf_probe.files import write_text
from ditf_probe.probes.folder import WEIGHTS
from ditf_probe.sweeping.grid import Overrides

RECORD, COMPARISON = "run.json", "comparison.json"
KEPT = ("probes", "heads")
"""Folders of a run in which trainings keep the best weights."""


@dataclass(frozen=True)
class Step:
    """A verb that has ended.

    Attributes:
        verb: "fit" or "test".
        exit_code: Of its process; negative is the number of a signal. 2 for a training that kept nothing.
        error: What it said at its end, on one line; empty where it succeeded.
        seconds: How long it took.
        weights: What a training has kept, or what a test has compared of it, as paths in the folder of the run. None
            where the process failed, and in records that do not tell.
    """

    verb: str
    exit_code: int
    error: str = ""
    seconds: float = 0.0
    weights: list[str] | None = None


@dataclass(frozen=True)
class Record:
    """A run and its steps.

    Attributes:
        name: Its folder.
        overrides: What sets it apart.
        steps: Steps that have ended, one per verb.
    """

    name: str
    overrides: Overrides
    steps: tuple[Step, ...] = ()

    @property
    def failure(self) -> Step | None:
        """The step that failed, if one has."""
        return next((step for step in self.steps if step.exit_code), None)

    @property
    def trained(self) -> bool:
        """Whether a training has come to its end, so that it cannot go on, whatever it has kept."""
        fit = self.step("fit")
        return fit is not None and (fit.exit_code == 0 or fit.weights is not None)

    def step(self, verb: str) -> Step | None:
        """The step of a verb, if it has ended."""
        return next((step for step in self.steps if step.verb == verb), None)

    def after(self, step: Step) -> "Record":
        """With one more step; a test of what an earlier training has kept no longer holds."""
        before = [] if step.verb == "fit" else [known for known in self.steps if known.verb != step.verb]
        return Record(self.name, self.overrides, (*before, step))

    def write(self, run_dir: Path) -> None:
        """Writes it into the folder of the run."""
        write_text(run_dir / RECORD, json.dumps(asdict(self), indent=2) + "\n")


def read_record(run_dir: Path) -> Record | None:
    """The record of a run folder; None where there is none that can be read."""
    try:
        found = json.loads((run_dir / RECORD).read_text(encoding="utf-8"))
        return Record(found["name"], dict(found["overrides"]), tuple(Step(**step) for step in found["steps"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def in_order(records: Iterable[Record]) -> list[Record]:
    """Runs by the values of their overrides, numbers as numbers: the same order whoever asks for which of them."""
    found = sorted(records, key=lambda record: record.name)
    keys = sorted({key for record in found for key in record.overrides})
    return sorted(found, key=lambda record: [_rank(record.overrides.get(key, "")) for key in keys])


def read_comparison(run_dir: Path) -> dict[str, Any] | None:
    """The comparison of a test; None where there is no whole one."""
    try:
        found: dict[str, Any] = json.loads((run_dir / COMPARISON).read_text(encoding="utf-8"))
        return found if found["datasets"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_done(verb: str, record: Record | None, run_dir: Path) -> bool:
    """Whether a step has succeeded, and its outcome still stands.

    A training is done while all that it has kept is there and whole. A test is done while its comparison is whole, and
    lacks nothing that a training has kept by now.
    """
    kept = kept_weights(record, run_dir)
    if verb == "fit":
        return bool(kept)
    return record is not None and _has_compared(record, kept) and read_comparison(run_dir) is not None


def steps_to_do(record: Record | None, run_dir: Path, verbs: Sequence[str]) -> list[str]:
    """The verbs that are not done, from the first such on."""
    missing = [number for number, verb in enumerate(verbs) if not is_done(verb, record, run_dir)]
    return list(verbs[missing[0] :]) if missing else []


def kept_weights(record: Record | None, run_dir: Path) -> list[str]:
    """What the training of a run has kept, as in `weights_in`; empty unless it has ended and all of that is whole."""
    fit = None if record is None else record.step("fit")
    if fit is None or fit.exit_code:
        return []
    kept = weights_in(run_dir) if fit.weights is None else fit.weights
    return kept if all(_is_whole(run_dir / file) for file in kept) else []


def weights_in(run_dir: Path) -> list[str]:
    """Trained weights in the folder of a run, as paths in it: probes, heads of a segmentation, a denoiser."""
    heads = [folder / WEIGHTS for kind in KEPT for folder in probe_folders(run_dir / kind)]
    return [file.relative_to(run_dir).as_posix() for file in (*heads, *sorted(run_dir.glob("*.safetensors")))]


def probe_folders(folder: Path) -> list[Path]:
    """Folders of all probes in a folder, itself among them, by name and numbers in it as numbers: `seed2`, `seed10`."""
    return sorted((path.parent for path in folder.rglob(WEIGHTS)), key=_words_and_numbers)


def _has_compared(record: Record, kept: Sequence[str]) -> bool:
    test = record.step("test")
    if test is None or test.exit_code:
        return False
    if test.weights is None:
        return not kept or test is record.steps[-1]  # the record does not tell: what was there before it
    return set(kept) <= set(test.weights)


def _is_whole(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt"):  # reads how long it should be, and looks
            return True
    except (SafetensorError, OSError):
        return False


def _words_and_numbers(path: Path) -> list[list[str | int]]:
    parts = (re.split(r"(\d+)", part) for part in path.parts)
    return [[int(piece) if place % 2 else piece for place, piece in enumerate(part)] for part in parts]


def _rank(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return math.inf, value
