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
    channels, counts, times = sizes.heads * HEAD, [], []
    for side in (sizes.side, 2 * sizes.side):
        stream = torch.randn(sizes.images, side**2, channels).bfloat16()
        shift, scale, gate = (torch.randn(sizes.images, channels) for _ in range(3))
        block = TappedBlock(stream, shift, scale, gate, Norm(), (side, side))
        counts.append(stream.nbytes + 3 * shift.nbytes)
        times.append(store_times(block, place, folder / str(side)))
    size = f"{sizes.images} entries, {4 * sizes.side**2} tokens, {channels} channels, bfloat16"
    points = []
    for verb, known, measured in zip(("write", "read"), *times, strict=True):
        rate = counts[0] / known
        words = f"{readable_bytes(rate)}/s at {sizes.side**2} tokens"
        points.append(Point(f"store, {verb}", size, words, counts[1] / rate, measured))
    return points


def store_times(block: TappedBlock, place: Place, folder: Path) -> tuple[float, float]:
    """Median seconds to write a batch of entries into a new store, and to read every byte of the streams in it."""
    keys, count = [str(index) for index in range(len(block.hidden_states))], iter(range(place.repeats + 1))

    def write() -> None:
        store = FeatureStore(folder / str(next(count)), DEFINITION)
        store.write(keys, [(1, 1)] * len(keys), {BLOCK: block})

    def read() -> None:
        store = FeatureStore(folder / "0", DEFINITION, create=False)
        for key in keys:
            store.read(key, [BLOCK])[BLOCK].hidden_states.sum()

    return place.seconds(write), place.seconds(read)


def decoding(machine: Machine, place: Place, folder: Path) -> Point:
    """Reading a JPEG photo of 500x375 pixels and resizing it to 960x960."""
    photo = folder / "photo.jpg"
    coarse = torch.randint(256, (24, 32, 3), dtype=torch.uint8).numpy()
    Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(photo, quality=95)
    transform = fit((375, 500), (960, 960), "stretch")
    taken = place.seconds(lambda: prepare_image(read_photo(photo), transform))
    words = f"assumed {machine.decode:g} ms"
    return Point("decode", "500x375 to 960x960 pixels", words, machine.decode * MILLI, taken)
