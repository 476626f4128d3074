"""What a feature store costs beside a plain dump of the same bytes, and how long a large one takes to open.

plain   safetensors.torch.save_file and load_file, one file per batch
store   ditf_probe.features.store: checksums, journal and atomic writes; reading entry by entry in mapped memory

Plain and store take turns, both in the page cache of the same disk, and what is read is summed up image by image. The
ratio is that of throughputs, store over plain: 1 is as fast, and more is faster. Opening is measured on a store with as
many entries as asked for, whose streams are as small as can be: what counts there is files and names.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.arguments import add_sizes, checked, measuring_parser
from benchmarks.measuring import console, in_turns, ratio, report, seconds, table, three, timed
from ditf_probe.backbones.base import Norm, TappedBlock
from ditf_probe.devices import DTYPES
from ditf_probe.features.store import FeatureStore
from ditf_probe.files import ensure_writable

BLOCK = 0
DEFINITION: dict[str, Any] = {"backbone": {"class": "Benchmark"}, "timestep": 0, "dtype": "any"}


def batch(images: int, tokens: int, channels: int, dtype: torch.dtype, seed: int = 0) -> TappedBlock:
    """Seeded noise: no time depends on the values."""
    generator = torch.Generator().manual_seed(seed)
    stream = torch.randn(images, tokens, channels, generator=generator).to(dtype)
    shift, scale, gate = (torch.randn(images, channels, generator=generator) for _ in range(3))
    return TappedBlock(stream, shift, scale, gate, Norm(), (1, tokens))


def parts(block: TappedBlock) -> dict[str, Tensor]:
    return {name: getattr(block, name) for name in ("hidden_states", "shift", "scale", "gate")}


def touch(tensors: Any) -> float:
    """Reads every byte."""
    return sum(float(tensor.sum()) for tensor in tensors)


def measure_throughput(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Writes and reads the same batches both ways, in turns."""
    block = batch(options.batch_size, options.tokens, options.channels, DTYPES[options.dtype])
    keys = [[f"{number}/{row}" for row in range(options.batch_size)] for number in range(options.batches)]
    found: dict[str, Any] = {f"{verb}_{way}": [] for verb in ("write", "read") for way in ("plain", "store")}
    for repeat in range(options.repeats + 1):
        plain, root = folder / "plain", folder / "store"
        for path in (plain, root):
            path.mkdir()
        store = FeatureStore(root, DEFINITION)
        files = [plain / f"{number}.safetensors" for number in range(options.batches)]

        def write_plain(files: list[Path] = files) -> None:
            for file in files:
                save_file(parts(block), file)

        def write_store(store: FeatureStore = store) -> None:
            for names in keys:
                store.write(names, [(1, 1)] * len(names), {BLOCK: block})

        def read_plain(files: list[Path] = files) -> None:
            for file in files:
                tensors = load_file(file).values()
                for row in range(options.batch_size):
                    touch(tensor[row : row + 1] for tensor in tensors)

        def read_store(root: Path = root) -> None:
            opened = FeatureStore(root, DEFINITION, create=False)
            for names in keys:
                for key in names:
                    touch(parts(opened.read(key, [BLOCK])[BLOCK]).values())

        works: dict[str, Any] = {
            **{"write_plain": write_plain, "write_store": write_store},
            **{"read_plain": read_plain, "read_store": read_store},
        }
        for name, taken in in_turns(works, repeats=1, warmups=0).items():
            if repeat:  # the first is a warm-up
                found[name] += taken
        for path in (plain, root):
            shutil.rmtree(path)
    found["bytes"] = options.batches * sum(tensor.nbytes for tensor in parts(block).values())
    return found


def measure_opening(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Opens a store of many entries."""
    store = FeatureStore(folder / "many", DEFINITION)
    block = batch(options.batch_size, 1, 1, torch.float32)
    for start in range(0, options.entries, options.batch_size):
        keys = [f"dataset/category/{number:08d}.jpg" for number in range(start, start + options.batch_size)]
        store.write(keys, [(375, 500)] * len(keys), {BLOCK: block})
    opened: list[int] = []
    taken = [
        seconds(lambda: opened.append(len(FeatureStore(folder / "many", DEFINITION, create=False))))
        for _ in range(options.repeats)
    ]
    return {"open": taken, "entries": opened[-1], "shards": len(list(store.folder.glob("*.safetensors")))}


def summarise(found: dict[str, Any]) -> dict[str, Any]:
    """Adds min, median and max of every measurement, and the ratios of paired runs."""
    results: dict[str, Any] = {name: timed(taken) for name, taken in found.items() if isinstance(taken, list)}
    for verb in ("write", "read"):
        results[f"{verb}_ratio"] = ratio(found[f"{verb}_plain"], found[f"{verb}_store"])
    return results | {name: value for name, value in found.items() if not isinstance(value, list)}


def results_table(results: dict[str, Any], options: argparse.Namespace) -> Table:
    title = (
        f"{options.batches} batches of {options.batch_size} images, {options.tokens} tokens, {options.channels} "
        f"channels, {options.dtype}, {results['bytes'] / 1e6:.0f} MB, {options.threads} threads, "
        f"torch {torch.__version__}"
    )
    rows = []
    for name in ("write_plain", "write_store", "read_plain", "read_store"):
        speed = f"{results['bytes'] / 1e6 / results[name]['median']:.0f}"
        rows.append([name.replace("_", ", "), *three(results[name], unit=" s"), speed])
    for verb in ("write", "read"):
        rows.append([f"{verb}, store over plain", *three(results[f"{verb}_ratio"], ".2f"), ""])
    name = f"open {results['entries']:,} entries in {results['shards']:,} shards"
    rows.append([name, *three(results["open"], unit=" s"), ""])
    return table(title, ("", "min", "median", "max", "MB/s"), rows)


def parser() -> argparse.ArgumentParser:
    made = measuring_parser("store", __doc__)
    sizes = [("batches", 16, "of images, each a file"), ("batch-size", 16, "images per batch")]
    sizes += [("tokens", 1200, "per image; 1200 is a 40x30 grid"), ("channels", 1024, "of the stream")]
    add_sizes(made, [*sizes, ("entries", 100_000, "of the store to open")])
    made.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the stream (default bfloat16)")
    made.add_argument("--folder", type=Path, help="on the disk to measure (default: that of temporary files)")
    return made


def main(arguments: list[str]) -> None:
    options = checked(parser().parse_args(arguments))
    if options.folder:
        ensure_writable(options.folder, "--folder")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="store-benchmark-") as folder:
        with console().status("throughput ..."):
            found = measure_throughput(Path(folder), options)
        with console().status("opening ..."):
            found |= measure_opening(Path(folder), options)
    results = summarise(found)
    report([results_table(results, options)], options, results)
