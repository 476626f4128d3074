"""Some pairs per category: how many, which ones, and that everything else is that of the whole list."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.data.per_category import PairsPerCategory
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
    # a has 7 pairs in all, b 13, c 20.
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
