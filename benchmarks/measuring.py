"""What measurements share: clocks, memory, spread, turns, processes of their own, and the record of a run."""

import argparse
import contextlib
import ctypes
import gc
import json
import mmap
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.table import Table

from ditf_probe.errors import InputError
from ditf_probe.files import write_text

ROOT = Path(__file__).parents[1]
SMALL_PARENT = Path(__file__).with_name("small_parent.py")
CLEAR_REFS = Path("/proc/self/clear_refs")


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def timed(taken: Sequence[float]) -> dict[str, Any]:
    """Every run and its spread."""
    return {"seconds": list(taken), **spread(taken)}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Spread of the ratios of paired runs."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def memory_ratio(over: float, under: float) -> float | None:
    """None where nothing was measured."""
    return over / under if under > 0 else None


def shown(value: float | None, form: str = ".2f") -> str:
    """A figure as a cell; blank where there is none."""
    return "" if value is None else f"{value:{form}}"


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(works: Mapping[str, Callable[[], object]], repeats: int, warmups: int = 1) -> dict[str, list[float]]:
    """Seconds of every work in every round; within a round all take turns, so that each meets the same disturbance."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-warmups, repeats):
        for name, work in works.items():
            once = seconds(work)
            if number >= 0:
                taken[name].append(once)
    return taken


def memory(field: str) -> float:
    """A field of the kernel's status of this process (VmRSS: resident now, VmHWM: its peak), in MB."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text() if status.exists() else "", flags=re.MULTILINE)
    if found is None:
        remedy = "measure on Linux, whose kernel counts the memory of a process"
        raise InputError(str(status), f"without {field}", remedy)
    return int(found[1]) * 1024 / 1e6


class PeakMemory:
    """How far the resident set rises above what is in use when this is made, in MB.

    What was freed before is returned to the system first: the allocator would give it out again, and the resident set
    would not move. A peak that the kernel does not reset, as in some containers, is filled up to with ballast, so that
    whatever comes on top of it shows. One measures at a time: the next one resets the peak.
    """

    ballast: ClassVar[mmap.mmap | None] = None

    def __init__(self) -> None:
        PeakMemory.ballast = None
        gc.collect()
        _return_free_memory()
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")  # resets VmHWM
        PeakMemory.ballast = _ballast(memory("VmHWM") - memory("VmRSS"))
        self.before = memory("VmRSS")

    def __call__(self) -> float:
        return memory("VmHWM") - self.before


def _return_free_memory() -> None:
    """glibc keeps freed blocks, of tens of MB as well; an allocator without this function maps large blocks apart."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def _ballast(megabytes: float) -> mmap.mmap | None:
    """Memory of which every page is resident."""
    if megabytes <= 0:
        return None
    made = mmap.mmap(-1, int(megabytes * 1e6))
    for start in range(0, len(made), mmap.PAGESIZE):
        made[start] = 1
    return made


@dataclass(frozen=True)
class Finished:
    """A process that has ended well.

    Attributes:
        output: What it printed.
        seconds: From its start to its end.
        peak_mb: Peak resident set of the largest process among it and its children.
    """

    output: str
    seconds: float
    peak_mb: float


def run_apart(argument: str, value: str, words: Sequence[str], threads: int | None = None) -> Finished:
    """Runs a command of this Python in a new process, at the root of this checkout.

    Args:
        argument: What the command is due to, for the error.
        value: Its value.
        words: What follows the name of the interpreter.
        threads: Of OpenMP; None leaves it as it is.

    Raises:
        InputError: It ended with another code than 0; with its last line.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        found, output, errors = (Path(folder) / name for name in ("found.json", "output", "errors"))
        parent = [sys.executable, "-I", str(SMALL_PARENT), str(found)]
        with output.open("w") as out, errors.open("w") as err:
            process = subprocess.Popen(
                [*parent, sys.executable, *words],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                code = process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # its ranks and workers as well
                raise
        code, taken, peak = json.loads(found.read_text()) if found.exists() else (code, 0.0, 0)
        if code:
            last = " ".join(errors.read_text(errors="replace").splitlines()[-1:])
            raise InputError(argument, value, f"ended with code {code}; free memory, or change it ({last})")
        return Finished(output.read_text(), taken, peak * 1024 / 1e6)


def measure_apart(argument: str, value: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs a part of a benchmark in a new process, so that none profits from what another left in memory.

    Args:
        argument: What chooses the part, for the error.
        value: The part.
        arguments: Of `python -m benchmarks`, the last of which make it print its results as JSON.
    """
    found: dict[str, Any] = json.loads(run_apart(argument, value, ["-m", "benchmarks", *arguments]).output)
    return found


def machine() -> dict[str, Any]:
    """Where and when figures were measured."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(pages / 1e9, 1),
        "load": [round(x, 2) for x in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **_gpu(),
    }


def _gpu() -> dict[str, Any]:
    """The card of CUDA that is used unless another is named, where there is one."""
    if not torch.cuda.is_available():
        return {}
    found = torch.cuda.get_device_properties(0)
    return {"gpu": found.name, "gpu_memory_gb": round(found.total_memory / 1e9, 1), "cuda": torch.version.cuda}


def _processor() -> str:
    """Name of the processor, as the kernel of Linux has it."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", file.read_text() if file.exists() else "", flags=re.MULTILINE)
    return found[1] if found else platform.machine()


def console() -> Console:
    """Piped output has no width of its own; a wrapped table is unreadable."""
    return Console(width=None if sys.stdout.isatty() else 140)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The first column is text, the others are numbers."""
    made = Table(title=title)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    for row in rows:
        made.add_row(*row)
    return made


def three(found: Mapping[str, float], form: str = ".3f", unit: str = "") -> list[str]:
    """Min, median and max as cells."""
    return [f"{found[key]:{form}}{unit}" for key in ("min", "median", "max")]


def report(tables: Sequence[Table], options: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Prints tables, and writes settings, machine and results where `--json` says."""
    out = console()
    for made in tables:
        out.print(made)
    write_figures(options, results)


def write_figures(options: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Writes settings, machine and results where `--json` says."""
    if options.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        settings = {k: v for k, v in settings.items() if k not in ("json", "in_this_process")}
        record = {"settings": settings, "machine": machine(), "results": results}
        write_text(options.json, json.dumps(record, indent=2) + "\n")
