"""Time and memory of nearest-neighbour matching over the same features, the loops of the field beside this project.

Best pixel of the image:
reference   the loop of the code of DIFT and DiTF: both maps upsampled, then for each keypoint all target pixels
            normalised and multiplied with its vector
vectorised  the target upsampled and normalised once, one matrix product for all keypoints
exact       ditf_probe.matching, which never upsamples features

Soft-argmax in a window of the grid:
grid_loop   the loop of the code of GeoAware-SC: cosines of all cells with all cells, then for each keypoint a softmax
grid_exact  ditf_probe.matching with the rule of the protocol "geoaware"

All in float32 with the same number of threads, each in a process of its own, after a warm-up at a tiny size. Memory is
the peak of the resident set above its state before the first measured call, inputs and libraries not included.
Pixels within half a stride of the border tie, and float32 rounds ties at random: these count as the same pixel.
CPU s is the median over all threads, which other work on the machine disturbs less than the time on the clock.

--pairs N matches N pairs of random sizes from one set of images; --agreement N counts over N random pairs whether
`exact` finds the pixels of `reference`, and how far below the maximum the similarity is where it does not.

--device D matches batches of pairs on a device, in this process, in the dtypes of --dtypes: memory is that of tensors
on it above inputs, "exact, together" matches a batch in one call, loops match --loop-pairs pairs. Pixels are compared
with those of `reference` on the same features in float32.
"""

import argparse
import json
import statistics
import time
from functools import partial
from typing import Any

import torch
from rich.table import Table

from benchmarks.arguments import checked, measuring_parser, positive
from benchmarks.matching_agreement import agreement_table, measure_agreement
from benchmarks.matching_methods import PAIR_METHODS, PAIR_OURS, SAME, Case, one_case, random_cases, settled
from benchmarks.matching_on_device import COLUMNS, measure_batches, shown_by, title_of
from benchmarks.measuring import (
    PeakMemory,
    console,
    measure_apart,
    memory_ratio,
    report,
    shown,
    spread,
    table,
    three,
    write_figures,
)
from benchmarks.on_device import Rows, add_device, exact_float32
from ditf_probe.devices import DTYPES
from ditf_probe.errors import InputError

FULL = {"channels": 3072, "grid": [30, 40], "image": [375, 500], "keypoints": 15}


def cases_of(options: argparse.Namespace) -> list[Case]:
    """What is matched: one pair of the sizes that are asked for, or many of random sizes."""
    sizes = (options.channels, tuple(options.grid), tuple(options.image), options.keypoints)
    if options.pairs is None:
        return [one_case(*sizes)]
    return random_cases(*sizes, pairs=options.pairs, sizes=options.sizes, seed=options.seed)


@torch.no_grad()
def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one method in this process."""
    method = PAIR_METHODS[name]
    method([one_case(8, (3, 4), (9, 12), 2)])
    cases = cases_of(options)
    peak = PeakMemory()
    seconds, cpu_seconds = [], []
    for _ in range(options.reference_repeats if name == "reference" else options.repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        matches = method(cases)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    peak_mb = peak()
    predictions = [found[0] for found in matches]
    if PAIR_OURS[name] == "exact":  # cells do not tie
        predictions = [settled(case, found) for case, found in zip(cases, predictions, strict=True)]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": peak_mb,
        "pairs": len(cases),
        "predictions": torch.cat(predictions).tolist(),
        "similarity": torch.cat([found[1] for found in matches]).tolist(),
    }


def summarise(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Adds spread, ratios to this project's method of the same rule, and agreement with the first of that rule."""
    firsts: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        first = firsts.setdefault(PAIR_OURS[name], result)
        result |= spread(result["seconds"])
        result["cpu"] = statistics.median(result["cpu_seconds"])
        apart = torch.tensor(result["predictions"]) - torch.tensor(first["predictions"])
        result["same_pixels"] = int((apart.abs() <= SAME).all(1).sum())
        cosines = zip(result["similarity"], first["similarity"], strict=True)
        result["cosine_difference"] = max(abs(mine - other) for mine, other in cosines)
    for name, result in results.items():
        ours = results.get(PAIR_OURS[name])
        if ours is not None:
            result["times_ours"] = result["median"] / ours["median"]
            result["memory_ours"] = memory_ratio(result["peak_mb"], ours["peak_mb"])
    return results


def results_table(results: dict[str, dict[str, Any]], options: argparse.Namespace) -> Table:
    (rows, columns), (height, width) = options.grid, options.image
    many = "" if options.pairs is None else f"{options.pairs} pairs of {options.sizes} sizes, at most "
    title = (
        f"{many}{options.channels} channels, {columns}x{rows} grid, {width}x{height} image, {options.keypoints} "
        f"keypoints, float32, {options.threads} threads, torch {torch.__version__}"
    )
    names = ("method", "runs", "min s", "median s", "max s", "CPU s", "x ours", "peak MB", "x ours")
    lines = []
    for name, result in results.items():
        ratios = [shown(result.get(key), ".1f") for key in ("times_ours", "memory_ours")]
        times = [*three(result), f"{result['cpu']:.3f}"]
        agreement = [f"{result['same_pixels']} of {len(result['predictions'])}", f"{result['cosine_difference']:.1e}"]
        pair = [] if options.pairs is None else [f"{1000 * result['median'] / result['pairs']:.2f}"]
        peak = f"{result['peak_mb']:.0f}"
        lines.append([name, str(len(result["seconds"])), *times, ratios[0], peak, ratios[1], *agreement, *pair])
    pair = [] if options.pairs is None else ["ms/pair"]
    return table(title, (*names, "same pixels", "max |cos diff|", *pair), lines)


def parser() -> argparse.ArgumentParser:
    made = measuring_parser("matching", __doc__)
    made.add_argument("--full", action="store_true", help=f"the sizes of a large model: {FULL}; needs 10 GB of memory")
    made.add_argument("--channels", type=positive, default=512, help="of both feature maps (default 512)")
    pair = partial(made.add_argument, type=positive, nargs=2)
    pair("--grid", default=[20, 30], metavar=("ROWS", "COLUMNS"), help="cells (default 20 30)")
    pair("--image", default=[160, 240], metavar=("HEIGHT", "WIDTH"), help="pixels of both images (default 160 240)")
    made.add_argument("--keypoints", type=positive, default=10, help="to match (default 10)")
    made.add_argument("--reference-repeats", type=positive, default=1, help="of the reference (default 1)")
    names = list(PAIR_METHODS)
    made.add_argument("--methods", nargs="+", choices=names, default=names, help="which (default all)")
    made.add_argument("--pairs", type=positive, help="match so many pairs of random sizes, up to those above")
    made.add_argument("--sizes", type=positive, default=10, help="of --pairs: different image sizes (default 10)")
    made.add_argument("--agreement", type=positive, help="compare so many random pairs instead of measuring time")
    made.add_argument("--seed", type=int, default=0, help="of random pairs (default 0)")
    add_device(made, None, "; measures batches there")
    made.add_argument("--batches", nargs="+", type=positive, default=[1, 8, 32], help="of --device (default 1 8 32)")
    dtypes = ["float32", "bfloat16"]
    made.add_argument("--dtypes", nargs="+", choices=DTYPES, default=dtypes, help=f"of --device (default {dtypes})")
    made.add_argument("--loop-pairs", type=positive, default=2, help="of --device: pairs of a loop (default 2)")
    made.add_argument("--in-this-process", choices=names, help=argparse.SUPPRESS)
    return made


def parse(arguments: list[str]) -> argparse.Namespace:
    made = parser()
    options = made.parse_args(arguments)
    if options.full:  # sizes that are given still win
        made.set_defaults(**FULL)
        options = made.parse_args(arguments)
    return checked(options)


def measure_on_device(options: argparse.Namespace) -> None:
    """Batches on `--device`, row by row."""
    device = exact_float32(options.device)
    print(f"{title_of(options, device)}\n")
    found = measure_batches(options, device, shown_by(Rows(COLUMNS, text=2)))
    write_figures(options, {"batches": found})
    failed = [f"{x['method']} {x['dtype']} {x['batch']}" for x in found if "error" in x]
    if failed:
        raise InputError("--device", options.device, f"failed: {', '.join(failed)}, see their rows for the reason")


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if options.device:
        measure_on_device(options)
        return
    if options.in_this_process:
        print(json.dumps(measure(options.in_this_process, options)))
        return
    if options.agreement:
        with console().status("agreement ..."):
            found = measure_agreement(options)
        report([agreement_table(found, options)], options, found)
        return
    results = {}
    for name in options.methods:
        with console().status(f"{name} ..."):
            command = ["matching", *arguments, "--in-this-process", name]
            results[name] = measure_apart("--methods", name, command)
    report([results_table(summarise(results), options)], options, results)
