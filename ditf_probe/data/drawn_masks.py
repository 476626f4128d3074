"""Drawn objects with a class for every pixel: segmentation without a download."""

import torch
from torch import Tensor

from ditf_probe.data.drawing import rasterise_mask
from ditf_probe.data.segmentation import MaskDataset, MaskedImage
from ditf_probe.data.synthetic import CATEGORIES, draw_image, single_scene
from ditf_probe.errors import InputError


class DrawnMasks(MaskDataset):
    """Single drawn objects of `SyntheticPairs`' kind before a background; occluders belong to the background.

    Class 0 is the background, class i + 1 the category i. None of the pictures is in a pair of any split.

    Args:
        split: "train", "val" or "test".
        num_images: Number of images; categories take turns.
        image_size: Side in pixels, at least 16.
        seed: Another seed gives other pictures.

    Raises:
        InputError: An argument is out of range.
    """

    name = "drawn"
    class_names = ("background", *CATEGORIES)

    def __init__(self, split: str = "train", num_images: int = 800, image_size: int = 64, seed: int = 0) -> None:
        if num_images < 1:
            raise InputError("num_images", num_images, "ask for at least one image")
        single_scene(split, 0, image_size, seed)  # refuses arguments out of range
        self.split, self.num_images, self.image_size, self.seed = split, num_images, image_size, seed

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> MaskedImage:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return MaskedImage(index, self._image_id(index), (self.image_size, self.image_size))

    def image(self, image_id: str) -> Tensor:
        """Draws the picture of an id: `(3, image_size, image_size)` uint8 RGB."""
        digits = image_id.rpartition("/")[2]
        index = int(digits) if digits.isascii() and digits.isdigit() else -1
        if not 0 <= index < len(self) or image_id != self._image_id(index):
            raise InputError("image_id", image_id, f"use an id of this data set, such as {self._image_id(0)!r}")
        return torch.from_numpy(draw_image(self.split, index, self.image_size, self.seed)[0])

    def mask(self, index: int) -> Tensor:
        """`(image_size, image_size)` uint8 classes."""
        shown = rasterise_mask(single_scene(self.split, index, self.image_size, self.seed), self.image_size)
        return torch.from_numpy(shown).to(torch.uint8) * (index % len(CATEGORIES) + 1)

    def _image_id(self, index: int) -> str:
        return f"drawn/seed{self.seed}/{self.split}/{self.image_size}/{index:06d}"
