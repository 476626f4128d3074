"""Types of command-line arguments, and those that measurements share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from ditf_probe.files import ensure_writable


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def positive_number(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def measuring_parser(name: str, text: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """A parser with what every measurement takes: repeats, threads, and the file for its figures."""
    made = argparse.ArgumentParser(
        f"python -m benchmarks {name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--repeats", type=positive, default=repeats, help=f"measured runs (default {repeats})")
    threads = torch.get_num_threads()
    made.add_argument("--threads", type=positive, default=threads, help="of torch (default: its own)")
    made.add_argument("--json", type=Path, help="also write the figures, settings and machine to this file")
    return made


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """Refuses a file that cannot be written before anything is measured, and sets the threads."""
    if options.json:
        ensure_writable(options.json.parent, "--json")
    torch.set_num_threads(options.threads)
    return options


def add_sizes(parser: argparse.ArgumentParser, sizes: Sequence[tuple[str, int, str]]) -> None:
    """Adds positive numbers: name, default, meaning."""
    for name, default, meaning in sizes:
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"{meaning} (default {default})")
