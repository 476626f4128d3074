"""Pools of single images: drawn objects and a folder of photos, as uint8 arrays on disk or on a device."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from ditf_probe.data.photos import list_photos, read_photo
from ditf_probe.data.synthetic import CATEGORIES, draw_image

Images = NDArray[np.uint8]
T = TypeVar("T")
_IN_PROCESSES_FROM = 4000
"""Fewer images are made sooner than processes have started."""


@dataclass(frozen=True)
class ImagePool:
    """Images of one size with their class labels.

    Attributes:
        images: `(N, 3, S, S)` uint8, usually memory-mapped.
        labels: `(N,)` int64, on the same device.
        flip: Whether samples are mirrored at random.
        zoom: Whether crops have random sides, from that of the sample up to S, instead of that of the sample.
    """

    images: Tensor
    labels: Tensor
    flip: bool = False
    zoom: bool = False

    def to(self, device: torch.device) -> "ImagePool":
        """The same pool with everything on a device, where samples are then cropped too."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def sample(self, count: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws images with replacement, each with a random crop.

        Args:
            count: How many.
            size: Side of the samples in pixels, at most S.
            generator: On the device of the images.

        Returns:
            `(count, 3, size, size)` uint8 and `(count,)` int64.
        """
        device, side = self.images.device, self.images.shape[-1]
        chosen = torch.randint(len(self.images), (count,), generator=generator, device=device)
        images, labels = self.images[chosen], self.labels[chosen]
        draws = torch.rand(4, count, generator=generator, device=device)
        mirrored = (draws[3] < 0.5) & self.flip
        if self.zoom:
            return zoomed(images, size, draws[:3], mirrored), labels
        if side == size and not self.flip:
            return images, labels
        first = (draws[:2] * (side - size + 1)).long()[:, :, None]  # y and x of the crops
        steps = torch.arange(size, device=device)
        rows, columns = first[0] + steps, first[1] + torch.where(mirrored[:, None], steps.flip(0), steps)
        at = torch.arange(count, device=device)[:, None, None]
        return images[at, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2), labels


def zoomed(images: Tensor, size: int, draws: Tensor, mirrored: Tensor) -> Tensor:
    """Square crops of random sides and places, resized.

    Args:
        images: `(B, 3, S, S)` uint8.
        size: Side of the result in pixels, at most S.
        draws: `(3, B)` in [0, 1): the side of a crop, from `size` to S pixels, and its place in y and x.
        mirrored: `(B,)` bool.

    Returns:
        `(B, 3, size, size)` uint8.
    """
    smallest = size / images.shape[-1]
    share = smallest + (1 - smallest) * draws[0]
    centre_y, centre_x = (1 - share) * (2 * draws[1:] - 1)
    zero = torch.zeros_like(share)
    rows = [torch.stack([torch.where(mirrored, -share, share), zero, centre_x], 1)]
    rows.append(torch.stack([zero, share, centre_y], 1))
    grid = F.affine_grid(torch.stack(rows, 1), [len(images), 3, size, size], align_corners=False)
    crops = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return crops.round().byte()


def build_array(
    path: Path, facts: dict[str, Any], items: Sequence[T], size: int, make: Callable[[T], Images]
) -> Tensor:
    """Makes an array of images once; later calls with the same facts memory-map it.

    Args:
        path: The .npy file; what it holds is written beside it as JSON, last.
        facts: Everything that determines the contents.
        items: What the images are made of, one each.
        size: Their side in pixels.
        make: Item to `(3, size, size)` uint8; from some thousand items on it runs in processes of its own.

    Returns:
        `(N, 3, size, size)` uint8, memory-mapped: not to be written to.
    """
    note, partial_file = path.with_suffix(".json"), path.with_suffix(".partial")
    if not (path.exists() and note.exists() and json.loads(note.read_text()) == facts):
        path.parent.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        shape = (len(items), 3, size, size)
        array = np.lib.format.open_memmap(partial_file, mode="w+", dtype=np.uint8, shape=shape)
        made = track(_made(items, make), description=f"{path.stem} ({len(items):,} images)", total=len(items))
        for index, image in enumerate(made):
            array[index] = image
        array.flush()
        partial_file.replace(path)
        note.write_text(json.dumps(facts))
    return torch.from_numpy(np.load(path, mmap_mode="c"))  # torch warns of arrays that cannot be written to


def _made(items: Sequence[T], make: Callable[[T], Images]) -> Iterator[Images]:
    if len(items) < _IN_PROCESSES_FROM:
        yield from map(make, items)
        return
    with ProcessPoolExecutor(cpu_count(), get_context("spawn")) as processes:
        yield from processes.map(make, items, chunksize=64)


def drawn_pool(folder: Path, split: str, count: int, image_size: int, seed: int = 0) -> ImagePool:
    """Drawn objects of one split.

    Args:
        folder: Where the array is kept.
        split: "train", "val" or "test" of the drawings.
        count: Number of images.
        image_size: Side in pixels.
        seed: Seed of the drawings.
    """
    facts = {"kind": "drawn", "split": split, "count": count, "image_size": image_size, "seed": seed}
    path = folder / f"drawn-{split}-{count}-{image_size}-{seed}.npy"
    images = build_array(path, facts, range(count), image_size, partial(_drawn, split, image_size, seed))
    return ImagePool(images, torch.arange(count) % len(CATEGORIES))


def _drawn(split: str, image_size: int, seed: int, index: int) -> Images:
    return draw_image(split, index, image_size, seed)[0]


def photo_pool(
    folder: Path, root: Path, size: int, first_label: int, zoom: bool = False
) -> tuple[ImagePool, tuple[str, ...]]:
    """Photos in one sub-folder per class.

    Args:
        folder: Where the array is kept.
        root: The image folder.
        size: Side in pixels that the central squares of the photos are resized to.
        first_label: Label of the first class.
        zoom: Whether the sides of crops are random.

    Returns:
        The pool and the class names, which are the sub-folders in order.

    Raises:
        InputError: No such folder, or no readable photo in it.
    """
    paths = list_photos(root, "photos")
    names = tuple(sorted({path.parent.name for path in paths}))
    facts = {"kind": "photos", "files": [str(p.relative_to(root)) for p in paths], "size": size}
    path = folder / f"photos-{root.name}-{size}.npy"
    images = build_array(path, facts, paths, size, partial(_photo, size))
    labels = torch.tensor([first_label + names.index(path.parent.name) for path in paths])
    return ImagePool(images, labels, flip=True, zoom=zoom), names


def _photo(size: int, path: Path) -> Images:
    return centre_square(read_photo(path), size)


def centre_square(image: Tensor, size: int) -> Images:
    """The central square of a photo, resized.

    Args:
        image: `(3, H, W)` uint8.
        size: Side of the result in pixels.

    Returns:
        `(3, size, size)` uint8.
    """
    height, width = image.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(image[:, top : top + side, left : left + side].permute(1, 2, 0).numpy())
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)).transpose(2, 0, 1)


class MixedBatches(IterableDataset[tuple[Tensor, Tensor]]):
    """An endless stream of batches from weighted pools, on the device of the pools.

    Args:
        pools: The pools, all on one device.
        shares: Their shares, which sum to 1.
        batch_size: Images of a batch.
        image_size: Side of the crops in pixels.
        seed: Seeds of the stream; a resumed run adds its step, a rank its number.
    """

    def __init__(
        self, pools: Sequence[ImagePool], shares: Sequence[float], batch_size: int, image_size: int, seed: list[int]
    ) -> None:
        self.pools, self.shares = pools, shares
        self.batch_size, self.image_size, self.seed = batch_size, image_size, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng(self.seed)
        generator = torch.Generator(self.pools[0].images.device).manual_seed(int(rng.integers(2**63)))
        while True:
            counts = rng.multinomial(self.batch_size, self.shares)
            drawn = zip(self.pools, counts, strict=True)
            parts = [pool.sample(int(count), self.image_size, generator) for pool, count in drawn if count]
            images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
            yield images, labels
