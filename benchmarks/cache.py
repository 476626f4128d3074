"""Reading features for pairs: a feature store beside the cache of published codes.

cache     one torch.save of {image: features (C, h, w)} per category, loaded whole before the first of its pairs
stream    ditf_probe.features.store: the two entries of a pair, mapped, as they are stored
features  the same and AdaLN over them, which the cache has behind it

Every way runs in a process of its own, in turns, over the same pairs, category by category, and reads every byte of
the features of both images of a pair. Time begins before the first file is opened; libraries are loaded by then. The
page cache of the system is warm for all. Memory is the peak of the resident set above its state before the first file;
of mapped files this counts the pages that were looked at, which the system may take back.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.arguments import add_sizes, checked, measuring_parser, positive
from benchmarks.measuring import PeakMemory, console, measure_apart, ratio, report, spread, table, three, timed
from ditf_probe.backbones.base import Norm, TappedBlock
from ditf_probe.devices import DTYPES
from ditf_probe.features.calibration import make_features
from ditf_probe.features.store import FeatureStore
from ditf_probe.files import ensure_writable

BLOCK = 0
DEFINITION: dict[str, Any] = {"backbone": {"class": "Benchmark"}, "timestep": 0, "dtype": "any"}
Read = Callable[[int, int], Tensor]


def stream_of(category: int, options: argparse.Namespace) -> TappedBlock:
    """The images of a category: seeded noise, no time depends on the values."""
    generator = torch.Generator().manual_seed(category)
    rows, columns = options.grid
    shape = (options.images, rows * columns, options.channels)
    stream = torch.randn(*shape, generator=generator).to(DTYPES[options.dtype])
    shift, scale, gate = (torch.randn(options.images, options.channels, generator=generator) for _ in range(3))
    return TappedBlock(stream, shift, scale, gate, Norm(), (rows, columns))


def key(category: int, image: int) -> str:
    return f"category{category}/{image:06d}.jpg"


def write(folder: Path, options: argparse.Namespace) -> dict[str, int]:
    """Writes the same features both ways; returns their bytes on disk."""
    store = FeatureStore(folder / "store", DEFINITION)
    (folder / "cache").mkdir()
    for category in range(options.categories):
        block = stream_of(category, options)
        names = [key(category, image) for image in range(options.images)]
        for start in range(0, options.images, options.batch_size):
            part = slice(start, start + options.batch_size)
            store.write(names[part], [(1, 1)] * len(names[part]), {BLOCK: block.map(itemgetter(part))})
        maps = make_features(block, "adaln", "none", []).to(DTYPES[options.dtype])
        cached = {name: found.clone() for name, found in zip(names, maps, strict=True)}
        torch.save(cached, folder / "cache" / f"category{category}.pth")
    return {way: sum(x.stat().st_size for x in (folder / way).rglob("*.*")) for way in ("cache", "store")}


def pairs_of(category: int, options: argparse.Namespace) -> list[tuple[int, int]]:
    generator = torch.Generator().manual_seed(category)
    chosen: list[list[int]] = torch.randint(options.images, (options.pairs, 2), generator=generator).tolist()
    return [(source, target) for source, target in chosen]


def of_cache(cached: dict[str, Tensor], category: int, image: int) -> Tensor:
    return cached[key(category, image)]


def from_cache(folder: Path, options: argparse.Namespace) -> Iterator[Read]:
    """One reader per category: its file whole in memory."""
    for category in range(options.categories):
        cached = torch.load(folder / "cache" / f"category{category}.pth")
        yield partial(of_cache, cached)


def from_store(folder: Path, options: argparse.Namespace, modulated: bool) -> Iterator[Read]:
    """One reader for all categories."""
    store = FeatureStore(folder / "store", DEFINITION, create=False)

    def read(category: int, image: int) -> Tensor:
        block = store.read(key(category, image), [BLOCK])[BLOCK]
        return make_features(block, "adaln", "none", [])[0] if modulated else block.hidden_states[0]

    for _ in range(options.categories):
        yield read


WAYS: dict[str, Callable[[Path, argparse.Namespace], Iterator[Read]]] = {
    "cache": from_cache,
    "stream": lambda folder, options: from_store(folder, options, modulated=False),
    "features": lambda folder, options: from_store(folder, options, modulated=True),
}


@torch.no_grad()
def measure(way: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Reads all pairs one way in this process."""
    make_features(stream_of(0, argparse.Namespace(**{**vars(options), "images": 1})), "adaln", "none", [])
    peak, start, first, total = PeakMemory(), time.perf_counter(), 0.0, 0.0
    for category, read in enumerate(WAYS[way](folder, options)):
        for source, target in pairs_of(category, options):
            total += float(read(category, source).sum() + read(category, target).sum())
            first = first or time.perf_counter() - start
    return {"first": first, "all": time.perf_counter() - start, "peak_mb": peak(), "sum": total}


def summarise(found: dict[str, list[dict[str, float]]], sizes: dict[str, int]) -> dict[str, Any]:
    """Spread per way, and the ratios of paired runs: the cache over the store."""
    results: dict[str, Any] = {"bytes": sizes}
    for way, runs in found.items():
        taken = {name: [run[name] for run in runs] for name in ("first", "all", "peak_mb")}
        results[way] = {"first": timed(taken["first"]), "all": timed(taken["all"]), "peak_mb": spread(taken["peak_mb"])}
    for way in ("stream", "features"):
        for name in ("first", "all"):
            results[way][f"{name}_ratio"] = ratio(*([run[name] for run in found[x]] for x in ("cache", way)))
    return results


def results_table(results: dict[str, Any], options: argparse.Namespace) -> Table:
    (rows, columns), bytes_of = options.grid, results["bytes"]
    title = (
        f"{options.categories} categories of {options.images} images and {options.pairs} pairs, {options.channels} "
        f"channels, {columns}x{rows} grid, {options.dtype}, {options.threads} threads, torch {torch.__version__}"
    )
    lines = []
    for name, label in (("first", "first pair"), ("all", "all pairs")):
        for way in WAYS:
            lines.append([f"{label}, {way}", *three(results[way][name], ".4f", " s"), ""])
        for way in ("stream", "features"):
            lines.append([f"{label}, cache over {way}", *three(results[way][f"{name}_ratio"], ".1f"), ""])
    for way in WAYS:
        size = bytes_of["cache" if way == "cache" else "store"] / 1e6
        lines.append([f"peak memory, {way}", *three(results[way]["peak_mb"], ".0f", " MB"), f"{size:.1f}"])
    return table(title, ("", "min", "median", "max", "MB on disk"), lines)


def parser() -> argparse.ArgumentParser:
    made = measuring_parser("cache", __doc__)
    sizes = [("categories", 3, "of images, each a file of the cache"), ("images", 60, "per category")]
    sizes += [("pairs", 100, "per category"), ("channels", 1024, "of the features")]
    add_sizes(made, [*sizes, ("batch-size", 16, "images per shard of the store")])
    shape = ("ROWS", "COLUMNS")
    made.add_argument("--grid", type=positive, nargs=2, default=[30, 40], metavar=shape, help="cells (default 30 40)")
    made.add_argument("--dtype", choices=DTYPES, default="float32", help="of the features (default float32)")
    made.add_argument("--folder", type=Path, help="on the disk to measure (default: that of temporary files)")
    made.add_argument("--in-this-process", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    return made


def main(arguments: list[str]) -> None:
    options = checked(parser().parse_args(arguments))
    if options.in_this_process:
        way, folder = options.in_this_process
        print(json.dumps(measure(way, Path(folder), options)))
        return
    if options.folder:
        ensure_writable(options.folder, "--folder")
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="cache-benchmark-") as folder:
        with console().status("writing ..."):
            sizes = write(Path(folder), options)
        for _ in range(options.repeats):
            for way, runs in found.items():
                with console().status(f"{way} ..."):
                    command = ["cache", *arguments, "--in-this-process", way, folder]
                    runs.append(measure_apart("way", way, command))
    results = summarise(found, sizes)
    report([results_table(results, options)], options, results)
