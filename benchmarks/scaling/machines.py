"""How long machines take for many images and pairs, and which resource is at its limit first.

The stages of extraction (decoding, copies, computing, writing) run at the same time, as those of matching do (reading,
copies, matching), so that the slowest sets the time; loading the weights comes before. Work divides evenly.
"""

from dataclasses import dataclass, field, fields
from typing import Any

import torch

from benchmarks.scaling.images import ImageCost
from benchmarks.scaling.pairs import PairSize, modulation_cost, pair_cost

GIGA, TERA, MILLI, GIBIBYTE = 10**9, 10**12, 1e-3, 2**30


def _assumed(value: float, unit: str, meaning: str) -> Any:
    return field(default=value, metadata={"unit": unit, "meaning": meaning})


@dataclass(frozen=True, slots=True)
class Machine:
    """What is assumed of machines; each is an argument of the command. Bandwidths count 10^9 bytes, GiB 2^30."""

    peak: float = _assumed(989, "TFLOP/s", "dense bfloat16 of one GPU, data sheet of the H200")
    utilisation: float = _assumed(0.4, "of the peaks", "what real layers reach, in any precision")
    peak_float64: float = _assumed(34, "TFLOP/s", "float64 of one GPU outside its tensor cores, data sheet of the H200")
    hbm: float = _assumed(4800, "GB/s", "memory of one GPU, data sheet of the H200")
    pcie: float = _assumed(50, "GB/s", "between host and one GPU, PCIe 5.0 x16")
    gpus_per_node: float = _assumed(8, "GPUs", "of a node; fewer GPUs get their share of its cores and memory")
    cores: float = _assumed(12, "cores", "that decode, per GPU")
    decode: float = _assumed(40, "ms", "of one core to read, decode and resize an image")
    pair_overhead: float = _assumed(3, "ms", "per pair, Python and launches of kernels in matching")
    ram: float = _assumed(192, "GiB", "for features, per GPU")
    disk_write: float = _assumed(3, "GB/s", "of the disks of a node")
    disk_read: float = _assumed(10, "GB/s", "of the disks of a node")
    network: float = _assumed(25, "GB/s", "from a node to storage that several nodes share, 200 Gbit/s")
    shared_write: float = _assumed(20, "GB/s", "of the shared storage, all nodes together")
    shared_read: float = _assumed(40, "GB/s", "of the shared storage, all nodes together")

    def nodes(self, gpus: int) -> int:
        """Nodes that so many GPUs stand in."""
        return -int(-gpus // self.gpus_per_node)

    def storage(self, gpus: int, disk: float, shared: float) -> float:
        """Bytes per second of all nodes together: a node's own disks, or storage that several nodes share."""
        nodes = self.nodes(gpus)
        return GIGA * (disk if nodes == 1 else min(nodes * self.network, shared))

    def write_rate(self, gpus: int) -> float:
        """Bytes per second that can be written."""
        return self.storage(gpus, self.disk_write, self.shared_write)

    def read_rate(self, gpus: int) -> float:
        """Bytes per second that can be read."""
        return self.storage(gpus, self.disk_read, self.shared_read)

    def assumptions(self) -> list[tuple[str, float, str, str]]:
        """Name, value, unit and meaning of each."""
        return [(f.name, getattr(self, f.name), f.metadata["unit"], f.metadata["meaning"]) for f in fields(self)]


@dataclass(frozen=True, slots=True)
class Workload:
    """Images that are computed once, and pairs of them.

    Attributes:
        name: For tables.
        images: How many.
        pairs: How many.
    """

    name: str
    images: int
    pairs: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Time of many images or pairs.

    Attributes:
        before: Seconds before the first.
        stages: Seconds of each resource, if it alone set the pace.
    """

    before: float
    stages: dict[str, float]

    @property
    def seconds(self) -> float:
        """From start to end."""
        return self.before + max(self.stages.values())

    @property
    def limit(self) -> str:
        """What takes the longest: a resource, or the weights that are loaded before."""
        slowest = max(self.stages, key=self.stages.__getitem__)
        return "weights" if self.before > self.stages[slowest] else slowest


def extraction(
    cost: ImageCost, images: int, ensemble: int, stored: torch.dtype, machine: Machine, gpus: int
) -> Estimate:
    """Time to fill a store.

    Args:
        cost: Of an image.
        images: How many.
        ensemble: Noise draws of each.
        stored: Dtype of the store.
        machine: What is assumed.
        gpus: How many work.
    """
    prepared = 3 * cost.size[0] * cost.size[1] * torch.float32.itemsize
    weights = machine.nodes(gpus) * cost.weights / machine.read_rate(gpus) + cost.weights / (machine.pcie * GIGA)
    return Estimate(
        weights,
        {
            "decode": images * machine.decode * MILLI / (gpus * machine.cores),
            "copy": images * (prepared + cost.stored(stored)) / (gpus * machine.pcie * GIGA),
            "compute": images * cost.operations(ensemble) / (gpus * machine.peak * TERA * machine.utilisation),
            "disk write": images * cost.stored(stored) / machine.write_rate(gpus),
        },
    )


def matching(
    cost: ImageCost, pair: PairSize, work: Workload, stored: torch.dtype, machine: Machine, gpus: int
) -> Estimate:
    """Time to match pairs out of a full store, with the exact matcher on GPUs.

    Features that fit the memory of a node are read once by every node that needs them. Where they do not, memory is at
    its limit: both images of every pair are read from the disk.

    Args:
        cost: Of an image.
        pair: Size of a pair.
        work: How many images and pairs.
        stored: Dtype of the store.
        machine: What is assumed.
        gpus: How many work.
    """
    entry, reads, source = cost.stored(stored), 2 * work.pairs, "RAM (disk read)"
    if fits_memory(cost, work.images, stored, machine, gpus):
        reads, source = min(reads, machine.nodes(gpus) * work.images), "disk read"
    seconds = machine.pair_overhead * MILLI
    rate = machine.peak_float64 * TERA * machine.utilisation
    for part in (modulation_cost(pair, stored), pair_cost("exact", pair)):
        seconds += max(part.operations / rate, part.traffic / (machine.hbm * GIGA))
    return Estimate(
        0.0,
        {
            source: reads * entry / machine.read_rate(gpus),
            "copy": 2 * work.pairs * entry / (gpus * machine.pcie * GIGA),
            "matching": work.pairs * seconds / gpus,
        },
    )


def fits_memory(cost: ImageCost, images: int, stored: torch.dtype, machine: Machine, gpus: int) -> bool:
    """Whether all features fit the memory for them in each node."""
    share = min(gpus, machine.gpus_per_node) * machine.ram * GIBIBYTE
    return images * cost.stored(stored) <= share
