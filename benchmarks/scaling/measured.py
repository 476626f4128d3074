"""The scaling model against this machine: rates from a few measured sizes, and the times of other sizes from the rates.

A resource is measured at one size (the exact matcher at three); the model then says what other sizes take, which are
measured as well. Weights and features are random numbers: no time depends on them.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling.machines import Machine
from benchmarks.scaling.measured_files import decoding, storing
from benchmarks.scaling.measured_models import encoder, transformers
from benchmarks.scaling.measured_pairs import exact_matching, upsampled_matching
from benchmarks.scaling.timing import Place, Sizes


def check(sizes: Sizes, machine: Machine, device: torch.device, folder: Path | None) -> list[dict[str, Any]]:
    """All points as plain values.

    Args:
        sizes: What to measure.
        machine: What is assumed of it where nothing else is measured first.
        device: Where models and the exact matcher run; the methods that upsample features stay on the CPU.
        folder: On the disk to measure; None is that of temporary files.
    """
    threads, place, cpu = (
        torch.get_num_threads(),
        Place(device, sizes.repeats),
        Place(torch.device("cpu"), sizes.repeats),
    )
    torch.set_num_threads(sizes.threads)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory(dir=folder) as home:
            torch.manual_seed(0)
            points = [*transformers(sizes, place), *encoder(sizes, place), *exact_matching(sizes, place)]
            points += [*upsampled_matching(sizes, cpu), *storing(sizes, cpu, Path(home))]
            points.append(decoding(machine, cpu, Path(home)))
    finally:
        torch.set_num_threads(threads)
    return [asdict(point) | {"ratio": point.measured / point.predicted} for point in points]
