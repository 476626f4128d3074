"""Pools of single images for pretraining: drawn objects and a folder of photos, as uint8 arrays on disk."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ditf_probe.data.photos import list_photos, read_photo
from ditf_probe.data.synthetic import CATEGORIES, draw_image
from ditf_probe.errors import InputError

Images = NDArray[np.uint8]
MARGIN = 1.125
"""Photos are kept this much larger than the training crop, which is then taken at random."""


@dataclass(frozen=True)
class ImagePool:
    """Images of one size with their class labels.

    Attributes:
        images: `(N, 3, S, S)` uint8, usually memory-mapped.
        labels: `(N,)` int64.
        flip: Whether samples are mirrored at random.
    """

    images: Images
    labels: NDArray[np.int64]
    flip: bool = False

    def sample(self, count: int, size: int, rng: np.random.Generator) -> tuple[Images, NDArray[np.int64]]:
        """Draws images with replacement, each with a random crop.

        Args:
            count: How many.
            size: Side of the crop in pixels, at most S.
            rng: The generator.

        Returns:
            `(count, 3, size, size)` uint8 and `(count,)` int64.
        """
        chosen = rng.integers(len(self.images), size=count)
        offsets = rng.integers(self.images.shape[-1] - size + 1, size=(count, 2))
        mirrored = (rng.random(count) < 0.5) & self.flip
        crops = np.empty((count, 3, size, size), np.uint8)
        for row, (index, (y, x), mirror) in enumerate(zip(chosen, offsets, mirrored, strict=True)):
            crop = self.images[index, :, y : y + size, x : x + size]
            crops[row] = crop[:, :, ::-1] if mirror else crop
        return crops, self.labels[chosen]


def build_array(path: Path, facts: dict[str, Any], count: int, size: int, make: Callable[[int], Images]) -> Images:
    """Makes an array of images once; later calls with the same facts memory-map it.

    Args:
        path: The .npy file; what it holds is written beside it as JSON, last.
        facts: Everything that determines the contents.
        count: Number of images.
        size: Their side in pixels.
        make: Index to `(3, size, size)` uint8.

    Returns:
        `(count, 3, size, size)` uint8, read-only and memory-mapped.
    """
    note, partial = path.with_suffix(".json"), path.with_suffix(".partial")
    if not (path.exists() and note.exists() and json.loads(note.read_text()) == facts):
        path.parent.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(count, 3, size, size))
        for index in track(range(count), description=f"{path.stem} ({count:,} images)"):
            array[index] = make(index)
        array.flush()
        partial.replace(path)
        note.write_text(json.dumps(facts))
    images: Images = np.load(path, mmap_mode="r")
    return images


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
    images = build_array(path, facts, count, image_size, lambda i: draw_image(split, i, image_size, seed)[0])
    return ImagePool(images, np.arange(count, dtype=np.int64) % len(CATEGORIES))


def photo_pool(folder: Path, root: Path, image_size: int, first_label: int) -> tuple[ImagePool, tuple[str, ...]]:
    """Photos in one sub-folder per class.

    Args:
        folder: Where the array is kept.
        root: The image folder.
        image_size: Side of the crops that will be taken, in pixels.
        first_label: Label of the first class.

    Returns:
        The pool and the class names, which are the sub-folders in order.

    Raises:
        InputError: No such folder, or no readable photo in it.
    """
    paths = list_photos(root, "photos")
    names = tuple(sorted({path.parent.name for path in paths}))
    size = round(image_size * MARGIN)
    facts = {"kind": "photos", "files": [str(p.relative_to(root)) for p in paths], "size": size}
    path = folder / f"photos-{root.name}-{size}.npy"
    images = build_array(path, facts, len(paths), size, lambda i: centre_square(read_photo(paths[i]), size))
    labels = np.array([first_label + names.index(path.parent.name) for path in paths], dtype=np.int64)
    return ImagePool(images, labels, flip=True), names


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
    """An endless stream of batches from weighted pools.

    Args:
        pools: The pools.
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
        while True:
            counts = rng.multinomial(self.batch_size, self.shares)
            parts = [pool.sample(int(n), self.image_size, rng) for pool, n in zip(self.pools, counts, strict=True) if n]
            images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
            yield torch.from_numpy(images), torch.from_numpy(labels)


class ImagePoolsModule(LightningDataModule):
    """Batches of drawn objects and photos, and drawn validation images.

    Args:
        photos: Image folder with one sub-folder per class; None trains on drawings alone.
        cache_dir: Where the arrays of images are kept between runs.
        num_drawn: Number of different drawings.
        drawn_share: Share of drawings in a batch.
        image_size: Side of the images in pixels.
        batch_size: Images of a batch, per rank.
        num_val: Number of drawn validation images.
        seed: Seed of the stream.

    Raises:
        InputError: A number is out of range, or the folder has no photos.
    """

    def __init__(
        self,
        photos: Path | None = None,
        cache_dir: Path = Path("runs/pretrain/cache"),
        num_drawn: int = 80_000,
        drawn_share: float = 0.7,
        image_size: int = 64,
        batch_size: int = 64,
        num_val: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < drawn_share <= 1:
            raise InputError("drawn_share", drawn_share, "use a share above 0 and at most 1")
        for name, value in (("num_drawn", num_drawn), ("batch_size", batch_size), ("num_val", num_val)):
            if value < 1:
                raise InputError(name, value, "use 1 or more")
        self.photos, self.cache_dir, self.num_drawn, self.drawn_share = photos, cache_dir, num_drawn, drawn_share
        self.image_size, self.batch_size, self.num_val, self.seed = image_size, batch_size, num_val, seed
        self.class_names: tuple[str, ...] = CATEGORIES
        self.pools: list[ImagePool] = []

    def prepare_data(self) -> None:
        """Draws and decodes what is not on disk yet."""
        self._build()

    def setup(self, stage: str | None = None) -> None:
        """Opens the arrays."""
        self.pools, self.class_names = self._build()
        self.val_pool = drawn_pool(self.cache_dir, "val", self.num_val, self.image_size)

    def _build(self) -> tuple[list[ImagePool], tuple[str, ...]]:
        pools, names = [drawn_pool(self.cache_dir, "train", self.num_drawn, self.image_size)], CATEGORIES
        if self.photos is not None:
            pool, photo_names = photo_pool(self.cache_dir, self.photos, self.image_size, len(names))
            pools.append(pool)
            names = (*names, *(f"photo/{name}" for name in photo_names))
        return pools, names

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless; a resumed run continues with images that it would not have seen again in the same order."""
        shares = [self.drawn_share, 1 - self.drawn_share] if len(self.pools) > 1 else [1.0]
        trainer = self.trainer
        seed = [self.seed, trainer.global_step, trainer.global_rank] if trainer else [self.seed]
        return DataLoader(MixedBatches(self.pools, shares, self.batch_size, self.image_size, seed), batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        """The drawn validation images, in order."""
        images = torch.from_numpy(np.array(self.val_pool.images))
        return DataLoader(TensorDataset(images, torch.from_numpy(self.val_pool.labels)), batch_size=self.batch_size)
