"""Held-out evaluation: categories or keypoints that training leaves out, and the evaluation on exactly those."""

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ditf_probe.data.pairs import Pair, PairDataset, check_range
from ditf_probe.errors import InputError, check_choice

Keep = Literal["held_out", "rest"]


class HeldOut(PairDataset):
    """A part of a data set of pairs, chosen so that the part with `keep` "rest" tells nothing of "held_out".

    Training uses "rest" and evaluation "held_out" with the same other arguments; the two data sets may be different
    splits. Categories are left out with all their pairs. Keypoints are hidden in both images, so that row numbers and
    names stay; pairs without a visible keypoint are left out. Image ids pass through, so features are shared.

    With a fraction, each keypoint of each category is held out with this probability. Its draw depends on `seed`, the
    category and the row alone, not on the pairs, so every split of a data set holds out the same keypoints; what
    `keypoint_groups` puts together, such as both ears, is drawn together.

    Thresholds do not change: those relative to the keypoints still refer to the keypoints that were visible before.

    Args:
        dataset: The whole data set.
        categories: Names of the categories that are held out.
        keypoints: Instead of categories, the keypoints that are held out: a fraction between 0 and 1, or for each
            category a list of row numbers or names. Other categories lose nothing.
        keep: Which part this is.
        seed: Seed of the draws.

    Raises:
        InputError: If not exactly one of `categories` and `keypoints` is given, or one of them names what the data
            set does not have.
    """

    def __init__(
        self,
        dataset: PairDataset,
        categories: list[str] | None = None,
        keypoints: float | dict[str, list[int | str]] | None = None,
        keep: Keep = "held_out",
        seed: int = 0,
    ) -> None:
        check_choice("keep", keep, Keep)
        check_range("seed", seed, 0)
        if (categories is None) == (keypoints is None):
            raise InputError("categories", categories, "give either `categories` or `keypoints` that are held out")
        if categories == [] or keypoints == {}:
            raise InputError("categories" if keypoints is None else "keypoints", [], "name at least one")
        self.dataset, self.keep, self.seed = dataset, keep, seed
        self.categories = categories
        self.name = f"{dataset.name}-{keep.replace('_', '-')}"
        self.unit, self.problems = dataset.unit, dataset.problems
        # The extent of fewer keypoints would be another threshold; the box of a pair then holds that of all of them.
        self.threshold = "bbox" if dataset.threshold == "keypoints" else dataset.threshold
        shown = [(pair.category, pair.visible) for pair in (dataset[index] for index in range(len(dataset)))]
        counts: dict[str, int] = {}
        for category, visible in shown:
            counts[category] = max(counts.get(category, 0), len(visible))
        for category in [*(categories or ()), *(keypoints if isinstance(keypoints, dict) else ())]:
            if category not in counts:
                argument = "categories" if keypoints is None else "keypoints"
                raise InputError(argument, category, f"no such category; choose from {', '.join(counts)}")
        if isinstance(keypoints, dict):
            self._held = {name: _rows(dataset, name, rows, counts[name]) for name, rows in keypoints.items()}
        elif keypoints is not None:
            if not 0 < keypoints < 1:
                raise InputError("keypoints", keypoints, "use a fraction between 0 and 1, or rows by category")
            self._held = {name: _drawn(dataset, name, count, keypoints, seed) for name, count in counts.items()}
        else:
            self._held = {}
        self.keypoints = {category: sorted(rows) for category, rows in self._held.items()} if keypoints else None
        self._indices = [index for index, (category, visible) in enumerate(shown) if self._keeps(category, visible)]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        pair = self.dataset[self._indices[index]]
        if self.dataset.threshold == "keypoints":
            pair = replace(pair, target=replace(pair.target, bbox=_extent(pair)))
        if self.keypoints is not None:
            kept = self._kept_rows(pair.category, len(pair.visible))
            source = replace(pair.source, visible=pair.source.visible & kept)
            pair = replace(pair, source=source, target=replace(pair.target, visible=pair.target.visible & kept))
        return replace(pair, index=index)

    def image(self, image_id: str) -> Tensor:
        """`(3, H, W)` uint8 RGB from the whole data set."""
        return self.dataset.image(image_id)

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        """The names of the whole data set: rows stay."""
        return self.dataset.keypoint_names(category)

    def keypoint_groups(self, category: str) -> tuple[tuple[int, ...], ...]:
        """The groups of the whole data set: rows stay."""
        return self.dataset.keypoint_groups(category)

    def files(self) -> tuple[Path, ...]:
        """The image files of the whole data set."""
        return self.dataset.files()

    def _keeps(self, category: str, visible: Tensor) -> bool:
        if self.categories is not None:
            return (category in self.categories) == (self.keep == "held_out")
        return bool((visible & self._kept_rows(category, len(visible))).any())

    def _kept_rows(self, category: str, count: int) -> Tensor:
        """`(count,)` bool: rows of a pair that belong to this part."""
        held = torch.zeros(count, dtype=torch.bool)
        held[sorted(row for row in self._held.get(category, ()) if row < count)] = True
        return held if self.keep == "held_out" else ~held


def _rows(dataset: PairDataset, category: str, keypoints: list[int | str], count: int) -> set[int]:
    """Row numbers of keypoints given by number or name."""
    names = dataset.keypoint_names(category)
    found = set()
    for keypoint in keypoints:
        row = keypoint if isinstance(keypoint, int) else names.index(keypoint) if keypoint in names else -1
        if not 0 <= row < count:
            known = f" or one of {', '.join(names)}" if names else ""
            raise InputError("keypoints", keypoint, f"{category} has rows 0 to {count - 1}; use one{known}")
        found.add(row)
    return found


def _drawn(dataset: PairDataset, category: str, count: int, fraction: float, seed: int) -> set[int]:
    """Rows that are held out by their own draws, groups as one."""
    leader: Mapping[int, int] = {row: min(group) for group in dataset.keypoint_groups(category) for row in group}

    def draw(row: int) -> float:
        return float(np.random.default_rng([seed, zlib.crc32(category.encode()), leader.get(row, row)]).random())

    return {row for row in range(count) if draw(row) < fraction}


def _extent(pair: Pair) -> Tensor:
    """`(4,)` box around the target keypoints that both images show; zeros where there are none."""
    points = pair.target.keypoints[pair.visible]
    return torch.cat([points.amin(0), points.amax(0)]) if len(points) else torch.zeros(4)
