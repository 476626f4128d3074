"""Batches of single images for pretraining."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from ditf_probe.data.image_pools import ImagePool, MixedBatches, drawn_pool, photo_pool
from ditf_probe.data.synthetic import CATEGORIES
from ditf_probe.errors import InputError


class ImagePoolsModule(LightningDataModule):
    """Batches of drawn objects and photos, and drawn validation images.

    Args:
        photos: Image folder with one sub-folder per class; None trains on drawings alone.
        cache_dir: Where the arrays of images are kept between runs.
        num_drawn: Number of different drawings.
        drawn_share: Share of drawings in a batch.
        image_size: Side of the images in pixels.
        photo_margin: Photos are kept this much larger than `image_size`, and cropped at random.
        zoom: Whether crops of photos have random sides, up to the whole of what is kept, instead of `image_size`.
        resident: Whether all images lie on the training device, where they are cropped too; 12 kB a drawing of 64 px.
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
        photo_margin: float = 1.125,
        zoom: bool = False,
        resident: bool = False,
        batch_size: int = 64,
        num_val: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < drawn_share <= 1:
            raise InputError("drawn_share", drawn_share, "use a share above 0 and at most 1")
        if not 1 <= photo_margin < float("inf"):
            raise InputError("photo_margin", photo_margin, "use a factor of 1 or more")
        for name, value in (("num_drawn", num_drawn), ("batch_size", batch_size), ("num_val", num_val)):
            if value < 1:
                raise InputError(name, value, "use 1 or more")
        self.photos, self.cache_dir, self.num_drawn, self.drawn_share = photos, cache_dir, num_drawn, drawn_share
        self.photo_margin, self.zoom, self.resident = photo_margin, zoom, resident
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
            size = round(self.image_size * self.photo_margin)
            pool, photo_names = photo_pool(self.cache_dir, self.photos, size, len(names), self.zoom)
            pools.append(pool)
            names = (*names, *(f"photo/{name}" for name in photo_names))
        return pools, names

    def train_dataloader(self) -> DataLoader[Any]:
        """Endless; a resumed run continues with images that it would not have seen again in the same order."""
        shares = [self.drawn_share, 1 - self.drawn_share] if len(self.pools) > 1 else [1.0]
        trainer = self.trainer
        seed, pools = [self.seed], self.pools
        if trainer:
            seed = [self.seed, trainer.global_step, trainer.global_rank]
        if trainer and self.resident:
            pools = [pool.to(trainer.strategy.root_device) for pool in pools]
        return DataLoader(MixedBatches(pools, shares, self.batch_size, self.image_size, seed), batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        """The drawn validation images, in order."""
        images = torch.empty_like(self.val_pool.images).copy_(self.val_pool.images)
        return DataLoader(TensorDataset(images, self.val_pool.labels), batch_size=self.batch_size)
