"""Matching of batches of pairs on one device: the loops of published codes beside this project.

Maps lie on the device, keypoints on the CPU, where annotations are; times are those until predictions are back there.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.matching_methods import METHODS, SAME, Case, Match, one_by_one, settled, together
from benchmarks.measuring import seconds, spread
from benchmarks.on_device import DevicePeak, Rows, failure, finished, rate, release, times, words_of
from ditf_probe.devices import DTYPES
from ditf_probe.matching.bounds import can_fuse

COLUMNS = ("method", "features", "pairs", "pairs/s", "min s", "median s", "max s", "peak MB", "same pixels", "first s")
LOOPS = ("reference", "vectorised")


def methods_of() -> dict[str, Callable[[Sequence[Case]], list[Match]]]:
    """Ways to match a batch: pair by pair, and this project's with all pairs in one call."""

    def way(name: str) -> Callable[[Sequence[Case]], list[Match]]:
        return lambda cases: one_by_one(METHODS[name], cases)

    return {name: way(name) for name in (*LOOPS, "exact")} | {"exact, together": together}


def pairs_of(options: argparse.Namespace, count: int, device: torch.device) -> list[Case]:
    """Pairs of noise in float32; source and target share half of their variance, so that there is something to find."""
    (height, width), cases = options.image, []
    generator, places = torch.Generator(device).manual_seed(0), torch.Generator().manual_seed(0)
    for _ in range(count):
        shape = (3, options.channels, *options.grid)
        shared, *own = torch.randn(shape, generator=generator, device=device)
        points = (torch.rand(options.keypoints, 2, generator=places) * torch.tensor([width, height])).floor()
        cases.append(Case(shared + own[0], shared + own[1], points, (height, width)))
    return cases


def predictions(cases: Sequence[Case], matches: Sequence[Match]) -> Tensor:
    """Of all pairs on the CPU, `(pairs * K, 2)`, without the ties of the border."""
    return torch.cat([settled(case, found[0].cpu()) for case, found in zip(cases, matches, strict=True)])


@torch.no_grad()
def measure_batch(options: argparse.Namespace, name: str, cases: list[Case], expected: Tensor) -> dict[str, Any]:
    """One method on one batch; loops take the first pairs alone, since none gains from another.

    Args:
        options: Of the command.
        name: Of `methods_of`.
        cases: The pairs on the device.
        expected: Pixels that the reference finds in float32 for as many pairs as loops take.
    """
    device, match, loop = cases[0].source.device, methods_of()[name], name in LOOPS
    chosen = cases[: options.loop_pairs] if loop else cases
    peak, found = DevicePeak(device), []

    def work() -> None:
        found[:] = [tuple(x.cpu() for x in one) for one in match(chosen)]

    first = seconds(work)  # compiles, where something is compiled
    finished(device)
    taken = times(work, device, options.reference_repeats if name == "reference" else options.repeats, warmups=0)
    apart = (predictions(chosen, found)[: len(expected)] - expected[: len(chosen) * options.keypoints]).abs()
    return {
        "method": name,
        "pairs": len(chosen),
        "seconds": taken,
        **spread(taken),
        "first": first,
        "pairs_per_second": rate(len(chosen), taken),
        "peak_mb": peak(),
        "same_pixels": int((apart <= SAME).all(1).sum()),
        "compared": len(apart),
    }


def measure_batches(options: argparse.Namespace, device: torch.device, note: Callable[[Any], None]) -> list[Any]:
    """All methods on all batches in all dtypes; what fails is among the results with its error.

    Args:
        options: Of the command.
        device: Where maps lie.
        note: Is told each result.
    """
    every, results = pairs_of(options, max(options.batches), device), []
    for name in options.dtypes:
        cases = [case.to(device, DTYPES[name]) for case in every]
        known = [case.to(device, torch.float32) for case in cases[: options.loop_pairs]]
        with torch.no_grad():
            expected = predictions(known, one_by_one(METHODS["reference"], known))
        del known
        for method in methods_of():
            # A loop takes the same pairs of every batch.
            for batch in options.batches if method not in LOOPS else [max(options.batches)]:
                facts: dict[str, Any] = {"method": method, "dtype": name, "batch": batch}
                try:
                    facts |= measure_batch(options, method, cases[:batch], expected)
                except Exception as error:  # such as too little memory: the other methods are measured
                    facts |= {"error": failure(error)}
                results.append(facts)
                note(facts)
                release(device)
    return results


def title_of(options: argparse.Namespace, device: torch.device) -> str:
    (rows, columns), (height, width) = options.grid, options.image
    bounds = ", fused bounds" if can_fuse(device) else ""
    return (
        f"{words_of(device)}, {options.channels} channels, {columns}x{rows} grid, {width}x{height} image, "
        f"{options.keypoints} keypoints, no TF32{bounds}, torch {torch.__version__}"
    )


def shown_by(rows: Rows) -> Callable[[dict[str, Any]], None]:
    """Prints results as rows."""

    def note(facts: dict[str, Any]) -> None:
        cells = [facts["method"], facts["dtype"]]
        if "error" in facts:
            rows.add(*cells, str(facts["batch"]), facts["error"])
            return
        cells += [str(facts["pairs"]), f"{facts['pairs_per_second']:.2f}"]
        cells += [f"{facts[key]:.4f}" for key in ("min", "median", "max")]
        same = f"{facts['same_pixels']} of {facts['compared']}"
        rows.add(*cells, f"{facts['peak_mb']:.0f}", same, f"{facts['first']:.2f}")

    return note
