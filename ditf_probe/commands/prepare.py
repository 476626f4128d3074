"""`ditf-probe prepare`: archives that the user already has become a folder."""

import argparse
from pathlib import Path
from typing import Any


def add(verbs: Any) -> None:
    """Declares the verb."""
    parser = verbs.add_parser("prepare", help="extract archives of a data set that you have; downloads nothing")
    parser.add_argument("archives", nargs="+", metavar="ARCHIVE", type=Path, help="zip, tar, tar.gz, tar.bz2 or tar.xz")
    parser.add_argument("--root", required=True, type=Path, help="folder to extract into")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from ditf_probe.data.archives import extract
    from ditf_probe.data.catalogue import CATALOGUE, recognise

    for archive, result in zip(options.archives, extract(options.archives, options.root), strict=True):
        print(f"{archive}: files written: {result.written:,}, already there: {result.kept:,}")
    found = recognise(options.root)
    if found is None:
        print(f"next: ditf-probe verify DATASET {options.root}, where DATASET is one of {', '.join(CATALOGUE)}")
    else:
        print(f"next: ditf-probe verify {found[0]} {found[1]}")
