"""Time and memory of nearest-neighbour matching at full image resolution, three ways over the same features.

reference   the loop of the code of DIFT and DiTF: both maps upsampled, then for each keypoint all target pixels
            normalised and multiplied with its vector
vectorised  the target upsampled and normalised once, one matrix product for all keypoints
exact       ditf_probe.matching, which never upsamples features

All in float32 with the same number of threads, each in a process of its own, after a warm-up at a tiny size. Memory is
the peak of the resident set above its state before the first measured call, inputs and libraries not included.
Pixels within half a stride of the border tie, and float32 rounds ties at random: these count as the same pixel.
CPU s is the median over all threads, which other work on the machine disturbs less than the time on the clock.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.arguments import positive
from ditf_probe.errors import InputError
from ditf_probe.files import ensure_writable, write_text
from ditf_probe.matching import match_keypoints

Size = tuple[int, int]
Match = tuple[Tensor, Tensor]
FULL = {"channels": 3072, "grid": [30, 40], "image": [375, 500], "keypoints": 15}


def upsample(features: Tensor, size: Size) -> Tensor:
    return F.interpolate(features[None], size, mode="bilinear", align_corners=False)[0]


def reference(source: Tensor, target: Tensor, keypoints: Tensor, size: Size) -> Match:
    source, target = upsample(source, size), upsample(target, size)
    predictions, similarity = [], []
    for x, y in keypoints.long().tolist():
        pixels = target.flatten(1).T  # frees the normalised map of the last keypoint
        pixels = F.normalize(pixels, dim=1)
        cosines = pixels @ F.normalize(source[:, y, x], dim=0)
        best = int(cosines.argmax())
        predictions.append([best % size[1], best // size[1]])
        similarity.append(float(cosines[best]))
    return torch.tensor(predictions).float(), torch.tensor(similarity)


def vectorised(source: Tensor, target: Tensor, keypoints: Tensor, size: Size) -> Match:
    relative = (keypoints + 0.5) / torch.tensor([size[1], size[0]]) * 2 - 1
    samples = F.grid_sample(source[None], relative[None, None], padding_mode="border", align_corners=False)
    target = upsample(target, size).flatten(1)
    # In pieces of channels: vector_norm over the first axis takes ten times as long, one large square twice the memory.
    squares = sum((piece.square().sum(0) for piece in torch.split(target, 64)), torch.zeros(()))
    target /= squares.sqrt().clamp_min(1e-8)
    similarity, best = (F.normalize(samples[0, :, 0].T, dim=1) @ target).max(dim=1)
    return torch.stack([best % size[1], best // size[1]], dim=1).float(), similarity


def exact(source: Tensor, target: Tensor, keypoints: Tensor, size: Size) -> Match:
    return match_keypoints(source, target, keypoints, size, size, rounding="integer")


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor, Size], Match]] = {
    "reference": reference,
    "vectorised": vectorised,
    "exact": exact,
}


def inputs(channels: int, grid: Size, image: Size, keypoints: int) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded noise: neither time nor memory depends on the values."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(channels, *grid, generator=generator)
    target = torch.randn(channels, *grid, generator=generator)
    points = torch.rand(keypoints, 2, generator=generator) * torch.tensor([image[1], image[0]])
    return source, target, points.floor()


def memory(field: str) -> float:
    """A field of the kernel's status of this process (VmRSS: resident now, VmHWM: its peak), in MB."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text() if status.exists() else "", flags=re.MULTILINE)
    if found is None:
        raise InputError(
            str(status), f"without {field}", "measure on Linux, whose kernel counts the memory of a process"
        )
    return int(found[1]) * 1024 / 1e6


@torch.no_grad()
def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one method in this process."""
    torch.set_num_threads(options.threads)
    method, size = METHODS[name], tuple(options.image)
    method(*inputs(8, (3, 4), (9, 12), 2), (9, 12))
    arguments = inputs(options.channels, tuple(options.grid), size, options.keypoints)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory("VmRSS")
    seconds, cpu_seconds = [], []
    for _ in range(options.reference_repeats if name == "reference" else options.repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        predictions, similarity = method(*arguments, size)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mb": memory("VmHWM") - before,
        "predictions": predictions.tolist(),
        "similarity": similarity.tolist(),
    }


def measure_apart(name: str, arguments: list[str]) -> dict[str, Any]:
    """Runs one method in a new process, so that no method profits from what another left in memory."""
    command = [sys.executable, "-m", "benchmarks", "matching", *arguments, "--in-this-process", name]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise InputError("--methods", name, f"ended with code {run.returncode}; free memory, or leave it out")
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def without_ties(predictions: Tensor, grid: Size, size: Size) -> Tensor:
    """Moves what lies within half a stride of the border, where interpolation repeats, to its inner edge."""
    border = torch.tensor([size[1] / grid[1], size[0] / grid[0]]) / 2 - 0.5
    last = torch.tensor([size[1], size[0]]) - 1
    return predictions.maximum(border).minimum(last - border)


def summarise(results: dict[str, dict[str, Any]], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Adds median, ratio to the exact matcher, and agreement with the first method."""
    first = next(iter(results.values()))
    expected = without_ties(torch.tensor(first["predictions"]), options.grid, options.image)
    for result in results.values():
        seconds = result["seconds"]
        result["min"], result["median"], result["max"] = min(seconds), statistics.median(seconds), max(seconds)
        result["cpu"] = statistics.median(result["cpu_seconds"])
        found = without_ties(torch.tensor(result["predictions"]), options.grid, options.image)
        result["same_pixels"] = int((found == expected).all(1).sum())
        cosines = zip(result["similarity"], first["similarity"], strict=True)
        result["cosine_difference"] = max(abs(mine - other) for mine, other in cosines)
    if "exact" in results:
        for result in results.values():
            result["times_exact"] = result["median"] / results["exact"]["median"]
            result["memory_exact"] = result["peak_mb"] / results["exact"]["peak_mb"]
    return results


def table(results: dict[str, dict[str, Any]], options: argparse.Namespace) -> Table:
    (rows, columns), (height, width) = options.grid, options.image
    title = (
        f"{options.channels} channels, {columns}x{rows} grid, {width}x{height} image, {options.keypoints} keypoints, "
        f"float32, {options.threads} threads, torch {torch.__version__}"
    )
    found = Table(title=title)
    names = (
        "runs",
        "min s",
        "median s",
        "max s",
        "CPU s",
        "x exact",
        "peak MB",
        "x exact",
        "same pixels",
        "max |cos diff|",
    )
    for column in ("method", *names):
        found.add_column(column, justify="left" if column == "method" else "right")
    for name, result in results.items():
        times = [f"{result[key]:.3f}" for key in ("min", "median", "max", "cpu")]
        ratios = [f"{result[key]:.1f}" if key in result else "" for key in ("times_exact", "memory_exact")]
        agreement = [f"{result['same_pixels']} of {options.keypoints}", f"{result['cosine_difference']:.1e}"]
        peak = f"{result['peak_mb']:.0f}"
        found.add_row(name, str(len(result["seconds"])), *times, ratios[0], peak, ratios[1], *agreement)
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m benchmarks matching", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--full", action="store_true", help=f"the sizes of a large model: {FULL}; needs 10 GB of memory")
    made.add_argument("--channels", type=positive, default=512, help="of both feature maps (default 512)")
    made.add_argument(
        "--grid", type=positive, nargs=2, default=[20, 30], metavar=("ROWS", "COLUMNS"), help="cells (default 20 30)"
    )
    made.add_argument(
        "--image",
        type=positive,
        nargs=2,
        default=[160, 240],
        metavar=("HEIGHT", "WIDTH"),
        help="pixels of both images (default 160 240)",
    )
    made.add_argument("--keypoints", type=positive, default=10, help="to match (default 10)")
    made.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="of torch (default: its own)")
    made.add_argument("--repeats", type=positive, default=5, help="measured runs (default 5)")
    made.add_argument("--reference-repeats", type=positive, default=1, help="of the reference (default 1)")
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="which (default all)")
    made.add_argument("--json", type=Path, help="also write the numbers to this file")
    made.add_argument("--in-this-process", choices=METHODS, help=argparse.SUPPRESS)
    return made


def parse(arguments: list[str]) -> argparse.Namespace:
    made = parser()
    options = made.parse_args(arguments)
    if options.full:  # sizes that are given still win
        made.set_defaults(**FULL)
        options = made.parse_args(arguments)
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if options.in_this_process:
        print(json.dumps(measure(options.in_this_process, options)))
        return
    if options.json:
        ensure_writable(options.json.parent, "--json")
    console = Console(width=None if sys.stdout.isatty() else 140)
    results = {}
    for name in options.methods:
        with console.status(f"{name} ..."):
            results[name] = measure_apart(name, arguments)
    console.print(table(summarise(results, options), options))
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "in_this_process")}
        write_text(options.json, json.dumps({"settings": settings, "results": results}, indent=2) + "\n")
