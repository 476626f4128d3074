"""`ditf-probe verify`: is a data set whole?"""

import argparse
import sys
from typing import Any


def add(verbs: Any) -> None:
    """Declares the verb."""
    parser = verbs.add_parser("verify", help="count files, pairs and keypoints of a data set and name what is damaged")
    parser.add_argument("dataset", help="name of a data set, such as ap10k, or the dotted path of a class")
    parser.add_argument("root", help="its folder")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="argument of the data set; may be repeated"
    )
    parser.add_argument("--decode", action="store_true", help="decode whole images, not their headers only")
    parser.add_argument("--keep-going", action="store_true", help="report the rest after something was wrong")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from ditf_probe.data.catalogue import dataset_builder
    from ditf_probe.data.verification import verify

    build = dataset_builder(options.dataset, options.root, options.set, keep_going=True)
    found = verify(build, decode=options.decode, keep_going=options.keep_going)
    for problem in found.problems:
        print(f"error: {problem}", file=sys.stderr)
    counts = ", ".join(f"{name}: {count:,}" for name, count in found.counts.items())
    print(f"{options.dataset} in {options.root}: {counts or 'nothing counted'}; problems: {len(found.problems):,}")
    if found.problems:
        if found.stopped and not options.keep_going:
            print(f"stopped after the {found.stopped}; --keep-going reports the rest", file=sys.stderr)
        raise SystemExit(2)
