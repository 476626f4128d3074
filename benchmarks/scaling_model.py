"""What features and matching cost on paper: per image, per pair, and for whole data sets on 1, 8 and 64 GPUs.

Everything is computed from the configurations of the backbones, the sizes, and the assumptions that are printed first;
each is an argument. Nothing is loaded and nothing is measured, except with --check, which measures a few points on this
machine and compares others with what the model predicts from them. Bytes count in 10^9 (GB) and 10^12 (TB).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.arguments import positive, positive_number
from benchmarks.scaling.images import BACKBONES, image_cost
from benchmarks.scaling.machines import Machine, Workload
from benchmarks.scaling.measured import check
from benchmarks.scaling.report import check_table, report
from benchmarks.scaling.results import Settings, compute
from benchmarks.scaling.tables import option_of
from benchmarks.scaling.timing import Sizes
from ditf_probe.devices import DTYPES, resolve_device
from ditf_probe.errors import InputError
from ditf_probe.files import ensure_writable, write_text

BEGIN, END = "<!-- tables of the scaling model -->", "<!-- end of the tables -->"
WORKLOADS = [
    ("SPair-71k", "1800", "12234"),
    ("AP-10K", "10000", "36000"),
    ("10 million images", "10000000", "10000000"),
]


def workload(words: Sequence[str]) -> Workload:
    """From the words after `--workload`."""
    name, *counts = words
    if not all(count.isdecimal() for count in counts) or not int(counts[0]):
        raise InputError("--workload", " ".join(words), "give a name, the images and the pairs, as in: mine 1800 12234")
    return Workload(name, *map(int, counts))


def settings_of(options: argparse.Namespace) -> Settings:
    return Settings(
        ensembles=tuple(options.ensemble),
        gpus=tuple(options.gpus),
        dtype=DTYPES[options.dtype],
        image=tuple(options.image),
        keypoints=options.keypoints,
        works=tuple(workload(words) for words in options.workload or WORKLOADS),
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m benchmarks scaling_model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sides: dict[str, Any] = {"type": positive, "nargs": 2, "metavar": ("HEIGHT", "WIDTH")}
    made.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES, help="which (default all)")
    made.add_argument("--size", **sides, help="pixels of prepared images (default those of the presets)")
    made.add_argument("--ensemble", type=positive, nargs="+", default=[1, 8], help="noise draws (default 1 8)")
    made.add_argument("--gpus", type=positive, nargs="+", default=[1, 8, 64], help="how many (default 1 8 64)")
    made.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the store, for times (default bfloat16)")
    made.add_argument("--image", **sides, default=[375, 500], help="pixels of original images (default 375 500)")
    made.add_argument("--keypoints", type=positive, default=15, help="per pair (default 15)")
    made.add_argument(
        "--workload",
        nargs=3,
        action="append",
        metavar=("NAME", "IMAGES", "PAIRS"),
        help="in place of SPair-71k, AP-10K and 10 million images; may be repeated",
    )
    assumptions = made.add_argument_group("assumptions of machines")
    for name, value, unit, meaning in Machine().assumptions():
        text = f"{unit}: {meaning} (default {value:g})"
        assumptions.add_argument(option_of(name), type=positive_number, default=value, help=text)
    checks = made.add_argument_group("check")
    checks.add_argument("--check", action="store_true", help="measure on this machine, and compare with predictions")
    for field in fields(Sizes):
        text = f"{field.metadata['meaning']} (default {field.default})"
        checks.add_argument(option_of(f"check_{field.name}"), type=positive, default=field.default, help=text)
    checks.add_argument("--device", default="cpu", help="that computes, in bfloat16 on a GPU (default cpu)")
    checks.add_argument("--folder", type=Path, help="on the disk to measure (default: that of temporary files)")
    made.add_argument("--write", type=Path, help="Markdown file whose tables are replaced, docs/scaling.md")
    made.add_argument("--json", type=Path, help="also write the numbers to this file")
    return made


def write_tables(path: Path, tables: str) -> None:
    """Puts the tables between the marks of a Markdown file."""
    try:
        before, rest = path.read_text().split(BEGIN)
        after = rest.split(END)[1]
    except (OSError, ValueError, IndexError) as error:
        raise InputError("--write", str(path), f"give a text file with the lines {BEGIN} and {END}") from error
    write_text(path, f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    settings = settings_of(options)
    machine = Machine(**{field.name: getattr(options, field.name) for field in fields(Machine)})
    for argument, folder in (("--json", options.json and options.json.parent), ("--folder", options.folder)):
        if folder:
            ensure_writable(folder, argument)
    results: dict[str, Any] = {}
    if options.check:
        sizes = Sizes(**{field.name: getattr(options, f"check_{field.name}") for field in fields(Sizes)})
        results["check"] = check(sizes, machine, resolve_device(options.device), options.folder)
        print(check_table(results["check"]))
    else:
        costs = [image_cost(name, options.size and tuple(options.size)) for name in options.backbones]
        results |= compute(costs, machine, settings)
        tables = report(results, machine, settings)
        if options.write:
            write_tables(options.write, tables)
        else:
            print(tables)
    if options.json:
        given = {key: value for key, value in vars(options).items() if key not in ("json", "folder", "write")}
        given["workload"] = options.workload or WORKLOADS
        record = {"settings": given, "machine": measuring.machine(), "results": results}
        write_text(options.json, json.dumps(record, indent=2) + "\n")
