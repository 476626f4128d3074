"""Measuring on one device, a GPU or the CPU: seconds until all its work is done, memory, and the name of the card."""

import argparse
import gc
import os
import statistics
from collections.abc import Callable, Sequence

import torch

from benchmarks.measuring import PeakMemory, seconds
from ditf_probe.devices import resolve_device


def add_device(parser: argparse.ArgumentParser, default: str | None, more: str = "") -> None:
    """Adds `--device`."""
    shown = "" if default is None else f" (default {default})"
    parser.add_argument("--device", default=default, help=f"that computes, such as cuda or cpu{more}{shown}")


def exact_float32(device: str) -> torch.device:
    """The device of a name, with TF32 switched off for matrix products and convolutions, in child processes as well.

    Raises:
        InputError: This machine does not have it.
    """
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # read by cuBLAS and cuDNN when they start
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return resolve_device(device)


def finished(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def times(work: Callable[[], object], device: torch.device, repeats: int, warmups: int = 1) -> list[float]:
    """Seconds of every run, until the device has finished it; the first runs do not count."""

    def run() -> None:
        work()
        finished(device)

    finished(device)
    return [seconds(run) for _ in range(warmups + repeats)][warmups:]


class DevicePeak:
    """How far memory rises above what it is when this is made, in MB.

    On CUDA that of tensors on the device; on the CPU the resident set of the process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        release(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            self.host = PeakMemory()

    def __call__(self) -> float:
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.before) / 1e6
        return self.host()


def release(device: torch.device) -> None:
    """Gives memory back that nothing uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def words_of(device: torch.device) -> str:
    """What computes, for titles."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def failure(error: BaseException) -> str:
    """One line that says what went wrong, without the tensors that a traceback keeps alive."""
    line = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {line}"


class Rows:
    """A table in Markdown whose rows are printed as they are made, so that what ends early has shown what it had.

    Args:
        columns: Their names; the first are text.
        text: How many are text.
    """

    def __init__(self, columns: Sequence[str], text: int = 1) -> None:
        self.columns = columns
        print(f"| {' | '.join(columns)} |\n|{'---|' * text}{'---:|' * (len(columns) - text)}", flush=True)

    def add(self, *cells: str) -> None:
        """Prints a row; missing cells are blank."""
        print(f"| {' | '.join([*cells, *[''] * (len(self.columns) - len(cells))])} |", flush=True)


def rate(count: float, taken: Sequence[float]) -> float:
    """How many per second, by the median."""
    return count / statistics.median(taken)
