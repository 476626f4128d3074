"""The numbers of the scaling model as plain values: rows per backbone, way to match, work and number of GPUs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.scaling.images import ImageCost, image_cost
from benchmarks.scaling.machines import Machine, Workload, extraction, fits_memory, matching
from benchmarks.scaling.pairs import METHODS, PairSize, pair_cost
from ditf_probe.devices import DTYPES

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is computed.

    Attributes:
        ensembles: Numbers of noise draws.
        gpus: Numbers of GPUs.
        dtype: Of the store, for times.
        image: (height, width) of original images in pixels.
        keypoints: Per pair.
        works: Numbers of images and pairs.
    """

    ensembles: tuple[int, ...]
    gpus: tuple[int, ...]
    dtype: torch.dtype
    image: tuple[int, int]
    keypoints: int
    works: tuple[Workload, ...]

    def pair(self, cost: ImageCost) -> PairSize:
        """The size of a pair of images."""
        return PairSize(cost.channels, cost.grid, self.image, self.keypoints)


def compute(costs: Sequence[ImageCost], machine: Machine, settings: Settings) -> dict[str, list[Row]]:
    """Everything, by the name of its table."""
    return {
        "images": image_rows(costs, settings),
        "pairs": pair_rows(costs, settings),
        "growth": growth_rows(costs, settings),
        "estimates": estimate_rows(costs, machine, settings),
    }


def image_rows(costs: Sequence[ImageCost], settings: Settings) -> list[Row]:
    """One row per backbone: what an image costs."""
    rows = []
    for cost in costs:
        operations = {draws: cost.operations(draws) for draws in settings.ensembles}
        stored = {name: cost.stored(dtype) for name, dtype in DTYPES.items()}
        rows.append(asdict(cost) | {"tokens": cost.tokens, "operations": operations, "stored": stored})
    return rows


def pair_rows(costs: Sequence[ImageCost], settings: Settings) -> list[Row]:
    """One row per backbone and way to match."""
    found = [(cost.name, method, pair_cost(method, settings.pair(cost))) for cost in costs for method in METHODS]
    return [
        {"name": name, "method": method, "operations": cost.operations, **asdict(cost)} for name, method, cost in found
    ]


def growth_rows(costs: Sequence[ImageCost], settings: Settings) -> list[Row]:
    """One row per backbone: by which factors costs grow when one size is changed."""
    rows = []
    for cost in costs:
        larger, size = image_cost(cost.name, (2 * cost.size[0], 2 * cost.size[1])), settings.pair(cost)
        image = {
            "one_pass": larger.one_pass.total / cost.one_pass.total,
            "autoencoder": larger.vae / cost.vae,
            "entry": larger.stored(settings.dtype) / cost.stored(settings.dtype),
        }
        changed = {
            "tokens x 4": replace(size, grid=larger.grid),
            "keypoints x 2": replace(size, keypoints=2 * size.keypoints),
            "pixels x 4": replace(size, image=(2 * size.image[0], 2 * size.image[1])),
        }
        pairs = {
            method: {
                what: pair_cost(method, other).operations / pair_cost(method, size).operations
                for what, other in changed.items()
            }
            for method in METHODS
        }
        rows.append({"name": cost.name, "tokens x 4": image, "pairs": pairs})
    return rows


def estimate_rows(costs: Sequence[ImageCost], machine: Machine, settings: Settings) -> list[Row]:
    """One row per work, backbone, number of GPUs and number of draws."""
    rows = []
    for work in settings.works:
        for cost in costs:
            sizes = {name: work.images * cost.stored(dtype) for name, dtype in DTYPES.items()}
            for gpus in settings.gpus:
                pairs = matching(cost, settings.pair(cost), work, settings.dtype, machine, gpus)
                fits = fits_memory(cost, work.images, settings.dtype, machine, gpus)
                for draws in settings.ensembles:
                    row = {"work": work.name, "name": cost.name, "gpus": gpus, "ensemble": draws, "store": sizes}
                    filled = extraction(cost, work.images, draws, settings.dtype, machine, gpus)
                    for step, found in (("extraction", filled), ("matching", pairs)):
                        row[step] = asdict(found) | {"seconds": found.seconds, "limit": found.limit}
                    rows.append(row | {"images": work.images, "pairs": work.pairs, "fits_memory": fits})
    return rows
