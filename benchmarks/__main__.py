"""Runs one benchmark by name; bad input ends in one line on standard error and exit code 2."""

import sys
from importlib import import_module
from pathlib import Path

from ditf_probe.errors import InputError

NAMES = sorted(  # files with an entry point; the others are shared
    file.stem
    for file in Path(__file__).parent.glob("[!_]*.py")
    if "\ndef main(arguments: list[str])" in file.read_text(encoding="utf-8")
)
USAGE = f"usage: python -m benchmarks {{{','.join(NAMES)}}} [--help] ..."


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if not arguments or arguments[0] not in NAMES:
        print(USAGE, file=sys.stderr)
        return 2
    try:
        import_module(f"benchmarks.{arguments[0]}").main(arguments[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
