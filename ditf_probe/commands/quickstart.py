"""`ditf-probe quickstart`: the main job, without data or network."""

import argparse
from pathlib import Path
from typing import Any

from ditf_probe.commands._runs import train_and_compare


def add(verbs: Any) -> None:
    """Declares the verb."""
    parser = verbs.add_parser("quickstart", help="train two probes on drawn objects and compare every row")
    parser.add_argument("--run-dir", default="runs/quickstart", help="folder of everything the run writes")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    train_and_compare("quickstart", Path(options.run_dir))
