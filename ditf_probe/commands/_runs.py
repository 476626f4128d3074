"""Commands of this project run inside this process, each announced as the command that it is."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ditf_probe.configs_folder import CONFIGS


def run_command(words: Sequence[str]) -> None:
    """Runs a command, after saying so.

    Args:
        words: Program and arguments: `train.py fit ...`, `eval.py test ...` or `ditf-probe VERB ...`.
    """
    program, *args = words
    print(f"$ {'' if program == 'ditf-probe' else 'python '}{shlex.join(words)}", flush=True)
    if program == "ditf-probe":
        from ditf_probe.commands.main import main

        main(args)
        return
    from ditf_probe.cli import evaluate, train

    (train if program == "train.py" else evaluate)(args)


def run_script(script: str, config: str, run_dir: Path, *words: str) -> None:
    """Runs a verb of `train.py` or `eval.py`, after saying so.

    Args:
        script: Program and verb, such as "eval.py test".
        config: Name of a run file in `configs/`, without its ending.
        run_dir: Folder of everything the run writes.
        *words: Further words of the command line.
    """
    run_command([*script.split(), "--config", str(CONFIGS / f"{config}.yaml"), "--run_dir", str(run_dir), *words])


def train_and_compare(config: str, run_dir: Path, *words: str) -> None:
    """Trains the probes of a configuration, then compares them with its other rows."""
    run_script("train.py fit", config, run_dir, *words)
    run_script("eval.py test", config, run_dir, *words, "--probe", *probe_folders(run_dir))


def probe_folders(run_dir: Path) -> list[str]:
    """Folders of the two probes of a run."""
    return [str(run_dir / "probes" / name) for name in ("linear", "aggregation")]
