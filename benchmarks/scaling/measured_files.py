"""Measured and predicted writing and reading of a store, and decoding of photos beside what is assumed for it."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.scaling.machines import MILLI, Machine
from benchmarks.scaling.tables import readable_bytes
from benchmarks.scaling.timing import HEAD, Place, Point, Sizes
from ditf_probe.backbones.base import Norm, TappedBlock
from ditf_probe.data.photos import read_photo
from ditf_probe.features.store import FeatureStore
from ditf_probe.geometry import fit, prepare_image

BLOCK = 0
DEFINITION: dict[str, Any] = {"backbone": {"class": "Benchmark"}, "timestep": 0, "dtype": "any"}


def storing(sizes: Sizes, place: Place, folder: Path) -> list[Point]:
    """Rates of a small store, and the times of one with four times the tokens."""
    channels, sides = sizes.heads * HEAD, (sizes.side, 2 * sizes.side)
    stores = [Stored(entries(sizes.images, side, channels), folder / str(side)) for side in sides]
    size = f"{sizes.images} entries, {sides[1] ** 2} tokens, {channels} channels, bfloat16"
    points = []
    for verb, works in (("write", [one.write for one in stores]), ("read", [one.read for one in stores])):
        known, measured = place.medians(works)
        rate = stores[0].nbytes / known
        words = f"{readable_bytes(rate)}/s at {sides[0] ** 2} tokens"
        points.append(Point(f"store, {verb}", size, words, stores[1].nbytes / rate, measured))
    return points


def entries(images: int, side: int, channels: int) -> TappedBlock:
    """A batch of noise."""
    shift, scale, gate = (torch.randn(images, channels) for _ in range(3))
    return TappedBlock(torch.randn(images, side**2, channels).bfloat16(), shift, scale, gate, Norm(), (side, side))


class Stored:
    """A batch that is written into stores and read from the last of them.

    Args:
        block: The batch.
        folder: Of the stores.
    """

    def __init__(self, block: TappedBlock, folder: Path) -> None:
        self.block = block
        self.folder = folder
        self.written = 0
        self.keys = [str(index) for index in range(len(block.hidden_states))]
        parts = (block.hidden_states, block.shift, block.scale, block.gate)
        self.nbytes = sum(part.nbytes for part in parts if part is not None)

    def write(self) -> None:
        """Fills a new store."""
        self.written += 1
        store = FeatureStore(self.folder / str(self.written), DEFINITION)
        store.write(self.keys, [(1, 1)] * len(self.keys), {BLOCK: self.block})

    def read(self) -> None:
        """Reads every byte of the streams."""
        store = FeatureStore(self.folder / str(self.written), DEFINITION, create=False)
        for key in self.keys:
            store.read(key, [BLOCK])[BLOCK].hidden_states.sum()


def decoding(machine: Machine, place: Place, folder: Path) -> Point:
    """Reading a JPEG photo of 500x375 pixels and resizing it to 960x960."""
    photo = folder / "photo.jpg"
    coarse = torch.randint(256, (24, 32, 3), dtype=torch.uint8).numpy()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(photo, quality=95)
    transform = fit((375, 500), (960, 960), "stretch")
    (taken,) = place.medians([lambda: prepare_image(read_photo(photo), transform)])
    words = f"assumed {machine.decode:g} ms"
    return Point("decode", "500x375 to 960x960 pixels", words, machine.decode * MILLI, taken)
