"""Flipped images are images of their own, whose left and right keypoints trade rows."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ditf_probe.data.flipped import Flipped, flipped_side
from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.errors import InputError
from ditf_probe.tasks.settings import dataset_settings

FACE = ("left eye", "Right_Ear", "nose", "right eye", "Left_Ear")
SWAPPED = [3, 4, 2, 0, 1]


class Dots(PairDataset):
    """A pair of 20 x 30 pictures in which every visible keypoint is a pixel of a colour of its own."""

    name, unit, threshold = "dots", "photo", "image"

    def __init__(self, names: Sequence[str] = FACE, count: int = 5) -> None:
        self.names, self.count = tuple(names), count

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < 3:
            raise IndexError(index)
        return Pair(
            index, "face", f"unit {index}", self.side(2 * index), self.side(2 * index + 1), 4, {"scale": "easy"}
        )

    def side(self, number: int) -> Side:
        random = torch.Generator().manual_seed(number)
        columns, rows = torch.randperm(30, generator=random)[: self.count], torch.randperm(20, generator=random)
        points = torch.stack([columns, rows[: self.count]], dim=1).float()
        visible = torch.rand(self.count, generator=random) < 0.7
        return Side(f"dots/{number}", (20, 30), points, visible, torch.tensor([2.0, 3.0, 20.0, 11.0]))

    def image(self, image_id: str) -> Tensor:
        side = self.side(int(image_id.split("/")[1]))
        image = torch.zeros(3, 20, 30, dtype=torch.uint8)
        for row, (x, y) in enumerate(side.keypoints.long().tolist()):
            image[0, y, x] = row + 1 if side.visible[row] else 0
        return image

    def keypoint_names(self, category: str) -> tuple[str, ...]:
        return self.names

    def keypoint_groups(self, category: str) -> tuple[tuple[int, ...], ...]:
        return ((0, 3),)


def seen(side: Side, image: Tensor) -> dict[int, int]:
    """Row of each visible keypoint to the colour of its pixel."""
    found = {}
    for row, (x, y) in enumerate(side.keypoints.long().tolist()):
        if side.visible[row]:
            found[row] = int(image[0, y, x]) - 1
    return found


@pytest.mark.parametrize("flip", ["both", "target"])
def test_keypoints_stay_on_their_pixels_and_left_and_right_trade_rows(flip: Any) -> None:
    plain, dataset = Dots(), Flipped(Dots(), flip)
    assert len(dataset) == 6
    for index in range(6):
        pair = dataset[index]
        flipped = {"source": index >= 3 and flip == "both", "target": index >= 3}
        assert pair.index == index
        assert (pair.unit, pair.label, pair.attributes) == (f"unit {index % 3}", 4, {"scale": "easy"})
        for name, turned in flipped.items():
            side, own = getattr(pair, name), getattr(plain[index % 3], name)
            assert side.image_id == own.image_id + ("/flip" if turned else "")
            image = dataset.image(side.image_id)
            expected = {row: SWAPPED[row] if turned else row for row in side.visible.nonzero()[:, 0].tolist()}
            assert seen(side, image) == expected
            assert int(side.visible.sum()) == int(own.visible.sum())
            torch.testing.assert_close(
                image, plain.image(own.image_id).flip(2) if turned else plain.image(own.image_id)
            )
    with pytest.raises(IndexError):
        dataset[6]


def test_the_box_is_flipped_and_twice_is_once_nothing() -> None:
    side = Dots().side(0)
    once = flipped_side(side, SWAPPED)
    assert once.bbox.tolist() == [29 - 20, 3, 29 - 2, 11]
    twice = flipped_side(once, SWAPPED)
    assert twice.image_id == "dots/0/flip/flip"
    for name in ("keypoints", "visible", "bbox"):
        assert torch.equal(getattr(twice, name), getattr(side, name))


def test_names_that_tell_nothing_need_swaps_where_one_image_is_flipped() -> None:
    numbers = Dots([str(row) for row in range(5)])
    with pytest.raises(InputError, match=r"`flip` is 'target': the keypoints of face have no names.*swaps"):
        Flipped(numbers, "target")
    both = Flipped(numbers, "both")[4]
    assert seen(both.target, Flipped(numbers).image(both.target.image_id)) == {
        row: row for row in both.target.visible.nonzero()[:, 0].tolist()
    }
    told = Flipped(numbers, "target", swaps={"face": [[0, 3], [1, 4]]})
    assert torch.equal(told[4].target.keypoints, Flipped(Dots(), "target")[4].target.keypoints)
    assert dataset_settings(told)["swaps"] == {"face": [[0, 3], [1, 4]]}  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flip": "left"}, "`flip` is 'left'"),
        ({"swaps": {"cat": [[0, 1]]}}, "no such category; choose from face"),
        ({"swaps": {"face": [[0, 5]]}}, "rows 0 to 4"),
        ({"swaps": {"face": [[2, 2]]}}, "pairs of different ones"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Flipped(Dots(), **options)


def test_pairs_of_any_number_of_nameless_keypoints() -> None:
    class Growing(Dots):
        def side(self, number: int) -> Side:
            self.count = 2 + number // 2
            return super().side(number)

    dataset = Flipped(Growing(()), "both")
    assert [len(dataset[index].visible) for index in range(6)] == [2, 3, 4, 2, 3, 4]


def test_drawn_faces_keep_their_own_left() -> None:
    """The left eye of a drawn face is its own left, also in pictures that are drawn mirrored."""
    dataset = Flipped(SyntheticPairs("train", 8, 32), "target")
    for index in range(8, 16):
        pair, plain = dataset[index], dataset[index - 8]
        names = dataset.keypoint_names(pair.category)
        for row, name in enumerate(names):
            other = name.replace("left", "*").replace("right", "left").replace("*", "right")
            x, y = plain.target.keypoints[names.index(other)].tolist()
            assert pair.target.keypoints[row].tolist() == pytest.approx([31 - x, y])


def test_every_image_of_a_flip_is_an_image_of_its_own() -> None:
    dataset = Flipped(Dots())
    ids = dataset.image_ids()
    assert len(ids) == len(set(ids)) == 12
    assert list(dataset.image_sizes()) == ids
    assert sum(name.endswith("/flip") for name in ids) == 6
