"""Pairs of drawn objects: annotations, streams, errors, and the tricks that must not solve them."""

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from ditf_probe.data import synthetic
from ditf_probe.data.pairs import Pair, Side, threshold_base
from ditf_probe.data.synthetic import CATEGORIES, SyntheticPairs, class_index, draw_image
from ditf_probe.errors import InputError


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    dataset = SyntheticPairs("test", num_pairs=400)
    return [dataset[index] for index in range(400)]


@pytest.fixture(scope="module")
def sides(pairs: list[Pair]) -> list[Side]:
    return [side for pair in pairs for side in (pair.source, pair.target)]


def test_a_pair_that_is_changed_is_as_before_when_asked_for_again() -> None:
    dataset = SyntheticPairs("test", num_pairs=1)
    first = dataset[0].source
    kept = first.keypoints.clone(), first.visible.clone(), first.bbox.clone()
    for values in (first.keypoints, first.visible, first.bbox):
        values.zero_()
    again = dataset[0].source
    for values, expected in zip((again.keypoints, again.visible, again.bbox), kept, strict=True):
        assert torch.equal(values, expected)
        assert values.any()


def test_same_arguments_give_the_same_pictures_and_annotations() -> None:
    short, long = SyntheticPairs("val", num_pairs=5), SyntheticPairs("val", num_pairs=50)
    assert short.image_ids() == long.image_ids()[:10]
    for index in range(5):
        a = short[index]
        synthetic._known.cache_clear()
        b = long[index]
        assert (a.category, a.unit, a.label) == (b.category, b.unit, b.label)
        for one, other in ((a.source, b.source), (a.target, b.target)):
            assert one.image_id == other.image_id
            assert torch.equal(one.keypoints, other.keypoints)
            assert torch.equal(one.visible, other.visible)
            assert torch.equal(one.bbox, other.bbox)
            assert torch.equal(short.image(one.image_id), long.image(one.image_id))


def test_no_picture_is_in_two_streams() -> None:
    pictures = []
    for seed in (0, 1):
        for split in ("train", "val", "test"):
            dataset = SyntheticPairs(split, num_pairs=16, image_size=32, seed=seed)
            pictures += [dataset.image(image_id).numpy() for image_id in dataset.image_ids()]
            pictures += [draw_image(split, index, 32, seed)[0] for index in range(16)]
    digests = {hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures}
    assert len(digests) == len(pictures) == 2 * 3 * 48


def test_annotations_have_the_contracted_types(pairs: list[Pair]) -> None:
    dataset = SyntheticPairs("test", num_pairs=400)
    for pair in pairs[:16]:
        names = dataset.keypoint_names(pair.category)
        assert pair.label == class_index(pair.category) == pair.index % len(CATEGORIES)
        for side in (pair.source, pair.target):
            assert side.size == (64, 64)
            assert side.keypoints.shape == (len(names), 2)
            assert side.keypoints.dtype == side.bbox.dtype == torch.float32
            assert side.visible.shape == (len(names),)
            assert side.visible.dtype == torch.bool
            assert side.bbox.shape == (4,)
            image = dataset.image(side.image_id)
            assert image.shape == (3, 64, 64)
            assert image.dtype == torch.uint8


def test_units_and_ids_are_unique_and_listed_in_order(pairs: list[Pair]) -> None:
    ids = [side.image_id for pair in pairs for side in (pair.source, pair.target)]
    assert len(set(ids)) == 800
    assert ids == SyntheticPairs("test", num_pairs=400).image_ids()
    assert len({pair.unit for pair in pairs}) == 400


def test_categories_are_balanced(pairs: list[Pair]) -> None:
    counts = [sum(pair.category == name for pair in pairs) for name in CATEGORIES]
    assert counts == [50] * len(CATEGORIES)
    assert len(CATEGORIES) >= 8


def test_visible_keypoints_lie_in_the_picture_and_in_the_box(sides: list[Side]) -> None:
    for side in sides:
        assert (side.keypoints >= 0).all()
        assert (side.keypoints <= 63).all()
        points = side.keypoints[side.visible]
        assert (points >= side.bbox[:2] - 1e-3).all()
        assert (points <= side.bbox[2:] + 1e-3).all()
        assert (side.bbox >= -0.5).all()
        assert (side.bbox <= 63.5).all()


def test_most_keypoints_are_visible_but_not_all(pairs: list[Pair], sides: list[Side]) -> None:
    assert all(2 * int(side.visible.sum()) > len(side.visible) for side in sides)
    assert all(pair.visible.any() for pair in pairs)
    share = torch.cat([side.visible for side in sides]).float().mean()
    assert 0.75 < share < 0.95


def test_objects_vary_in_size(pairs: list[Pair]) -> None:
    sizes = np.array([threshold_base(pair, "bbox") for pair in pairs]) / 64
    assert sizes.min() < 0.55
    assert sizes.max() > 0.8
    assert ((sizes > 0.4) & (sizes < 0.9)).all()


@pytest.mark.parametrize("image_size", [16, 37, 160])
def test_another_size_shows_the_same_picture(image_size: int) -> None:
    small, large = SyntheticPairs("val", 16, 64), SyntheticPairs("val", 16, image_size)
    for index in range(16):
        a, b = small[index].source, large[index].source
        assert b.size == (image_size, image_size)
        assert torch.equal(a.visible, b.visible)
        scale = image_size / 64
        expected = (a.keypoints + 0.5) * scale - 0.5
        torch.testing.assert_close(b.keypoints[b.visible], expected[a.visible], atol=1e-3, rtol=0)
        torch.testing.assert_close(b.bbox, (a.bbox + 0.5) * scale - 0.5, atol=1e-3, rtol=0)


def test_pixels_follow_the_size() -> None:
    small, large = SyntheticPairs("val", 16, 64), SyntheticPairs("val", 16, 256)
    drawn = torch.stack([small.image(image_id) for image_id in small.image_ids()]).float()
    shrunk = torch.nn.functional.avg_pool2d(
        torch.stack([large.image(image_id) for image_id in large.image_ids()]).float(), 4
    )
    assert (drawn - shrunk).abs().mean() < 4  # rasterisation
    assert (drawn - shrunk.roll(1, 0)).abs().mean() > 40  # another picture


def _turn(side: Side, names: tuple[str, ...], base: str, tip: str, low: str, high: str) -> float | None:
    """Sign of the turn from (base to tip) to (low to high), None where one of them is invisible."""
    rows = [names.index(name) for name in (base, tip, low, high)]
    if not side.visible[rows].all():
        return None
    a, b, c, d = side.keypoints[rows].double()
    along, up = b - a, d - c
    return float(torch.sign(along[0] * up[1] - along[1] * up[0]))


@pytest.mark.parametrize(
    ("category", "base", "tip", "low", "high"),
    [
        ("face", "right eye", "left eye", "chin", "crown"),
        ("house", "right window", "left window", "door foot", "gable top"),
        ("flower", "right petal tip", "left petal tip", "pot base", "flower centre"),
    ],
)
def test_left_is_the_own_side_of_what_faces_the_viewer(
    pairs: list[Pair], category: str, base: str, tip: str, low: str, high: str
) -> None:
    names = SyntheticPairs().keypoint_names(category)
    turns = [
        _turn(side, names, base, tip, low, high)
        for pair in pairs
        if pair.category == category
        for side in (pair.source, pair.target)
    ]
    # the own left is at the right of an upright picture: right, then up (y points down) turns to the negative
    assert {turn for turn in turns if turn is not None} == {-1.0}
    assert len([turn for turn in turns if turn is not None]) > 20


@pytest.mark.parametrize(
    ("category", "base", "tip", "low", "high"),
    [
        ("car", "rear wheel", "front wheel", "front wheel", "front roof corner"),
        ("fish", "tail root", "mouth", "belly fin tip", "dorsal fin tip"),
        ("quadruped", "near hind foot", "near front foot", "near hind foot", "tail root"),
    ],
)
def test_what_is_seen_from_the_side_faces_either_way(
    pairs: list[Pair], category: str, base: str, tip: str, low: str, high: str
) -> None:
    names = SyntheticPairs().keypoint_names(category)
    turns = [
        _turn(side, names, base, tip, low, high)
        for pair in pairs
        if pair.category == category
        for side in (pair.source, pair.target)
    ]
    assert min(turns.count(-1.0), turns.count(1.0)) > 10


def _patches(image: Tensor) -> Tensor:
    """`(256, 48)` unit vectors: centred RGB of 4x4 patches."""
    cells = (image.float() / 255 - 0.5).reshape(3, 16, 4, 16, 4).permute(1, 3, 0, 2, 4).reshape(256, 48)
    return torch.nn.functional.normalize(cells, dim=1)


def test_no_trick_solves_the_pairs(pairs: list[Pair]) -> None:
    dataset = SyntheticPairs("test", num_pairs=400)
    hits = {"same position": 0, "rgb patches": 0}
    count = 0
    for pair in pairs:
        source, target = pair.source, pair.target
        cell = ((source.keypoints + 0.5) / 4).floor().long().clamp(0, 15)
        query = _patches(dataset.image(source.image_id))[cell[:, 1] * 16 + cell[:, 0]]
        best = (query @ _patches(dataset.image(target.image_id)).T).argmax(1)
        nearest = torch.stack([best % 16, best // 16], 1) * 4 + 1.5
        for name, predicted in (("same position", source.keypoints), ("rgb patches", nearest)):
            close = (predicted - target.keypoints).norm(dim=1) <= 0.1 * threshold_base(pair, "bbox")
            hits[name] += int((close & pair.visible).sum())
        count += int(pair.visible.sum())
    assert count > 2000
    for name, number in hits.items():
        assert 100 * number / count < 15, name


def test_single_pictures_carry_their_class() -> None:
    for index in range(2 * len(CATEGORIES)):
        image, label = draw_image("train", index, 32)
        assert image.shape == (3, 32, 32)
        assert image.dtype == np.uint8
        assert image.flags["C_CONTIGUOUS"]
        assert label == index % len(CATEGORIES)
    assert np.array_equal(draw_image("train", 3, 32)[0], draw_image("train", 3, 32)[0])


def test_indices_outside_raise() -> None:
    dataset = SyntheticPairs(num_pairs=3)
    assert dataset[-1].index == 2
    assert len(dataset) == len(list(dataset)) == 3
    for index in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            dataset[index]


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"split": "dev"}, "split"),
        ({"num_pairs": 0}, "num_pairs"),
        ({"image_size": 15}, "image_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], culprit: str) -> None:
    with pytest.raises(InputError) as error:
        SyntheticPairs(**arguments)
    assert error.value.argument == culprit
    assert str(arguments[culprit]) in str(error.value)


@pytest.mark.parametrize(
    ("split", "index", "size", "culprit"),
    [("dev", 0, 64, "split"), ("train", -1, 64, "index"), ("train", 0, 8, "image_size")],
)
def test_bad_arguments_of_single_pictures_are_named(split: str, index: int, size: int, culprit: str) -> None:
    with pytest.raises(InputError) as error:
        draw_image(split, index, size)
    assert error.value.argument == culprit


@pytest.mark.parametrize(
    "image_id",
    [
        "",
        "source",
        "synthetic/seed0/test/64/000003/source",
        "synthetic/seed0/test/64/1/source",
        "synthetic/seed0/test/64/000001/left",
        "synthetic/seed0/test/32/000001/source",
        "synthetic/seed0/val/64/000001/source",
        "synthetic/seed1/test/64/000001/source",
    ],
)
def test_unknown_image_ids_are_refused(image_id: str) -> None:
    with pytest.raises(InputError) as error:
        SyntheticPairs("test", num_pairs=3).image(image_id)
    assert error.value.argument == "image_id"


def test_unknown_category_is_refused() -> None:
    with pytest.raises(InputError, match="category"):
        class_index("teapot")
    with pytest.raises(InputError, match="category"):
        SyntheticPairs().keypoint_names("teapot")
