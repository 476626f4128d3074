"""Held-out categories and keypoints: nothing of them is in the rest, and thresholds stay."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from ditf_probe.data import HeldOut, Pair, PairDataset, Side, SyntheticPairs, threshold_base
from ditf_probe.errors import InputError
from ditf_probe.tasks.settings import dataset_settings

NAMES = {
    "cat": ("nose", "left ear", "right ear", "tail", "chin"),
    "bus": ("lamp", "left wheel", "right wheel", "door", "roof"),
}
COUNTS = {"cat": 5, "bus": 5}


class Drawn(PairDataset):
    """Pairs with random keypoints, of which about half are visible."""

    name, unit = "drawn", "photo"

    def __init__(
        self, num_pairs: int = 40, threshold: str = "bbox", seed: int = 0, order: Sequence[str] = ("cat", "bus")
    ) -> None:
        self.threshold = threshold
        random = torch.Generator().manual_seed(seed)

        def side(number: int) -> Side:
            points = 50 * torch.rand(5, 2, generator=random)
            visible = torch.rand(5, generator=random) < 0.7
            return Side(f"photo/{number}", (50, 50), points, visible, torch.tensor([1.0, 2.0, 41.0, 32.0]))

        self.pairs = [
            Pair(i, order[i % 2], f"unit {i}", side(2 * i), side(2 * i + 1), i, {"scale": "easy"})
            for i in range(num_pairs)
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]

    def image(self, image_id: str) -> Tensor:
        return torch.full((3, 50, 50), int(image_id.split("/")[1]), dtype=torch.uint8)

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        return NAMES[category]

    def keypoint_groups(self, category: str) -> tuple[tuple[int, ...], ...]:
        return ((1, 2),)


def visible_keypoints(dataset: PairDataset) -> set[tuple[str, str, int]]:
    """Every keypoint that a pair compares: source image, category and row."""
    return {
        (pair.source.image_id, pair.category, row)
        for pair in (dataset[i] for i in range(len(dataset)))
        for row in pair.visible.nonzero()[:, 0].tolist()
    }


def test_categories_are_split_by_pair() -> None:
    whole = Drawn()
    held, rest = (HeldOut(whole, categories=["bus"], keep=keep) for keep in ("held_out", "rest"))
    assert {pair.category for pair in held} == {"bus"}
    assert {pair.category for pair in rest} == {"cat"}
    assert len(held) + len(rest) == len(whole)
    for part in (held, rest):
        assert [pair.index for pair in part] == list(range(20))
        originals = {pair.unit: pair for pair in whole.pairs}
        for pair in part:
            same = originals[pair.unit]
            assert pair.source is same.source
            assert (pair.target, pair.label, pair.attributes) == (same.target, same.label, same.attributes)
            assert part.image(pair.source.image_id).equal(whole.image(pair.source.image_id))
    assert (held.name, rest.name) == ("drawn-held-out", "drawn-rest")
    assert held.unit == "photo"
    with pytest.raises(IndexError):
        held[20]


@pytest.mark.parametrize("keypoints", [0.4, {"cat": [0, "tail"], "bus": ["left wheel"]}, {"cat": ["chin"]}])
def test_keypoints_are_split_by_row(keypoints: Any) -> None:
    whole = Drawn()
    held, rest = (HeldOut(whole, keypoints=keypoints, keep=keep) for keep in ("held_out", "rest"))
    compared, others = visible_keypoints(held), visible_keypoints(rest)
    assert compared | others == visible_keypoints(whole)
    assert not {(category, row) for _, category, row in compared} & {(category, row) for _, category, row in others}
    assert compared
    assert others
    if isinstance(keypoints, dict):
        named = {"cat": {0, 3}, "bus": {1}} if len(keypoints) == 2 else {"cat": {4}}
        assert {(category, row) for _, category, row in compared} == {(c, row) for c in named for row in named[c]}
    for part in (held, rest):
        assert all(pair.visible.any() for pair in part)
        assert [pair.index for pair in part] == list(range(len(part)))
        assert part.keypoint_names("cat") == NAMES["cat"]
        assert part.keypoint_groups("cat") == ((1, 2),)
        for pair in part:
            # Rows of the other part are hidden in each image, not only in the pair.
            own = {row for _, category, row in (compared if part is held else others) if category == pair.category}
            for side in (pair.source, pair.target):
                assert set(side.visible.nonzero()[:, 0].tolist()) <= own
            assert len(pair.visible) == 5


def test_draws_are_the_same_in_every_split_and_keep_groups_together() -> None:
    whole, split = Drawn(), Drawn(4, seed=1, order=("bus", "cat"))
    chosen = [HeldOut(whole, keypoints=0.4, seed=seed).keypoints for seed in range(100)]
    other = [HeldOut(split, keypoints=0.4, seed=seed).keypoints for seed in range(100)]
    assert chosen == other
    assert all((1 in rows) == (2 in rows) for held in chosen for rows in held.values())
    share = [len(rows) / COUNTS[name] for held in chosen for name, rows in held.items()]
    # Five keypoints, two of them drawn as one: the mean lies within 5 standard errors of 0.4.
    assert abs(sum(share) / len(share) - 0.4) < 5 * (0.24 * (3 + 4) / 25 / len(share)) ** 0.5
    assert len({str(held) for held in chosen}) > 20


def test_thresholds_stay() -> None:
    for threshold in ("bbox", "keypoints", "image"):
        whole = Drawn(threshold=threshold)
        originals = {pair.unit: pair for pair in whole.pairs}
        for keep in ("held_out", "rest"):
            part = HeldOut(whole, keypoints=0.4, keep=keep)
            assert len(part)
            for pair in part:
                expected = threshold_base(originals[pair.unit], threshold)
                assert threshold_base(pair, part.threshold) == pytest.approx(expected, abs=1e-5)


def test_parts_of_parts() -> None:
    inner = HeldOut(Drawn(), categories=["bus"], keep="rest")
    part = HeldOut(inner, keypoints={"cat": ["nose"]})
    assert {(category, row) for _, category, row in visible_keypoints(part)} == {("cat", 0)}
    facts = dataset_settings(part)
    assert facts is not None
    assert facts["keypoints"] == {"cat": [0]}
    assert facts["dataset"]["categories"] == ["bus"]
    assert facts["dataset"]["dataset"]["class"].endswith("Drawn")


def test_bad_arguments() -> None:
    whole = Drawn()
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "give either `categories` or `keypoints`"),
        ({"categories": ["cat"], "keypoints": 0.5}, "give either"),
        ({"categories": []}, r"`categories` is \[\]: name at least one"),
        ({"keypoints": {}}, r"`keypoints` is \[\]: name at least one"),
        ({"categories": ["dog"]}, "`categories` is 'dog': no such category; choose from cat, bus"),
        ({"keypoints": {"dog": [1]}}, "`keypoints` is 'dog': no such category"),
        ({"keypoints": {"cat": [5]}}, "`keypoints` is 5: cat has rows 0 to 4; use one or one of nose, left ear"),
        ({"keypoints": {"cat": ["wing"]}}, "`keypoints` is 'wing'"),
        ({"keypoints": 0.0}, "use a fraction between 0 and 1"),
        ({"keypoints": 1}, "use a fraction between 0 and 1"),
        ({"categories": ["cat"], "keep": "both"}, "`keep`"),
        ({"categories": ["cat"], "seed": -1}, "`seed`"),
    ]
    for arguments, message in cases:
        with pytest.raises(InputError, match=message):
            HeldOut(whole, **arguments)


def test_a_config_nests_it() -> None:
    parser = ArgumentParser()
    parser.add_argument("--data", type=PairDataset)
    inner = {"class_path": "ditf_probe.data.synthetic.SyntheticPairs", "init_args": {"num_pairs": 12}}
    names = SyntheticPairs(num_pairs=12)[0]
    held = {names.category: [0, SyntheticPairs(num_pairs=12).keypoint_names(names.category)[2]]}
    cases = [({"keypoints": held}, [0, 2]), ({"categories": [names.category]}, None), ({"keypoints": 0.5}, None)]
    for given, rows in cases:
        settings = {"class_path": "ditf_probe.data.subsets.HeldOut", "init_args": {"dataset": inner, **given}}
        built = parser.instantiate(parser.parse_object({"data": settings})).data
        assert isinstance(built, HeldOut)
        assert len(built)
        if rows:
            assert built.keypoints == {names.category: rows}
