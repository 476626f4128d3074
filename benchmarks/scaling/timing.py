"""Sizes to measure, points that come of it, and a stopwatch."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.scaling.tables import readable_operations

HEAD = 72
"""Channels of an attention head in DiT-XL and PixArt."""


def _size(value: int, meaning: str) -> Any:
    return field(default=value, metadata={"meaning": meaning})


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured; the sizes that are predicted are made of these."""

    heads: int = _size(16, f"attention heads of {HEAD} channels, 16 in DiT-XL and PixArt")
    blocks: int = _size(2, "blocks of the transformers")
    side: int = _size(16, "tokens per side of the grid, and cells in matching")
    pixels: int = _size(128, "side of an image that the autoencoder encodes")
    image: int = _size(400, "side of the original images in matching")
    keypoints: int = _size(15, "keypoints per pair")
    images: int = _size(32, "images in a store")
    repeats: int = _size(5, "runs of which the median counts")
    threads: int = _size(torch.get_num_threads(), "threads of torch")


@dataclass(frozen=True, slots=True)
class Point:
    """One prediction.

    Attributes:
        resource: What is at work.
        size: For how much.
        rate: From which rate it is predicted, in words.
        predicted: Seconds.
        measured: Seconds, median.
    """

    resource: str
    size: str
    rate: str
    predicted: float
    measured: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where models and matching run.

    Attributes:
        device: The device.
        repeats: Runs of which the median counts.
    """

    device: torch.device
    repeats: int

    @property
    def dtype(self) -> torch.dtype:
        """Of models: bfloat16 on a GPU, float32 on a CPU, which may have no fast bfloat16."""
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    def seconds(self, work: Callable[[], object], repeats: int | None = None) -> float:
        """Median time of some work after a first run that does not count."""
        taken = []
        for _ in range(1 + (repeats or self.repeats)):
            self._wait()
            start = time.perf_counter()
            work()
            self._wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken[1:])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def words_of_rate(operations: float, size: str) -> str:
    """Operations per second at a size."""
    return f"{readable_operations(operations)}FLOP/s at {size}"
