"""Whether a device computes what the CPU does: features of every family, and PCK on PF-WILLOW.

features    per family, on a very small model of the real class with random weights (`ditf-tiny`: its own): the length
            of the difference from the features of the CPU in float32, over theirs; one figure per block, tap and image
pck         PCK@0.10 per image of `ditf-tiny` on PF-WILLOW; without --root this part is left out

Compared are float32 and bfloat16 on the device with float32 on the CPU. TF32 is switched off: products of float32 are
those of float32. Rows are printed as they are measured.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.arguments import checked, measuring_parser
from benchmarks.measuring import write_figures
from benchmarks.on_device import Rows, add_device, exact_float32, failure, release, words_of
from ditf_probe.devices import DTYPES
from ditf_probe.errors import InputError

COMPARED = ("float32", "bfloat16")
KEY = "0.10"


def measure_features(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Errors of every family; one that fails is among the results with its error."""
    from benchmarks.agreement_models import builders

    made, results = builders(), dict[str, Any]()
    unknown = sorted(set(options.families or made) - set(made))
    if unknown:
        raise InputError("--families", unknown[0], f"use some of {', '.join(made)}")
    columns = ("family", "maps", "float32 median", "float32 max", "bfloat16 median", "bfloat16 max")
    rows = Rows(columns)
    for name in options.families or made:
        found: dict[str, Any] = {}
        try:
            found = compared(made[name], device)
        except Exception as error:  # whatever it is: the other families are measured
            found = {"error": failure(error)}
        results[name] = found
        if "error" in found:
            rows.add(name, found["error"])
        else:
            rows.add(name, str(found["maps"]), *(f"{found[x][y]:.1e}" for x in COMPARED for y in ("median", "max")))
        release(device)
    return results


def compared(build: Any, device: torch.device) -> dict[str, Any]:
    """Errors of one family in both dtypes."""
    from benchmarks.agreement_models import errors, features, pictures, placed

    backbone = build()
    images = pictures(backbone)
    expected = list(features(backbone, images))
    found: dict[str, Any] = {"maps": len(expected)}
    for dtype in COMPARED:
        values = errors(features(placed(backbone, device, DTYPES[dtype]), images), expected)
        found[dtype] = {"median": statistics.median(values), "max": max(values), "every": values}
    return found


def measure_pck(folder: Path, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """PCK of the rows on the CPU and, in both dtypes, on the device."""
    from benchmarks.runs import evaluate

    place = f"--data.init_args.test.pf_willow.init_args.root={options.root}"
    chosen = f"--model.init_args.rows={json.dumps(options.rows)}"
    columns, results = ("where", *(f"{row}, %" for row in options.rows), "seconds"), dict[str, Any]()
    print(f"\nPCK@{KEY} per image, ditf-tiny on PF-WILLOW\n")
    rows = Rows(columns)
    for where, dtype in ((torch.device("cpu"), "float32"), *((device, dtype) for dtype in COMPARED)):
        name = f"{where.type} {dtype}"
        words = ["test", "--config", "configs/pf_willow.yaml", place, chosen]
        words.append(f"--model.init_args.features.dtype={dtype}")
        run, accelerator = folder / f"run{len(results)}", "cpu" if where.type == "cpu" else "gpu"
        try:
            done = evaluate(run, words, {}, threads=options.threads, accelerator=accelerator)
        except InputError as error:
            results[f"{len(results)} {name}"] = {"error": str(error)}
            rows.add(name, str(error))
            continue
        scores = scores_of(run / "comparison.json", options.rows)
        results[f"{len(results)} {name}"] = {"pck": scores, "seconds": done.whole}
        rows.add(name, *(f"{scores[row]:.2f}" for row in options.rows), f"{done.whole:.1f}")
    return results


def scores_of(file: Path, rows: list[str]) -> dict[str, float]:
    """PCK per image of the rows of a comparison."""
    found = json.loads(file.read_text())["datasets"]["pf_willow"]["rows"]
    scores = {row["name"]: row["pck"]["per_image"][KEY] for row in found}
    return {row: scores[row] for row in rows}


def parser() -> argparse.ArgumentParser:
    made = measuring_parser("agreement", __doc__, repeats=1)
    made.add_argument("--families", nargs="+", help="of features, by class or name (default all)")
    made.add_argument("--root", type=Path, help="folder of PF-WILLOW")
    rows = ["raw", "adaln"]
    made.add_argument("--rows", nargs="+", default=rows, help=f"of the comparison on PF-WILLOW (default {rows})")
    add_device(made, "cuda")
    return made


def main(arguments: list[str]) -> None:
    options = checked(parser().parse_args(arguments))
    if options.root and not options.root.is_dir():
        raise InputError("--root", str(options.root), "is no folder, give that of PF-WILLOW")
    device = exact_float32(options.device)
    print(f"{words_of(device)} against the CPU in float32, no TF32, torch {torch.__version__}\n")
    results: dict[str, Any] = {"features": measure_features(options, device)}
    write_figures(options, results)
    if options.root:
        options.root = options.root.resolve()
        with tempfile.TemporaryDirectory(prefix="agreement-benchmark-") as folder:
            results["pck"] = measure_pck(Path(folder), options, device)
        write_figures(options, results)
    failed = [name for part in results.values() for name, found in part.items() if "error" in found]
    if failed:
        raise InputError("--device", options.device, f"failed: {', '.join(failed)}, see their rows for the reason")
