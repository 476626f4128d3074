"""Finds the verbs and runs one. A verb is a file here with `add(verbs)`, which declares it.

Heavy modules load inside the verbs, so that `--help` is instant.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules

from ditf_probe.errors import InputError


def main(args: Sequence[str] | None = None) -> None:
    """Runs one verb; bad input ends in one line on standard error and exit code 2.

    Args:
        args: Command line after the program's name; None reads `sys.argv`.
    """
    options = _parser().parse_args(args)
    try:
        options.run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "ditf-probe",
        description="Dense correspondence with frozen diffusion transformers. See also ditf-train, ditf-eval.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    package = __name__.rpartition(".")[0]
    for module in iter_modules(import_module(package).__path__):
        if module.name != "main" and not module.name.startswith("_"):
            import_module(f"{package}.{module.name}").add(verbs)
    return parser
