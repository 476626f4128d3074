"""`ditf-probe experiment`: the experiments of `docs/experiments.md`, one command each."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ditf_probe.commands._runs import run_command
from ditf_probe.experiments.plans import CURVES, PLANS, Options, aggregations, generalisations


def add(verbs: Any) -> None:
    """Declares the verb."""
    parser = verbs.add_parser("experiment", help="what heads add to training-free features, and where it comes from")
    parser.add_argument("name", choices=PLANS, help="see docs/experiments.md")
    parser.add_argument("--root", help="folder of PF-WILLOW, for transfer, and real photos in generalise")
    parser.add_argument("--run-dir", default="runs/experiments", help="folder of everything the experiments write")
    parser.add_argument("--store", default="runs/store", help="folder of feature stores")
    parser.add_argument("--smoke", action="store_true", help="a few pairs and one epoch, into RUN_DIR/smoke")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from ditf_probe.data.willow import PFWillow
    from ditf_probe.experiments.steps import perform
    from ditf_probe.files import ensure_writable

    if options.root is not None:
        PFWillow(options.root)  # a bad folder must not come to light after the first training
    asked = Options(Path(options.run_dir), options.store, options.root, options.smoke)
    commands = list(PLANS[options.name](asked))  # a missing folder is told before one is made
    ensure_writable(asked.folder, "--run-dir")
    for command in commands:
        perform(command, run_command)
    if options.name in _CONCLUSIONS:
        _CONCLUSIONS[options.name](asked)


def _curves(options: Options) -> None:
    from ditf_probe.experiments.learning import write_curves

    for file in write_curves(options.folder / CURVES):
        print(f"learning    {file}")


def _generalise(options: Options) -> None:
    from ditf_probe.experiments.generalising import generalisation_table, side_by_side, write_generalisation

    folder = options.folder / "generalise"
    kinds = {name: side_by_side(folder / name) for name in generalisations(options)}
    for name, rows in kinds.items():
        _show(generalisation_table(name, rows))
    print(f"generalise  {write_generalisation(folder, kinds)}")


def _layers(options: Options) -> None:
    from ditf_probe.experiments.layers import layers_table, weights_of, write_layers

    weights = weights_of(aggregations(options))
    _show(layers_table(weights))
    for file in write_layers(options.folder / "layers", weights):
        print(f"layers      {file}")


def _adapters(options: Options) -> None:
    from ditf_probe.experiments.adapting import adapted_entries, adapters_table, write_adapters

    folder = options.folder / "adapters"
    rows = adapted_entries(folder)
    _show(adapters_table(rows))
    print(f"adapters    {write_adapters(folder, rows)}")


def _show(table: Any) -> None:
    from ditf_probe.printing import console

    console().print(table)


_CONCLUSIONS: dict[str, Callable[[Options], None]] = {
    "adapters": _adapters,
    "curves": _curves,
    "generalise": _generalise,
    "layers": _layers,
}
"""What an experiment makes of what its commands leave."""
