"""Steps per second of training a probe on cached features, and whether the loader or the device sets the pace.

loop        as a training runs: batches are read from a feature store by a thread, ahead of the step, copied to the
            device, made into features, descriptors and a loss; then backward and AdamW
on device   the same steps on one batch that is on the device already
waiting     part of the time of `loop` in which the step waits for a batch

The store holds noise of the real size: nothing depends on the values. `linear` is a LinearProbe over one block,
`aggregation` a LayerAggregation over all of them; the loss is KeypointContrast, which needs whole maps of both images.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.arguments import add_sizes, checked, measuring_parser, positive
from benchmarks.measuring import console, ratio, report, spread, table, three
from benchmarks.on_device import DevicePeak, add_device, exact_float32, finished, words_of
from ditf_probe.devices import DTYPES
from ditf_probe.errors import InputError
from ditf_probe.files import ensure_writable

HEADS = ("linear", "aggregation")
WARMUPS = 3


class Training:
    """One head, its loss and optimiser over a stream.

    Args:
        name: One of `HEADS`.
        stream: Where features are.
        options: Of the command.
        device: That trains.
    """

    def __init__(self, name: str, stream: Any, options: argparse.Namespace, device: torch.device) -> None:
        from ditf_probe.losses import KeypointContrast, Objective
        from ditf_probe.probes import LayerAggregation, LinearProbe
        from ditf_probe.tasks.descriptors import Describer
        from ditf_probe.tasks.schedules import adamw
        from ditf_probe.tasks.training_batches import BatchReader

        blocks = [0] if name == "linear" else list(range(options.blocks))
        torch.manual_seed(0)
        made = (LinearProbe if name == "linear" else LayerAggregation)(options.channels, blocks, width=options.width)
        self.device, self.dtype = device, DTYPES[options.precision]
        self.head, self.loss = made.to(device), Objective({"contrast": KeypointContrast()}).to(device)
        self.optimiser = adamw((self.head, self.loss), 1e-3, 1e-2)
        self.read = BatchReader(stream, blocks, blocks, device=device)
        self.describe = Describer(stream, {name: blocks}, set(), self.dtype)
        self.name = name

    def step(self, batch: Any) -> None:
        """One step, as `ProbeTask` makes it."""
        batch = batch.to(self.device)
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype if mixed else None, enabled=mixed):
            sources, targets = self.describe(batch, {self.name: self.head})[self.name]
        ends = [one.float() for one in sources], [one.float() for one in targets]
        loss, _ = self.loss(*ends, batch.pairs)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def loaded(training: Training, dataset: Any, options: argparse.Namespace) -> Iterator[Any]:
    """Batches as the training loader serves them."""
    from ditf_probe.data.datamodule import PairDataModule
    from ditf_probe.data.loading_ahead import LoadedAhead

    pairs = PairDataModule(train=dataset, batch_size=options.batch_size)
    return iter(LoadedAhead(pairs.train_dataloader(), training.read, options.ahead))


def loop(training: Training, batches: Iterator[Any], steps: int) -> tuple[float, float]:
    """Seconds of some steps, and of waiting for their batches."""
    waiting, start = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waiting += time.perf_counter() - asked
        training.step(batch)
    finished(training.device)
    return time.perf_counter() - start, waiting


def repeated(batch: Any) -> Iterator[Any]:
    while True:
        yield batch


def bytes_of(batch: Any) -> int:
    """Of the streams of a batch."""
    from ditf_probe.features.bank import nbytes_of

    return sum(nbytes_of(block) for group in batch.groups for block in group.tapped.values())


def measure(name: str, stream: Any, dataset: Any, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Both ways in turns, after some steps that do not count."""
    training = Training(name, stream, options, device)
    peak, batches = DevicePeak(device), loaded(training, dataset, options)
    first = next(batches)
    size, here = bytes_of(first), first.to(device)
    loop(training, batches, WARMUPS)
    loop(training, repeated(here), WARMUPS)
    steps, found = options.steps, {"loop": [], "on_device": [], "waiting": []}
    for _ in range(options.repeats):
        taken, waiting = loop(training, batches, steps)
        found["loop"].append(steps / taken)
        found["waiting"].append(waiting / taken)
        found["on_device"].append(steps / loop(training, repeated(here), steps)[0])
    results: dict[str, Any] = {key: {"every": values, **spread(values)} for key, values in found.items()}
    return results | {
        "on_device_over_loop": ratio(found["on_device"], found["loop"]),
        "batch_mb": size / 1e6,
        "peak_mb": peak(),
    }


def results_table(results: dict[str, Any], options: argparse.Namespace, device: torch.device) -> Table:
    rows, columns = options.grid
    title = (
        f"{words_of(device)}, {options.channels} channels, {columns}x{rows} grid, store in {options.dtype}, "
        f"{options.batch_size} pairs a step, {options.precision}, torch {torch.__version__}"
    )
    lines = []
    for name, found in results.items():
        lines.append([f"{name}, loop, steps/s", *three(found["loop"], ".2f"), f"{found['batch_mb']:.0f}"])
        lines.append([f"{name}, on device, steps/s", *three(found["on_device"], ".2f"), ""])
        lines.append([f"{name}, on device over loop", *three(found["on_device_over_loop"], ".2f"), ""])
        lines.append([f"{name}, waiting, part of loop", *three(found["waiting"], ".2f"), ""])
    return table(title, ("", "min", "median", "max", "MB a step"), lines)


def parser() -> argparse.ArgumentParser:
    made = measuring_parser("probe_training", __doc__, repeats=3)
    made.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS, help="which (default all)")
    sizes = [("channels", 3072, "of the features"), ("blocks", 2, "of `aggregation`"), ("width", 128, "of descriptors")]
    sizes += [("images", 32, "in the store"), ("keypoints", 15, "of a pair"), ("batch-size", 8, "pairs a step")]
    add_sizes(made, [*sizes, ("steps", 20, "of a run")])
    grid = {"type": positive, "nargs": 2, "metavar": ("ROWS", "COLUMNS")}
    made.add_argument("--grid", **grid, default=[60, 60], help="cells of an image (default 60 60)")
    made.add_argument("--ahead", type=int, default=2, help="batches that are read ahead (default 2)")
    made.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the store (default bfloat16)")
    made.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="bfloat16", help="of heads (default bfloat16)"
    )
    made.add_argument("--folder", type=Path, help="for the store, which goes again (default: that of temporary files)")
    add_device(made, "cuda")
    return made


def main(arguments: list[str]) -> None:
    from benchmarks.cached_features import STRIDE, NoisePairs, stored_stream

    options = checked(parser().parse_args(arguments))
    if options.ahead < 0:
        raise InputError("--ahead", options.ahead, "give a number of batches, 0 or more")
    if options.folder:
        ensure_writable(options.folder, "--folder")
    device, results = exact_float32(options.device), {}
    steps = 1 + WARMUPS + options.repeats * options.steps
    size = (options.grid[0] * STRIDE, options.grid[1] * STRIDE)
    dataset = NoisePairs(options.images, steps * options.batch_size, size, options.keypoints)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="probe-benchmark-") as folder:
        with console().status("store ..."):
            blocks = list(range(options.blocks))
            stream = stored_stream(Path(folder), dataset, options.channels, blocks, device, options.dtype)
        for name in options.heads:
            with console().status(f"{name} ..."):
                results[name] = measure(name, stream, dataset, options, device)
    report([results_table(results, options, device)], options, results)
