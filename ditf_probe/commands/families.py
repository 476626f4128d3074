"""`ditf-probe families`: every transformer class that can be a backbone."""

import argparse
from pathlib import Path
from typing import Any


def add(verbs: Any) -> None:
    """Declares the verb."""
    parser = verbs.add_parser("families", help="every transformer class that can be a backbone, as a table")
    parser.add_argument("--write", type=Path, help="Markdown file whose table is replaced, docs/backbones.md")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from ditf_probe.backbones.families_table import families_table, write_table

    if options.write is None:
        print(families_table())
    else:
        write_table(options.write)
