"""Some pairs of a data set, the same on every machine."""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ditf_probe.data.pairs import Pair, PairDataset, check_range
from ditf_probe.errors import InputError


class _SomePairs(PairDataset):
    """Pairs of a whole list by their positions, numbered anew; images and names are those of the whole list."""

    def __init__(self, dataset: PairDataset, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.name, self.unit, self.threshold = dataset.name, dataset.unit, dataset.threshold
        self.problems = dataset.problems
        self._indices = list(indices)

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


class PairsPerCategory(_SomePairs):
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

        def draw(size: int, generator: np.random.Generator) -> list[int]:
            return [int(place) for place in generator.choice(size, size=min(count, size), replace=False)]

        super().__init__(dataset, _drawn(dataset, draw, seed))
        self.pairs_per_category, self.pairs_seed = count, seed


class Fraction(_SomePairs):
    """A fraction of the pairs of each category, for learning curves; in the order of the whole list.

    Fractions of one list and seed are nested: the pairs of 1% are among those of 5%. Every category keeps at least one
    pair, and the number of pairs is rounded up. The draw of a category depends on its name, its number of pairs and
    the seed alone.

    Args:
        dataset: The whole list.
        fraction: Above 0 (one pair of each category) and up to 1 (all of them).
        seed: Of the draw.

    Raises:
        InputError: A fraction out of range, or a negative seed.
    """

    def __init__(self, dataset: PairDataset, fraction: float, seed: int = 0) -> None:
        check_range("seed", seed, 0)
        if not 0 < fraction <= 1:
            raise InputError("fraction", fraction, "use a number above 0 and up to 1")

        def draw(size: int, generator: np.random.Generator) -> list[int]:
            kept = math.ceil(round(fraction * size, 6))  # 0.07 * 100 is more than 7
            return [int(place) for place in generator.permutation(size)[: max(1, kept)]]

        super().__init__(dataset, _drawn(dataset, draw, seed))
        self.fraction, self.seed = fraction, seed


def _drawn(dataset: PairDataset, draw: Callable[[int, np.random.Generator], list[int]], seed: int) -> list[int]:
    """Positions of the pairs that are drawn among those of each category, in order.

    Args:
        dataset: The whole list.
        draw: From the number of pairs of a category and its generator to which of them are kept.
        seed: Of the generators, beside the names of the categories.
    """
    members: dict[str, list[int]] = {}
    for index in range(len(dataset)):
        members.setdefault(dataset[index].category, []).append(index)
    chosen: list[int] = []
    for category, indices in members.items():
        generator = np.random.default_rng([seed, zlib.crc32(category.encode())])
        chosen += [indices[place] for place in draw(len(indices), generator)]
    return sorted(chosen)
