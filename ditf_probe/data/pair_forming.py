"""Pairs of two images of one category: all of them, or a seeded draw."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random
from typing import Final

import numpy as np

from ditf_probe.data.instances import Indices, Instance
from ditf_probe.errors import InputError

MOST_PAIRS: Final = 2_000_000
"""Above so many candidates pairs are drawn one by one; "all" would be more than anybody evaluates."""
_TRIES_PER_PAIR = 200


def pairs_within_categories(
    instances: Sequence[Instance], num_pairs: int | None, min_visible: int, seed: int
) -> Indices:
    """Ordered pairs of two images of one category that share visible keypoints.

    Args:
        instances: The annotated objects; two of one picture make no pair.
        num_pairs: Draws so many, or all where there are fewer; None takes all ordered pairs, category by category.
        min_visible: Fewest keypoints that are visible in both.
        seed: Seed of the draw.

    Returns:
        `(N, 2)` int64 indices into the instances.

    Raises:
        InputError: No pair can be formed, or too many for a list of all.
    """
    categories: dict[str, list[int]] = {}
    for index, instance in enumerate(instances):
        categories.setdefault(instance.category, []).append(index)
    groups = [np.array(members, dtype=np.int64) for _, members in sorted(categories.items())]
    total = sum(len(group) * (len(group) - 1) for group in groups)
    if total <= MOST_PAIRS:
        pairs = _all_pairs(instances, groups, min_visible)
        if num_pairs is not None and num_pairs < len(pairs):
            rng = Random(seed)
            # Python promises the stream of `random` for all its versions, but not that of `sample`.
            keys = [rng.random() for _ in range(len(pairs))]
            pairs = pairs[np.sort(np.argsort(keys, kind="stable")[:num_pairs])]
    elif num_pairs is None:
        raise InputError("num_pairs", None, f"there are up to {total:,} pairs; give the number to draw")
    else:
        pairs = _tried_pairs(instances, groups, num_pairs, min_visible, Random(seed))
    if not len(pairs):
        shared = f"no two of {len(instances)} images of a category share {min_visible} visible keypoints"
        raise InputError("min_visible", min_visible, f"{shared}; use fewer, or annotate more")
    return pairs


def _all_pairs(instances: Sequence[Instance], groups: Sequence[Indices], min_visible: int) -> Indices:
    found = [np.zeros((0, 2), np.int64)]
    for group in groups:
        sides = [instances[i].side for i in group]
        visible = np.stack([side.visible.numpy() for side in sides]).astype(np.int64)
        images = np.array([side.image_id for side in sides])
        allowed = (visible @ visible.T >= min_visible) & (images[:, None] != images[None, :])
        rows, columns = np.nonzero(allowed)
        found.append(np.stack([group[rows], group[columns]], axis=1))
    return np.concatenate(found)


def _tried_pairs(
    instances: Sequence[Instance], groups: Sequence[Indices], num_pairs: int, min_visible: int, rng: Random
) -> Indices:
    """Candidates drawn evenly from all categories until enough of them qualify."""
    ends = list(accumulate(len(group) * (len(group) - 1) for group in groups))
    found: dict[tuple[int, int], None] = {}
    for _ in range(_TRIES_PER_PAIR * num_pairs):
        place = int(rng.random() * ends[-1])
        number = bisect_right(ends, place)
        group = groups[number]
        row, column = divmod(place - (ends[number - 1] if number else 0), len(group) - 1)
        source, target = int(group[row]), int(group[column + (column >= row)])
        a, b = instances[source].side, instances[target].side
        if a.image_id != b.image_id and int((a.visible & b.visible).sum()) >= min_visible:
            found[source, target] = None
        if len(found) == num_pairs:
            return np.array(list(found), dtype=np.int64)
    remedy = f"found only {len(found)} pairs that share {min_visible} visible keypoints; use fewer pairs or keypoints"
    raise InputError("num_pairs", num_pairs, remedy)
