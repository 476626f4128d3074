"""Splits and pairs of the AP-10K correspondence benchmark, the same on every machine."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from random import Random
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ditf_probe.data.instances import Indices, Instance
from ditf_probe.errors import InputError, check_choice

Split = Literal["train", "val", "test"]
Kind = Literal["intra-species", "cross-species", "cross-family"]

TEST_IMAGES: Final = 30
"""The last images of a species, which are its test images."""
VAL_IMAGES: Final = 20
"""The images before them, which validate; whatever comes earlier trains."""
FEWEST_SHARED: Final = 3
"""A pair shares at least so many visible keypoints."""
TRAIN_PAIRS_PER_IMAGE: Final = 50
"""Most training pairs of a species, for each of its training images."""
LIMITS: Final = {
    ("cross-species", "val"): 400,  # per family
    ("cross-species", "test"): 900,
    ("cross-family", "val"): 20,  # per pair of families
    ("cross-family", "test"): 30,
}
"""Most pairs of a group. Pairs within a species have no limit but in training."""

_T = TypeVar("_T")


def split_members(members: Sequence[_T], split: Split) -> Sequence[_T]:
    """The images of one split among those of a species, in their order.

    The last 30 test, the 20 before them validate, the others train. A species with 30 images or fewer gives all of
    them to the test, one with 50 or fewer trains on none; the code of GeoAware-SC names argali sheep, black bear and
    king cheetah as such.
    """
    test = min(TEST_IMAGES, len(members))
    val = min(VAL_IMAGES, len(members) - test)
    ends = {"train": len(members) - test - val, "val": len(members) - test, "test": len(members)}
    starts = {"train": 0, "val": ends["train"], "test": ends["val"]}
    return members[starts[split] : ends[split]]


def form_pairs(
    animals: Sequence[Instance], weights: NDArray[np.float64], split: Split, kind: Kind, seed: int
) -> Indices:
    """The pairs of one split and kind.

    Groups come in sorted order: species, families with several species, or pairs of families. Of two species or
    families the first one in sorted order gives the sources, as in the code of GeoAware-SC, where the random exchange
    has no effect; within a species the order of the images is shuffled. Every group draws from a generator of its
    own, seeded with `seed` and its name, so that its pairs do not depend on the other groups.

    Args:
        animals: All usable images of all splits, sorted by file name.
        weights: `(N, K)`: 1 for a visible keypoint, 0 for an invisible one. A pair needs a sum of products of 3.
        split: The split.
        kind: Which images are paired.
        seed: Seed of the draws.

    Returns:
        `(P, 2)` int64 indices into `animals`.

    Raises:
        InputError: The kind has no such split, or no pair can be formed.
    """
    check_choice("split", split, Split)
    check_choice("kind", kind, Kind)
    if split == "train" and kind != "intra-species":
        raise InputError("split", split, f"{kind} pairs exist for val and test only; train on intra-species pairs")
    families = _families(animals, split)
    groups = _within_species(families) if kind == "intra-species" else _across(families, kind)
    found = [np.zeros((0, 2), np.int64)]
    for name, sides in groups:
        rng = Random(f"{seed}/{kind}/{split}/{name}")
        if kind == "intra-species":
            sides = [(_shuffled(sides[0][0], rng),) * 2]
        limit = LIMITS.get((kind, split))
        if split == "train":
            limit = TRAIN_PAIRS_PER_IMAGE * len(sides[0][0])
        candidates = np.concatenate([_sharing(a, b, weights, kind == "intra-species") for a, b in sides])
        found.append(_drawn(candidates, limit, rng))
    pairs = np.concatenate(found)
    if not len(pairs):
        species = sum(len(members) for members in families.values())
        images = sum(len(rows) for members in families.values() for rows in members.values())
        numbers = f"{split} has images: {images}, species: {species}, families: {len(families)}"
        raise InputError("kind", kind, f"forms no pair: {numbers}; choose another kind or restore the images")
    return pairs


_Families = dict[str, dict[str, Indices]]
_Sides = list[tuple[Indices, Indices]]


def _families(animals: Sequence[Instance], split: Split) -> _Families:
    """Family to species to the indices of its images in the split; sorted by name, none empty."""
    species: dict[tuple[str, str], list[int]] = {}
    for index, animal in enumerate(animals):
        species.setdefault((animal.family, animal.category), []).append(index)
    families: _Families = {}
    for (family, name), indices in sorted(species.items()):
        members = split_members(indices, split)
        if members:
            families.setdefault(family, {})[name] = np.array(members, dtype=np.int64)
    return families


def _within_species(families: _Families) -> Iterator[tuple[str, _Sides]]:
    for members in families.values():
        for species, rows in members.items():
            yield species, [(rows, rows)]


def _across(families: _Families, kind: Kind) -> Iterator[tuple[str, _Sides]]:
    """Per family the pairs of its species, or per pair of families all their images."""
    if kind == "cross-species":
        for family, members in families.items():
            if len(members) > 1:
                yield family, list(combinations(members.values(), 2))
        return
    whole = {family: np.concatenate(list(members.values())) for family, members in families.items()}
    for first, second in combinations(whole, 2):
        yield f"{first}-{second}", [(whole[first], whole[second])]


def _sharing(a: Indices, b: Indices, weights: NDArray[np.float64], within: bool) -> Indices:
    """`(M, 2)`: the pairs that share enough keypoints; of two images of one list the earlier one is the source."""
    enough = weights[a] @ weights[b].T >= FEWEST_SHARED
    rows, columns = np.nonzero(np.triu(enough, k=1) if within else enough)
    return np.stack([a[rows], b[columns]], axis=1)


def _drawn(candidates: Indices, limit: int | None, rng: Random) -> Indices:
    """At most `limit` of the candidates, in their order."""
    if limit is None or len(candidates) <= limit:
        return candidates
    return candidates[np.sort(_order(len(candidates), rng)[:limit])]


def _shuffled(rows: Indices, rng: Random) -> Indices:
    return rows[_order(len(rows), rng)]


def _order(count: int, rng: Random) -> Indices:
    # Python promises the stream of `random` for all its versions, but not that of `sample` and `shuffle`.
    return np.argsort([rng.random() for _ in range(count)], kind="stable")
