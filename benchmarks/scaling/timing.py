"""Sizes to measure, points that come of it, and a stopwatch."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.measuring import in_turns
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

    def medians(self, works: Sequence[Callable[[], object]], repeats: int | None = None) -> list[float]:
        """Median seconds of each, in turns, after a first round that does not count."""

        def waiting(work: Callable[[], object]) -> Callable[[], None]:
            def run() -> None:
                work()
                self._wait()

            return run

        named = {str(number): waiting(work) for number, work in enumerate(works)}
        return [statistics.median(taken) for taken in in_turns(named, repeats or self.repeats).values()]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def words_of_rate(operations: float, size: str) -> str:
    """Operations per second at a size."""
    return f"{readable_operations(operations)}FLOP/s at {size}"
