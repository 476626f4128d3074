"""Some pairs per category: how many, which ones, and that everything else is that of the whole list."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.data.per_category import Fraction, PairsPerCategory
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.errors import InputError
from ditf_probe.tasks.settings import dataset_settings


class Lettered(PairDataset):
    """Forty pairs of categories a, b, b, c, c, c and again; every image is named by its pair."""

    name, unit = "lettered", "pair"

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Pair:
        nothing = torch.zeros(0, 2)
        side = Side(f"{index}", (4, 4), nothing, torch.zeros(0, dtype=torch.bool), torch.zeros(4))
        return Pair(index, "abbccc"[index % 6], f"{index}", side, side)

    def image(self, image_id: str) -> Tensor:
        return torch.full((3, 4, 4), int(image_id), dtype=torch.uint8)

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        return (category,)


def drawn(some: PairDataset) -> list[int]:
    return [int(some[i].source.image_id) for i in range(len(some))]


def test_at_most_so_many_of_each_category_in_the_order_of_the_list() -> None:
    some = PairsPerCategory(Lettered(), 9, seed=1)
    # a has 7 pairs in all, b 14, c 19.
    assert Counter(some[i].category for i in range(len(some))) == {"a": 7, "b": 9, "c": 9}
    assert [some[i].index for i in range(len(some))] == list(range(25))
    assert drawn(some) == sorted(set(drawn(some)))
    assert some.image("7").unique().tolist() == [7]
    assert some.keypoint_names("b") == ("b",)
    with pytest.raises(IndexError):
        some[25]


def test_the_draw_depends_on_the_seed_alone() -> None:
    assert drawn(PairsPerCategory(Lettered(), 2, 0)) == drawn(PairsPerCategory(Lettered(), 2, 0))
    assert drawn(PairsPerCategory(Lettered(), 2, 0)) != drawn(PairsPerCategory(Lettered(), 2, 1))
    assert drawn(PairsPerCategory(Lettered(), 1000)) == list(range(40))


def test_records_name_the_whole_list_and_the_draw() -> None:
    facts = dataset_settings(PairsPerCategory(SyntheticPairs("test", 2, 32), 1, seed=7))
    assert facts is not None
    assert (facts["pairs_per_category"], facts["pairs_seed"]) == (1, 7)
    whole = facts["dataset"]
    assert whole["class"] == "ditf_probe.data.synthetic.SyntheticPairs"
    assert (whole["split"], whole["num_pairs"]) == ("test", 2)


def test_no_pair_of_a_category_is_refused() -> None:
    with pytest.raises(InputError, match=r"`pairs_per_category` is 0"):
        PairsPerCategory(Lettered(), 0)


@pytest.mark.parametrize("seed", range(5))
def test_fractions_are_nested_and_rounded_up(seed: int) -> None:
    sizes = {"a": 7, "b": 14, "c": 19}
    smaller: set[int] = set()
    for percent in (1, 5, 7, 25, 35, 50, 99, 100):
        some = Fraction(Lettered(), percent / 100, seed)
        found = drawn(some)
        counts = Counter(some[i].category for i in range(len(some)))
        assert counts == {name: max(1, -(-percent * size // 100)) for name, size in sizes.items()}
        assert found == sorted(set(found))
        assert smaller <= set(found)
        smaller = set(found)
    assert smaller == set(range(40))
    assert drawn(Fraction(Lettered(), 0.25, seed)) != drawn(Fraction(Lettered(), 0.25, seed + 1))


def test_a_fraction_of_other_categories_draws_the_same() -> None:
    class Without(Lettered):
        def __getitem__(self, index: int) -> Pair:
            pair = super().__getitem__(index)
            return replace(pair, category="z") if pair.category == "a" else pair

    def of(dataset: PairDataset) -> list[int]:
        some = Fraction(dataset, 0.3)
        return [i for i, pair in zip(drawn(some), some, strict=True) if pair.category in "bc"]

    assert of(Without()) == of(Lettered())


def test_a_fraction_in_a_configuration_and_in_records() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--train", type=PairDataset)
    whole = {"class_path": "ditf_probe.data.SyntheticPairs", "init_args": {"split": "train", "num_pairs": 24}}
    words = {"class_path": "ditf_probe.data.Fraction", "init_args": {"dataset": whole, "fraction": 0.25, "seed": 3}}
    train = parser.instantiate(parser.parse_object({"train": words})).train
    facts = dataset_settings(train)
    assert facts is not None
    assert (facts["fraction"], facts["seed"], facts["dataset"]["num_pairs"]) == (0.25, 3, 24)
    pair = train[0]
    assert torch.equal(train.image(pair.source.image_id), train.dataset.image(pair.source.image_id))
    assert train.keypoint_groups(pair.category) == train.dataset.keypoint_groups(pair.category)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_no_such_fraction(fraction: float) -> None:
    with pytest.raises(InputError, match="`fraction` is"):
        Fraction(Lettered(), fraction)
