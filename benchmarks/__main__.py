"""Runs one benchmark by name."""

import sys
from importlib import import_module

from rich.console import Console

NAMES = ("matching", "model_card", "near_duplicates")


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in NAMES:
        Console(stderr="-h" not in arguments and "--help" not in arguments).print(
            f"usage: python -m benchmarks {{{','.join(NAMES)}}} [--help] ...", markup=False
        )
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    code: int = import_module(f"benchmarks.{arguments[0]}").main(arguments[1:])
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
