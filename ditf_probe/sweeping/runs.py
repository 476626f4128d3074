"""Runs of a sweep, one process for each step, in folders of their own."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ditf_probe.backbones.fingerprint import file_sha256
from ditf_probe.errors import InputError
from ditf_probe.files import ensure_writable, is_checkpoint, write_text
from ditf_probe.sweeping.grid import RESERVED, Overrides, run_name
from ditf_probe.sweeping.records import (
    KEPT,
    Record,
    Step,
    in_order,
    is_done,
    kept_weights,
    read_record,
    steps_to_do,
    weights_in,
)

PROGRAMS = {"fit": "train.py", "test": "eval.py"}
Launch = Callable[[list[str], Path], int]
"""From the words of `train.py` or `eval.py`, verb first, and a log file to an exit code."""

_NOTHING_KEPT = "training kept no weights in its folder: let validation run in it (trainer.check_val_every_n_epoch)"


@dataclass(frozen=True)
class Sweep:
    """What all runs of a sweep share.

    Attributes:
        folder: Of everything it writes.
        configs: Configuration files, as for `train.py`.
        settings: `KEY=VALUE` that every run has beside its overrides.
        verbs: Steps of each run, some of "fit" and "test" in this order.

    Raises:
        InputError: Another verb or order, a configuration that is not there, or a setting that each run has of its own.
    """

    folder: Path
    configs: tuple[str, ...]
    settings: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ("fit", "test")

    def __post_init__(self) -> None:
        if not self.verbs or list(self.verbs) != [verb for verb in PROGRAMS if verb in self.verbs]:
            raise InputError("--verb", ",".join(self.verbs), "use fit, test or fit,test")
        for config in self.configs:
            if not Path(config).is_file():
                raise InputError(
                    "--config", config, "no such file, name a configuration such as configs/quickstart.yaml"
                )
        for setting in self.settings:
            key, sign, _ = setting.partition("=")
            if not sign:
                raise InputError("--set", setting, "write KEY=VALUE")
            if key in RESERVED:
                raise InputError("--set", setting, f"the sweep itself sets {key}, leave it out")

    def run_dir(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / name

    def words(self, verb: str, overrides: Overrides) -> list[str]:
        """The command line of a step, verb first."""
        run_dir = self.run_dir(run_name(overrides))
        words = [verb, *(word for config in self.configs for word in ("--config", config))]
        words += [f"--{setting}" for setting in self.settings]
        words += [f"--{key}={value}" for key, value in overrides.items()]
        words += ["--run_dir", str(run_dir)]
        record = read_record(run_dir)
        if verb == "fit" and _goes_on(record, run_dir):
            words += ["--ckpt_path", "last"]
        kept = [Path(file).parent for file in kept_weights(record, run_dir)]
        probes = [str(run_dir / folder) for folder in kept if folder.parts[:1] == ("probes",)]
        return [*words, "--probe", *probes] if verb == "test" and probes else words

    def definition(self) -> dict[str, Any]:
        """What must stay for runs to belong together: settings, and the contents of configuration files."""
        files = {file: sha256 for config in self.configs for file, sha256 in files_of(Path(config)).items()}
        return {"configs": list(self.configs), "settings": list(self.settings), "files": files}

    def open(self) -> None:
        """Creates the folder, or makes sure that it is of this sweep.

        Raises:
            InputError: It cannot be written to, or is of another definition.
        """
        ensure_writable(self.folder, "--name")
        file, here = self.folder / "sweep.json", self.definition()
        if file.is_file():
            there = json.loads(file.read_text(encoding="utf-8"))
            differing = sorted(key for key in here if here[key] != there.get(key))
            if differing:
                remedy = f"its runs have other {' and '.join(differing)}, choose another name or remove the folder"
                raise InputError("--name", str(self.folder), remedy)
        else:
            write_text(file, json.dumps(here, indent=2) + "\n")

    def check(self, runs: Sequence[Overrides]) -> None:
        """Refuses runs whose folder another run has.

        Raises:
            InputError: There is one.
        """
        for overrides in runs:
            record = read_record(self.run_dir(run_name(overrides)))
            if record is not None and record.overrides != overrides:
                keys = ", ".join(record.overrides)
                raise InputError(
                    "--over", ", ".join(overrides), f"a run over {keys} has its name, choose another --name"
                )

    def records(self) -> list[Record]:
        """Every run of the folder that has ended or failed, by the values of its overrides.

        The comparison of a run stays what it is where its probes have been removed since.
        """
        folders = [path for path in (self.folder / "runs").glob("*") if path.is_dir()]
        found = [record for folder in folders if (record := read_record(folder)) is not None]
        return in_order(x for x in found if x.failure or self._has_ended(x))

    def _has_ended(self, record: Record) -> bool:
        ran = all(record.step(verb) for verb in self.verbs)
        return ran and is_done(self.verbs[-1], record, self.run_dir(record.name))


def perform(sweep: Sweep, overrides: Overrides, launch: Launch) -> Record:
    """Does what is missing of a run, up to the first step that fails; each step is recorded when it has ended.

    A training that has ended and whose weights are gone starts anew: it could not go on. One that keeps nothing fails.
    """
    name = run_name(overrides)
    run_dir = ensure_writable(sweep.run_dir(name), "--name")
    record = read_record(run_dir) or Record(name, overrides)
    record.write(run_dir)  # the folder is its own from now on
    for verb in steps_to_do(record, run_dir, sweep.verbs):
        if verb == "fit" and record.trained:
            for outdated in ("checkpoints", *KEPT):
                shutil.rmtree(run_dir / outdated, ignore_errors=True)
            record = Record(name, overrides)
            record.write(run_dir)
        record = record.after(_step(verb, sweep.words(verb, overrides), record, run_dir, launch))
        record.write(run_dir)
        if record.steps[-1].exit_code:
            break
    return record


def _step(verb: str, words: list[str], record: Record, run_dir: Path, launch: Launch) -> Step:
    """Runs a step of a run whose record so far is given."""
    log, start = run_dir / f"{verb}.log", time.monotonic()
    code = launch(words, log)
    error, weights = "" if code == 0 else reason(log, code), None
    if code == 0:
        weights = weights_in(run_dir) if verb == "fit" else kept_weights(record, run_dir)
        if verb == "fit" and not weights:
            code, error = 2, _NOTHING_KEPT
    return Step(verb, code, error, round(time.monotonic() - start, 1), weights)


def state(sweep: Sweep, overrides: Overrides) -> str:
    """Where a run stands, in words."""
    run_dir = sweep.run_dir(run_name(overrides))
    record = read_record(run_dir)
    missing = steps_to_do(record, run_dir, sweep.verbs)
    if not missing:
        return "finished"
    words = " and ".join(missing)
    if missing[0] == "fit" and _goes_on(record, run_dir):
        words += " from last.ckpt"
    failure = None if record is None else record.failure
    return words if failure is None else f"{words} (failed before: {failure.error})"


def in_process_of_its_own(words: list[str], log: Path) -> int:
    """Runs `train.py` or `eval.py` and waits; what it prints goes to the log."""
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, "-m", "ditf_probe.cli", *words]
        return subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode


def reason(log: Path, code: int) -> str:
    """Why a process ended: its error line, or the last line that it wrote."""
    if code < 0:
        signals = {known.value: known.name for known in signal.Signals}
        return f"killed by {signals.get(-code, f'signal {-code}')}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("error: ")]
    return (named or lines or ["it said nothing"])[-1].removeprefix("error: ")[:300]


def last_checkpoint(run_dir: Path) -> Path | None:
    """The last checkpoint of a training, where there is a whole one."""
    path = run_dir / "checkpoints" / "last.ckpt"
    return path if is_checkpoint(path) else None


def _goes_on(record: Record | None, run_dir: Path) -> bool:
    """Whether a training was stopped and can go on."""
    return (record is None or not record.trained) and last_checkpoint(run_dir) is not None


def files_of(config: Path) -> dict[str, str]:
    """SHA-256 of a configuration file and of those that it names, by their paths."""
    found: dict[str, str] = {}
    _hash_with_parts(config, found)
    return found


def _hash_with_parts(file: Path, found: dict[str, str]) -> None:
    if str(file) in found:
        return
    found[str(file)] = file_sha256(file)
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # the run says what is wrong with it
    for word in _words(tree):
        part = file.parent / word
        if word.endswith((".yaml", ".yml")) and part.is_file():
            _hash_with_parts(part, found)


def _words(tree: Any) -> list[str]:
    if isinstance(tree, str):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [word for part in parts for word in _words(part)]
