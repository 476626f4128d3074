"""What is known of a run, in its folder: which steps it has done and how they ended."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ditf_probe.files import write_text
from ditf_probe.sweeping.grid import Overrides

RECORD, COMPARISON = "run.json", "comparison.json"


@dataclass(frozen=True)
class Step:
    """A verb that has ended.

    Attributes:
        verb: "fit" or "test".
        exit_code: Of its process; negative is the number of a signal.
        error: What it said at its end, on one line; empty where it succeeded.
        seconds: How long it took.
    """

    verb: str
    exit_code: int
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Record:
    """A run and its steps.

    Attributes:
        name: Its folder.
        overrides: What sets it apart.
        steps: Steps that have ended, in order; a failed one is the last.
    """

    name: str
    overrides: Overrides
    steps: tuple[Step, ...] = ()

    @property
    def failure(self) -> Step | None:
        """The step that failed, if one has."""
        return next((step for step in self.steps if step.exit_code), None)

    def after(self, step: Step) -> "Record":
        """With one more step; what ended after an earlier run of it no longer holds."""
        verbs = [known.verb for known in self.steps]
        before = self.steps[: verbs.index(step.verb)] if step.verb in verbs else self.steps
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


def steps_to_do(record: Record | None, run_dir: Path, verbs: Sequence[str]) -> list[str]:
    """The verbs that have not succeeded, from the first such on."""
    done = {step.verb for step in record.steps if step.exit_code == 0} if record is not None else set()
    if read_comparison(run_dir) is None:
        done.discard("test")
    missing = [number for number, verb in enumerate(verbs) if verb not in done]
    return list(verbs[missing[0] :]) if missing else []


def probe_folders(folder: Path) -> list[Path]:
    """Folders of all probes in a folder, itself among them, by name and numbers in it as numbers: `seed2`, `seed10`."""
    return sorted((path.parent for path in folder.rglob("probe.safetensors")), key=_words_and_numbers)


def _words_and_numbers(path: Path) -> list[list[str | int]]:
    parts = (re.split(r"(\d+)", part) for part in path.parts)
    return [[int(piece) if place % 2 else piece for place, piece in enumerate(part)] for part in parts]


def _rank(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return math.inf, value
