"""Some pairs of a data set, the same on every machine."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ditf_probe.data.pairs import Pair, PairDataset, check_range


class PairsPerCategory(PairDataset):
    """At most so many pairs of each category, drawn without replacement, in the order of the whole list.

    The draw of a category depends on its name, its number of pairs and the seed alone.

    Args:
        dataset: The whole list.
        count: Most pairs of each category.
        seed: Of the draw.

    Raises:
        InputError: `count` is less than 1.
    """

    def __init__(self, dataset: PairDataset, count: int, seed: int = 0) -> None:
        check_range("pairs_per_category", count, 1)
        self.dataset, self.pairs_per_category, self.pairs_seed = dataset, count, seed
        self.name, self.unit, self.threshold = dataset.name, dataset.unit, dataset.threshold
        self.problems = dataset.problems
        self._indices = _drawn([dataset[index].category for index in range(len(dataset))], count, seed)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return replace(self.dataset[self._indices[index]], index=index)

    def image(self, image_id: str) -> Tensor:
        """As in the whole list."""
        return self.dataset.image(image_id)

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        """As in the whole list."""
        return self.dataset.keypoint_names(category)

    def keypoint_groups(self, category: str) -> tuple[tuple[int, ...], ...]:
        """As in the whole list."""
        return self.dataset.keypoint_groups(category)

    def files(self) -> tuple[Path, ...]:
        """Those of the whole list."""
        return self.dataset.files()


def _drawn(categories: list[str], count: int, seed: int) -> list[int]:
    members: dict[str, list[int]] = {}
    for index, category in enumerate(categories):
        members.setdefault(category, []).append(index)
    chosen: list[int] = []
    for category, indices in members.items():
        generator = np.random.default_rng([seed, zlib.crc32(category.encode())])
        kept = generator.choice(len(indices), size=min(count, len(indices)), replace=False)
        chosen += [indices[place] for place in kept]
    return sorted(chosen)
