"""Batches of equal size, and their shares: everything once, and ranks that end together."""

import os
import random

import pytest
import torch

from ditf_probe.features.loading import default_workers, equal_size_batches, shares


def work(batches: list[list[str]], canvases: dict[str, tuple[int, int]]) -> int:
    return sum(canvases[name][0] * canvases[name][1] for names in batches for name in names)


@pytest.mark.parametrize("seed", range(200))
def test_ranks_have_about_as_much_to_do(seed: int) -> None:
    draw = random.Random(seed)
    sizes = [(16 * draw.randint(1, 6), 16 * draw.randint(1, 6)) for _ in range(draw.randint(1, 5))]
    canvases = {f"image{number}": draw.choice(sizes) for number in range(draw.randint(1, 300))}
    size, ranks = draw.randint(1, 16), draw.randint(1, 9)
    batches = equal_size_batches(canvases, size)
    divided = shares(batches, canvases, ranks)
    assert divided == shares(batches, canvases, ranks), "the same on every rank"
    assert sorted(name for own in divided for names in own for name in names) == sorted(canvases)
    for own in divided:
        assert all(0 < len(names) <= size for names in own)
        assert all(len({canvases[name] for name in names}) == 1 for names in own)
    loads = [work(own, canvases) for own in divided]
    mean, one = sum(loads) / ranks, max(height * width for height, width in canvases.values())
    assert max(loads) <= max(1.05 * mean, mean + one) + 1e-9


def test_a_single_rank_keeps_the_batches() -> None:
    canvases = dict.fromkeys("abcdefg", (16, 16)) | {"x": (32, 16)}
    batches = equal_size_batches(canvases, 3)
    assert shares(batches, canvases, 1) == [batches]


@pytest.mark.parametrize(
    ("images", "ranks", "expected"),
    [
        (16, 2, [[8], [8]]),  # one batch is not enough for two
        (48, 2, [[16, 8], [16, 8]]),
        (1280, 2, [[16] * 40, [16] * 40]),
        (3, 4, [[1], [1], [1], []]),
        (17, 2, [[8, 1], [8]]),  # and nobody computes one by one for the sake of half an image
    ],
)
def test_shares_of_equal_images(images: int, ranks: int, expected: list[list[int]]) -> None:
    canvases = {str(number): (16, 16) for number in range(images)}
    divided = shares(equal_size_batches(canvases, 16), canvases, ranks)
    assert sorted(sorted(map(len, own), reverse=True) for own in divided) == sorted(expected)


def test_nothing_to_divide() -> None:
    assert shares([], {}, 3) == [[], [], []]


@pytest.mark.parametrize(("cores", "gpus", "expected"), [(16, 1, 8), (16, 2, 7), (8, 8, 1), (2, 8, 1)])
def test_workers_beside_a_gpu(monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert default_workers(torch.device("cuda")) == expected
    assert default_workers(torch.device("cpu")) == 0
