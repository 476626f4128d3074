"""How long it takes until a command or an import is there, in fresh processes that take turns.

Bounds: `import ditf_probe` under 1.5 times `import torch`; `ditf-probe --help` under 2 s; `train.py --help` under 1.3
times the import of `lightning.pytorch.cli`. Times are whole processes, the interpreter included; ratios are those of
single rounds. The first round, which may read files from the disk, does not count.
"""

import argparse
from typing import Any

from rich.table import Table

from benchmarks.arguments import checked, measuring_parser
from benchmarks.measuring import console, ratio, report, run_apart, spread, table, three, timed

COMMANDS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import ditf_probe": ["-c", "import ditf_probe"],
    "ditf-probe --help": ["-m", "ditf_probe", "--help"],
    "import lightning.pytorch.cli": ["-c", "import lightning.pytorch.cli"],
    "train.py --help": ["train.py", "--help"],
}
RATIOS = {
    "import ditf_probe over import torch": ("import ditf_probe", "import torch", 1.5),
    "train.py --help over import lightning.pytorch.cli": ("train.py --help", "import lightning.pytorch.cli", 1.3),
}
BOUND = ("ditf-probe --help", 2.0)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs every command in every round."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    peaks: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(options.repeats + 1):
        for name, words in COMMANDS.items():
            with console().status(f"{name} ..."):
                done = run_apart("command", name, words, options.threads)
            if repeat:
                taken[name].append(done.seconds)
                peaks[name].append(done.peak_mb)
    return summarise(taken, peaks)


def summarise(taken: dict[str, list[float]], peaks: dict[str, list[float]]) -> dict[str, Any]:
    """Spread of every command, and every bound with what was found."""
    times = {name: timed(runs) | {"peak_mb": spread(peaks[name])["median"]} for name, runs in taken.items()}
    bounds: dict[str, Any] = {
        name: {**ratio(taken[over], taken[under]), "bound": bound} for name, (over, under, bound) in RATIOS.items()
    }
    name, bound = BOUND
    bounds[name] = {**spread(taken[name]), "bound": bound}
    for found in bounds.values():
        found["holds"] = found["median"] < found["bound"]
    return {"times": times, "bounds": bounds}


def times_table(times: dict[str, Any], options: argparse.Namespace) -> Table:
    title = f"fresh processes, {options.repeats} runs each, {options.threads} threads"
    rows = [[name, *three(found), f"{found['peak_mb']:.0f}"] for name, found in times.items()]
    return table(title, ("", "min s", "median s", "max s", "peak MB"), rows)


def bounds_table(bounds: dict[str, Any]) -> Table:
    rows = [
        [name, *three(found, ".2f"), f"< {found['bound']}", "yes" if found["holds"] else "no"]
        for name, found in bounds.items()
    ]
    return table("bounds", ("", "min", "median", "max", "bound", "holds"), rows)


def main(arguments: list[str]) -> None:
    options = checked(measuring_parser("startup", __doc__, repeats=7).parse_args(arguments))
    results = measure(options)
    report([times_table(results["times"], options), bounds_table(results["bounds"])], options, results)
