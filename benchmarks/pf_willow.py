"""The pairs of PF-WILLOW through `eval.py test`, from a cold feature store and from a warm one.

Every round has a store of its own, which the cold run fills and the warm one reads. `whole` is the process from start
to end; `loop` begins with the test (models are loaded in it, and images computed that the store lacks) and ends with
its scores. Counted is how often an image was written: once, or the run is refused; and that a warm run writes nothing.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.arguments import checked, measuring_parser
from benchmarks.measuring import console, report, spread, table, three, timed
from ditf_probe.errors import InputError

PHASES = ("cold", "warm")


def run(folder: Path, store: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run over a store that may be empty."""
    from benchmarks.runs import evaluate

    place = f"--data.init_args.test.pf_willow.init_args.root={options.root}"
    words = ["test", "--config", "configs/pf_willow.yaml", place, f"--model.init_args.features.store={store}"]
    words += [f"--model.init_args.rows={json.dumps(options.rows)}"] if options.rows else []
    found = evaluate(folder, words, {}, threads=options.threads)
    comparison = json.loads((folder / "comparison.json").read_text())
    pairs = comparison["datasets"]["pf_willow"]["pairs"]
    return {"whole": found.whole, "loop": found.loop, "peak_mb": found.peak_mb, "pairs": pairs}


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Cold and warm, in turns."""
    from benchmarks.runs import entries, shards

    found: dict[str, list[dict[str, Any]]] = {phase: [] for phase in PHASES}
    for repeat in range(options.repeats):
        store, written = folder / f"store{repeat}", 0
        for phase, runs in found.items():
            with console().status(f"{phase} ..."):
                runs.append(run(folder / f"{phase}{repeat}", store, options))
            if phase == "warm" and shards(store) != written:
                raise InputError("store", str(store), "was written to by a warm run; look into its journals")
            written = shards(store)
        counts = entries(store)
        for name, (count, times) in counts.items():
            if count != times:
                raise InputError("store", name, f"has {count} entries, written {times} times; look into its journals")
    results: dict[str, Any] = {phase: summarise(runs) for phase, runs in found.items()}
    return results | {
        "pairs": found["cold"][0]["pairs"],
        "images": {name: count for name, (count, _) in counts.items()},
    }


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    times = {field: timed([run[field] for run in runs]) for field in ("whole", "loop")}
    return times | {"peak_mb": spread([run["peak_mb"] for run in runs])}


def results_table(results: dict[str, Any], options: argparse.Namespace) -> Table:
    images = " + ".join(map(str, results["images"].values()))
    rows = "all rows" if not options.rows else ", ".join(options.rows)
    title = f"{results['pairs']} pairs, {images} images written once each, {rows}, {options.threads} threads"
    lines = [
        [f"{phase}, {field}", *three(results[phase][field], ".2f", " s"), f"{results[phase]['peak_mb']['median']:.0f}"]
        for phase in PHASES
        for field in ("whole", "loop")
    ]
    return table(title, ("", "min", "median", "max", "peak MB"), lines)


def parser() -> argparse.ArgumentParser:
    made = measuring_parser("pf_willow", __doc__, repeats=3)
    made.add_argument("--root", type=Path, required=True, help="folder of PF-WILLOW")
    made.add_argument("--rows", nargs="+", default=[], help="of the comparison (default: all of the configuration)")
    made.add_argument("--folder", type=Path, help="for stores, which go again (default: that of temporary files)")
    return made


def main(arguments: list[str]) -> None:
    options = checked(parser().parse_args(arguments))
    if not options.root.is_dir():
        raise InputError("--root", str(options.root), "is no folder, give that of PF-WILLOW")
    if options.folder and not options.folder.is_dir():
        raise InputError("--folder", str(options.folder), "is no folder")
    options.root = options.root.resolve()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="pf-willow-benchmark-") as folder:
        results = measure(Path(folder), options)
    report([results_table(results, options)], options, results)
