"""Runs of `train.py` and `eval.py` inside this process, each announced as the command that it is."""

from pathlib import Path

from ditf_probe.configs_folder import CONFIGS


def run_script(script: str, config: str, run_dir: Path, *words: str) -> None:
    """Runs a verb of `train.py` or `eval.py`, after saying so.

    Args:
        script: Program and verb, such as "eval.py test".
        config: Name of a run file in `configs/`, without its ending.
        run_dir: Folder of everything the run writes.
        *words: Further words of the command line.
    """
    from ditf_probe.cli import evaluate, train

    program, verb = script.split()
    args = [verb, "--config", str(CONFIGS / f"{config}.yaml"), "--run_dir", str(run_dir), *words]
    print(f"$ python {program} {' '.join(args)}", flush=True)
    (train if program == "train.py" else evaluate)(args)


def train_and_compare(config: str, run_dir: Path, *words: str) -> None:
    """Trains the probes of a configuration, then compares them with its other rows."""
    run_script("train.py fit", config, run_dir, *words)
    run_script("eval.py test", config, run_dir, *words, "--probe", *probe_folders(run_dir))


def probe_folders(run_dir: Path) -> list[str]:
    """Folders of the two probes of a run."""
    return [str(run_dir / "probes" / name) for name in ("linear", "aggregation")]
