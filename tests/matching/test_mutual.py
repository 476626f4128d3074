"""Mutual nearest neighbours against a plain loop, at every budget."""

import math

import pytest
import torch

from ditf_probe.errors import InputError
from ditf_probe.matching import mutual_nearest_neighbours


def slow_matches(source, target, ratio=None):
    """Loops over single cosines, with plain comparisons."""

    def cosine(a, b):
        lengths = math.sqrt((a * a).sum()) * math.sqrt((b * b).sum())
        return torch.tensor(float((a * b).sum()) / lengths if lengths else 0.0, dtype=torch.float64).float().item()

    table = [[cosine(a, b) for b in target.double()] for a in source.double()]
    found = []
    for i, row in enumerate(table):
        j = row.index(max(row)) if row else None
        if j is None:
            continue
        column = [other[j] for other in table]
        if column.index(max(column)) != i:
            continue
        if ratio is not None:
            others = sorted(row[:j] + row[j + 1 :], reverse=True)
            nearest = math.sqrt(max(0.0, 2 - 2 * row[j]))
            if others and not nearest < ratio * math.sqrt(max(0.0, 2 - 2 * others[0])):
                continue
        found.append((i, j, row[j]))
    return found


def random_case(number):
    """Small sets; every third case is full of equal descriptors, every fifth has a zero one."""
    generator = torch.Generator().manual_seed(number)
    count, other, channels = (int(torch.randint(1, limit, (), generator=generator)) for limit in (14, 14, 7))
    source = torch.randn(count, channels, generator=generator)
    target = torch.randn(other, channels, generator=generator)
    if number % 3 == 0:
        source = source[torch.randint(count, (count,), generator=generator)]
        target = torch.cat([source[:2] * 3, target])[torch.randperm(other + len(source[:2]), generator=generator)]
    if number % 5 == 0:
        target[0] = 0
    return source, target, (None, 0.8, 0.95, 1.0)[number % 4], int(torch.randint(8, 600, (), generator=generator))


@pytest.mark.parametrize("number", range(200))
def test_agrees_with_a_loop(number: int) -> None:
    source, target, ratio, budget = random_case(number)
    expected = slow_matches(source, target, ratio)
    for bytes_ in (budget, 2**20):
        pairs, similarity = mutual_nearest_neighbours(source, target, ratio=ratio, budget=bytes_)
        assert pairs.tolist() == [[i, j] for i, j, _ in expected]
        torch.testing.assert_close(similarity, torch.tensor([s for *_, s in expected]), atol=1e-6, rtol=0)


def test_by_hand() -> None:
    source = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.1]])
    target = torch.tensor([[0.0, 1.0], [5.0, 0.0], [5.0, 0.0]])
    pairs, similarity = mutual_nearest_neighbours(source, target)
    assert pairs.tolist() == [[0, 1], [1, 0]]  # the first of the two equal targets; source 2 is only second there
    assert similarity.tolist() == [1.0, 1.0]
    # The twin of target 1 is as near: the ratio test refuses what a second neighbour explains as well.
    assert mutual_nearest_neighbours(source, target, ratio=0.9)[0].tolist() == [[1, 0]]


def test_the_matrix_is_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from ditf_probe.matching import mutual

    sizes = []
    add = mutual._Nearest.add

    def watched(self, first, offset, block):
        sizes.append(block.numel())
        add(self, first, offset, block)

    monkeypatch.setattr(mutual._Nearest, "add", watched)
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(70, 3, generator=generator), torch.randn(90, 3, generator=generator)
    small = mutual_nearest_neighbours(source, target, budget=8 * 40)
    assert max(sizes) <= 40
    assert sum(sizes) == 2 * 70 * 90
    whole = mutual_nearest_neighbours(source, target)
    assert torch.equal(small[0], whole[0])
    assert torch.equal(small[1], whole[1])


def test_half_precision_and_nothing_to_match() -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).half()
    assert mutual_nearest_neighbours(x, x)[0].tolist() == [[i, i] for i in range(5)]
    pairs, similarity = mutual_nearest_neighbours(x[:0], x)
    assert pairs.shape == (0, 2)
    assert similarity.shape == (0,)


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("source", (torch.zeros(3), torch.zeros(2, 3)), {}),
        ("target", (torch.zeros(2, 3), torch.zeros(2, 4)), {}),
        ("target", (torch.zeros(2, 3), torch.full((2, 3), torch.nan)), {}),
        ("ratio", (torch.zeros(2, 3), torch.zeros(2, 3)), {"ratio": 0.0}),
        ("budget", (torch.zeros(2, 3), torch.zeros(2, 3)), {"budget": 0}),
    ],
)
def test_bad_input_is_named(argument, arguments, options) -> None:
    with pytest.raises(InputError, match=argument):
        mutual_nearest_neighbours(*arguments, **options)
