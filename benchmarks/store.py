"""What a feature store costs beside a plain dump of the same bytes, and how long a large one takes to open.

plain   safetensors.torch.save_file and load_file, one file per batch
store   ditf_probe.features.store: checksums, journal and atomic writes; reading entry by entry in mapped memory

Plain and store take turns, both in the page cache of the same disk, and what is read is summed up image by image. The
ratio is that of throughputs, store over plain: 1 is as fast, and more is faster. Opening is measured on a store with as
many entries as asked for, whose streams are as small as can be: what counts there is files and names.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.arguments import positive
from ditf_probe.backbones.base import Norm, TappedBlock
from ditf_probe.devices import DTYPES
from ditf_probe.features.store import FeatureStore
from ditf_probe.files import ensure_writable, write_text

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


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


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

        for name, work in (
            *(("write_plain", write_plain), ("write_store", write_store)),
            *(("read_plain", read_plain), ("read_store", read_store)),
        ):
            taken = seconds(work)
            if repeat:  # the first is a warm-up
                found[name].append(taken)
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
    taken, counts = [], set()
    for _ in range(options.repeats):
        start_time = time.perf_counter()
        opened = FeatureStore(folder / "many", DEFINITION, create=False)
        taken.append(time.perf_counter() - start_time)
        counts.add(len(opened))
    return {"open": taken, "entries": counts.pop(), "shards": len(list(store.folder.glob("*.safetensors")))}


def summarise(found: dict[str, Any]) -> dict[str, Any]:
    """Adds min, median and max of every measurement, and the ratios of paired runs."""
    results: dict[str, Any] = {}
    for name, taken in found.items():
        if isinstance(taken, list):
            results[name] = {"seconds": taken, **spread(taken)}
    for verb in ("write", "read"):
        pairs = zip(found[f"{verb}_plain"], found[f"{verb}_store"], strict=True)
        results[f"{verb}_ratio"] = spread([plain / store for plain, store in pairs])
    return results | {name: value for name, value in found.items() if not isinstance(value, list)}


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def table(results: dict[str, Any], options: argparse.Namespace) -> Table:
    title = (
        f"{options.batches} batches of {options.batch_size} images, {options.tokens} tokens, {options.channels} "
        f"channels, {options.dtype}, {results['bytes'] / 1e6:.0f} MB, {options.threads} threads, "
        f"torch {torch.__version__}"
    )
    found = Table(title=title)
    for column in ("", "min", "median", "max", "MB/s"):
        found.add_column(column, justify="right" if column else "left")
    for name in ("write_plain", "write_store", "read_plain", "read_store"):
        result = results[name]
        times = [f"{result[key]:.3f} s" for key in ("min", "median", "max")]
        found.add_row(name.replace("_", ", "), *times, f"{results['bytes'] / 1e6 / result['median']:.0f}")
    for verb in ("write", "read"):
        ratios = [f"{results[f'{verb}_ratio'][key]:.2f}" for key in ("min", "median", "max")]
        found.add_row(f"{verb}, store over plain", *ratios, "")
    times = [f"{results['open'][key]:.3f} s" for key in ("min", "median", "max")]
    found.add_row(f"open {results['entries']:,} entries in {results['shards']:,} shards", *times, "")
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m benchmarks store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--batches", type=positive, default=16, help="of images, each a file (default 16)")
    made.add_argument("--batch-size", type=positive, default=16, help="images per batch (default 16)")
    made.add_argument("--tokens", type=positive, default=1200, help="per image (default 1200, a 40x30 grid)")
    made.add_argument("--channels", type=positive, default=1024, help="of the stream (default 1024)")
    made.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the stream (default bfloat16)")
    made.add_argument("--entries", type=positive, default=100_000, help="of the store to open (default 100000)")
    made.add_argument("--repeats", type=positive, default=5, help="measured runs (default 5)")
    made.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="of torch (default: its own)")
    made.add_argument("--folder", type=Path, help="on the disk to measure (default: that of temporary files)")
    made.add_argument("--json", type=Path, help="also write the numbers to this file")
    return made


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.json:
        ensure_writable(options.json.parent, "--json")
    if options.folder:
        ensure_writable(options.folder, "--folder")
    console = Console(width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="store-benchmark-") as folder:
        with console.status("throughput ..."):
            found = measure_throughput(Path(folder), options)
        with console.status("opening ..."):
            found |= measure_opening(Path(folder), options)
    results = summarise(found)
    console.print(table(results, options))
    if options.json:
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        del settings["json"]
        write_text(options.json, json.dumps({"settings": settings, "results": results}, indent=2) + "\n")
