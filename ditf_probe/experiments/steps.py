"""Steps of an experiment: each is done once, and a training that was killed goes on."""

import json
import shutil
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from ditf_probe.backbones.fingerprint import file_sha256
from ditf_probe.backbones.loading import PACKAGED
from ditf_probe.experiments.plans import Command
from ditf_probe.files import write_text
from ditf_probe.sweeping.records import COMPARISON, probe_folders
from ditf_probe.sweeping.runs import files_of, last_checkpoint

RECORD = "step-{verb}.json"
"""In the folder of a step: what it was asked for, and what it left once it had ended."""


def perform(command: Command, run: Callable[[Command], None]) -> None:
    """Does a step, or what is missing of it.

    A training or test whose outcome is there and whole, of the same command, configuration files, weights of the
    backbone and heads, is left alone. Of a training that was killed the last checkpoint is gone on from. What another
    command has left in the folder is removed, and so is what is no longer whole. Other commands always run.

    Args:
        command: One of a plan.
        run: Runs it.
    """
    program, verb = command[:2]
    if program == "ditf-probe":
        run(command)
        return
    run_dir = Path(command[command.index("--run_dir") + 1])
    record, asked = run_dir / RECORD.format(verb=verb), _definition(command)
    known, left = _read(record), _outcome(run_dir, verb)
    ended = known.get("left") is not None
    if known.get("asked") == asked and left and known.get("left") == left:
        print(f"done before: {verb} in {run_dir}, remove it to have it done again", flush=True)
        return
    if known.get("asked") != asked or ended:  # a training that has ended cannot go on: it would train nothing
        for outdated in ("checkpoints", "probes") if verb == "fit" else ():
            shutil.rmtree(run_dir / outdated, ignore_errors=True)
        _write(record, asked, None)
    elif verb == "fit" and last_checkpoint(run_dir) is not None:
        command = [*command, "--ckpt_path", "last"]
    run(command)
    _write(record, asked, _outcome(run_dir, verb))


def _definition(command: Command) -> dict[str, Any]:
    """What decides the outcome of a step, as plain JSON values."""
    configs = [Path(word) for option, word in pairwise(command) if option == "--config"]
    heads = command[command.index("--probe") + 1 :] if "--probe" in command else []
    return {
        "command": list(command),
        "files": {str(file): sha256 for config in configs for file, sha256 in files_of(config).items()},
        "backbone": file_sha256(PACKAGED["ditf-tiny"]),
        "heads": _hashes(file for head in map(Path, heads) for file in head.rglob("probe.safetensors")),
    }


def _outcome(run_dir: Path, verb: str) -> dict[str, str]:
    """Hashes of what a step leaves: its heads, or its comparison."""
    if verb == "fit":
        return _hashes(folder / "probe.safetensors" for folder in probe_folders(run_dir / "probes"))
    return _hashes(file for file in [run_dir / COMPARISON] if file.is_file())


def _hashes(files: Iterable[Path]) -> dict[str, str]:
    return {str(file): file_sha256(file) for file in sorted(files)}


def _read(record: Path) -> dict[str, Any]:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(record: Path, asked: dict[str, Any], left: dict[str, str] | None) -> None:
    write_text(record, json.dumps({"asked": asked, "left": left}, indent=2) + "\n")
