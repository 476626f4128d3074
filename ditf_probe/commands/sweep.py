"""`ditf-probe sweep`: one configuration with many overrides, and one table of what came of it."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from ditf_probe.errors import InputError


def add(verbs: Any) -> None:
    """Declares the verb."""
    parser = verbs.add_parser("sweep", help="train and compare a configuration with every combination of overrides")
    parser.add_argument("--config", action="append", required=True, help="as for train.py; may be repeated")
    parser.add_argument(
        "--over", action="append", required=True, metavar="KEY=VALUE,VALUE", help="what varies; may be repeated"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="what no run varies; may be repeated"
    )
    parser.add_argument("--zip", action="store_true", help="pair the values of all keys instead of combining them")
    parser.add_argument("--verb", default="fit,test", help="steps of each run: fit, test or fit,test")
    parser.add_argument("--name", required=True, help="name of the sweep; the same name goes on with it")
    parser.add_argument("--root", default="runs/sweeps", help="folder of all sweeps")
    parser.add_argument(
        "--fork", action="store_true", help="start steps as forks of this process, which saves their imports"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and where they stand")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from ditf_probe.sweeping.grid import grid
    from ditf_probe.sweeping.runs import Sweep

    if Path(options.name).name != options.name or options.name.startswith("."):
        raise InputError("--name", options.name, "use a plain name, and --root for its folder")
    runs = grid(options.over, options.zip)
    verbs = tuple(options.verb.split(","))
    sweep = Sweep(Path(options.root) / options.name, tuple(options.config), tuple(options.set), verbs)
    if options.dry_run:
        _list(sweep, runs)
        return
    from ditf_probe.sweeping.forks import Forks
    from ditf_probe.sweeping.runs import in_process_of_its_own
    from ditf_probe.sweeping.whole import run_sweep

    failed = run_sweep(sweep, runs, Forks() if options.fork else in_process_of_its_own)
    if failed:
        print(f"{failed} of {len(runs)} runs failed, see {sweep.folder / 'results.csv'}", file=sys.stderr)
        raise SystemExit(1)


def _list(sweep: Any, runs: list[dict[str, str]]) -> None:
    from ditf_probe.sweeping.grid import run_name
    from ditf_probe.sweeping.runs import PROGRAMS, state

    sweep.check(runs)
    for number, overrides in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}] {run_name(overrides)}: {state(sweep, overrides)}")
        for verb in sweep.verbs:
            print(f"  $ python {PROGRAMS[verb]} {shlex.join(sweep.words(verb, overrides))}")
