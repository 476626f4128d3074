"""Pairs once more with flipped images, which are images of their own: features of a flip are no flipped features."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ditf_probe.data.instances import mirrored_groups
from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.errors import InputError, check_choice
from ditf_probe.geometry import mirror_points

Flip = Literal["both", "target"]
ENDING = "/flip"


class Flipped(PairDataset):
    """A data set of pairs followed by the same pairs with flipped images, whose ids end in `/flip`.

    In a flipped image a left ear looks like a right one, so left and right keypoints trade rows. Which do follows from
    their names ("left eye" and "right eye", whatever `keypoint_groups` says of them), or is told by `swaps`. Keypoints
    that `keypoint_groups` puts together and that do not trade places, such as front and back wheels, keep their rows.

    Args:
        dataset: The pairs.
        flip: "both" images of a pair, or its "target" alone, so that a match has to tell left from right.
        swaps: Category to pairs of rows that trade places, in place of what names tell; needed where a data set has no
            names but numbers, such as SPair-71k, and "target" is asked for.

    Raises:
        InputError: Rows that are not there, or names that do not tell left from right where they have to.
    """

    def __init__(
        self, dataset: PairDataset, flip: Flip = "both", swaps: Mapping[str, Sequence[Sequence[int]]] | None = None
    ) -> None:
        check_choice("flip", flip, Flip)
        self.dataset, self.flip = dataset, flip
        self.swaps = None if swaps is None else {name: [list(rows) for rows in pairs] for name, pairs in swaps.items()}
        self.name, self.unit, self.threshold = f"{dataset.name}-flipped", dataset.unit, dataset.threshold
        self.problems = dataset.problems
        counts: dict[str, int] = {}
        for pair in (dataset[index] for index in range(len(dataset))):
            counts[pair.category] = max(counts.get(pair.category, 0), len(pair.visible))
        for category in self.swaps or ():
            if category not in counts:
                raise InputError("swaps", category, f"no such category; choose from {', '.join(counts)}")
        self._orders = {category: self._order(category, count) for category, count in counts.items()}

    def __len__(self) -> int:
        return 2 * len(self.dataset)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        pair = self.dataset[index % len(self.dataset)]
        if index < len(self.dataset):
            return replace(pair, index=index)
        order = self._orders[pair.category][: len(pair.visible)]
        source = pair.source if self.flip == "target" else flipped_side(pair.source, order)
        return replace(pair, index=index, source=source, target=flipped_side(pair.target, order))

    def image(self, image_id: str) -> Tensor:
        """`(3, H, W)` uint8 RGB: that of the whole data set, or its mirror image."""
        image = self.dataset.image(image_id.removesuffix(ENDING))
        return image.flip(-1) if image_id.endswith(ENDING) else image

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        """As in the data set: rows keep their meaning."""
        return self.dataset.keypoint_names(category)

    def keypoint_groups(self, category: str) -> tuple[tuple[int, ...], ...]:
        """As in the data set."""
        return self.dataset.keypoint_groups(category)

    def files(self) -> tuple[Path, ...]:
        """Those of the data set."""
        return self.dataset.files()

    def _order(self, category: str, count: int) -> list[int]:
        """Which row of an image each row of its flip is."""
        names = self.dataset.keypoint_names(category)
        if self.swaps is not None:
            pairs = self.swaps.get(category, [])
        elif any(letter.isalpha() for name in names for letter in name):
            pairs = [list(rows) for rows in mirrored_groups(names)]
        elif self.flip == "target":
            remedy = f"the keypoints of {category} have no names that tell left from right, give `swaps` or use both"
            raise InputError("flip", self.flip, remedy)
        else:
            pairs = []
        order = list(range(count))
        for rows in pairs:
            if len(rows) != 2 or len(set(rows)) < 2 or not all(0 <= row < count for row in rows):
                raise InputError("swaps", rows, f"{category} has rows 0 to {count - 1}; give pairs of different ones")
            order[rows[0]], order[rows[1]] = rows[1], rows[0]
        return order


def flipped_side(side: Side, order: Sequence[int]) -> Side:
    """What is annotated in the mirror image.

    Args:
        side: What is annotated in the image.
        order: For each row of the result, the row whose keypoint it takes; a shorter list leaves the rest out.
    """
    rows = torch.tensor(order, dtype=torch.int64)
    width = side.size[1]
    corners = mirror_points(side.bbox.reshape(2, 2), width)
    bbox = torch.stack([corners[1, 0], corners[0, 1], corners[0, 0], corners[1, 1]])
    points = mirror_points(side.keypoints[rows], width)
    return replace(side, image_id=f"{side.image_id}{ENDING}", keypoints=points, visible=side.visible[rows], bbox=bbox)
