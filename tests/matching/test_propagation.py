"""Labels from frame to frame, against loops over cells that compare each with all others."""

import math
import re

import pytest
import torch
from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.matching import propagation
from ditf_probe.matching.propagation import propagate_labels


def slow(
    target: Tensor, context: list[Tensor], labels: list[Tensor], radius: int, topk: int, temperature: float
) -> Tensor:
    """As in the paper's code, written out: exponentials of all cells in sight, the topk-th largest as a limit."""
    _, height, width = target.shape
    found = torch.zeros(len(labels[0]), height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            own = target[:, y, x].tolist()
            seen = []
            for frame, label in zip(context, labels, strict=True):
                for v in range(height):
                    for u in range(width):
                        if radius == 0 or (abs(v - y) <= radius and abs(u - x) <= radius):
                            other = frame[:, v, u].tolist()
                            lengths = math.hypot(*own) * math.hypot(*other)
                            cosine = (
                                math.fsum(a * b for a, b in zip(own, other, strict=True)) / lengths if lengths else 0
                            )
                            seen.append((math.exp(cosine / temperature), label[:, v, u].tolist()))
            limit = sorted((weight for weight, _ in seen), reverse=True)[: min(topk, len(seen))][-1]
            kept = [(weight, label) for weight, label in seen if weight >= limit]
            total = sum(weight for weight, _ in kept)
            for number in range(len(labels[0])):
                found[number, y, x] = sum(weight * label[number] for weight, label in kept) / total
    return found


def case(index: int) -> tuple[tuple[Tensor, list[Tensor], list[Tensor]], dict[str, float]]:
    """Maps and options that follow from a number; every fourth case has many exact ties."""
    generator = torch.Generator().manual_seed(index)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    height, width, frames, objects = whole(1, 6), whole(1, 7), whole(1, 4), whole(1, 3)
    channels = 4 if index % 4 == 0 else whole(2, 5)
    maps = torch.randn(frames + 1, channels, height, width, generator=generator, dtype=torch.float64)
    if index % 4 == 0:
        maps = maps.sign()  # four channels of 1 and -1: of length 2, so that cosines are exact
    if index % 10 == 1:
        maps[0, :, 0, 0] = 0
        maps[1, :, -1, -1] = 0
    labels = torch.rand(frames, objects, height, width, generator=generator, dtype=torch.float64).softmax(1)
    options = {"radius": whole(0, 9), "topk": whole(1, 12), "temperature": [0.05, 0.1, 0.2, 1.0][whole(0, 3)]}
    return (maps[0], list(maps[1:]), list(labels)), options


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_equals_the_slow_reference(first: int) -> None:
    for index in range(first, first + 20):
        arguments, options = case(index)
        expected = slow(*arguments, **options)
        for budget in (64.0, 1e-6):  # the smallest budget compares one cell at a time
            found = propagate_labels(*arguments, **options, budget_mib=budget)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.sum(0), torch.ones_like(found[0]), rtol=1e-9, atol=0)


def test_more_tiles_than_one() -> None:
    """A map larger than a tile in both directions, in float32, against one product of all cells with all others."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 8, 37, 41, generator=generator)
    labels = torch.rand(2, 2, 37, 41, generator=generator)
    found = propagate_labels(maps[0], list(maps[1:]), list(labels), radius=5, topk=7, temperature=0.1)
    unit = torch.nn.functional.normalize(maps.double(), dim=1).flatten(2)
    rows, columns = (axis.flatten() for axis in torch.meshgrid(torch.arange(37), torch.arange(41), indexing="ij"))
    near = ((rows[:, None] - rows).abs() <= 5) & ((columns[:, None] - columns).abs() <= 5)
    weights = torch.cat([((unit[0].T @ other) / 0.1).exp() * near for other in unit[1:]], dim=1)
    weights[weights < weights.topk(7, dim=1).values[:, -1:]] = 0
    weights /= weights.sum(1, keepdim=True)
    expected = torch.cat(list(labels.double().flatten(2)), dim=1) @ weights.T
    torch.testing.assert_close(found.double(), expected.view(2, 37, 41), rtol=0, atol=1e-5)


def test_hand_computed() -> None:
    """One row: the cell in the middle sees its neighbours at distance one, the best two of three count."""
    target = torch.tensor([[[0.0, 1.0, 0.0]], [[1.0, 0.0, 1.0]]])
    context = torch.tensor([[[3.0, 1.0, 0.0]], [[4.0, 0.0, 2.0]]])  # cosines with (1, 0): 0.6, 1, 0
    labels = torch.tensor([[[1.0, 0.0, 0.0]]])
    found = propagate_labels(target, [context], [labels], radius=1, topk=2, temperature=0.2)
    assert found[0, 0, 1] == pytest.approx(1 / (1 + math.exp(2)))
    # The best cell alone, and a temperature at which exp(1 / temperature) has no float32.
    assert propagate_labels(target, [context], [labels], radius=1, topk=1, temperature=0.001)[0, 0, 1] == 0


@pytest.mark.parametrize(("radius", "frames", "mib"), [(12, 8, 64.0), (12, 8, 4.0), (0, 2, 16.0), (3, 8, 0.5)])
def test_memory_stays_within_the_budget(radius: int, frames: int, mib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """No similarities and no windows beyond the budget, and none of all cells with all others."""
    generator = torch.Generator().manual_seed(0)
    size = (30, 41)
    maps = torch.randn(frames + 1, 6, *size, generator=generator)
    largest = {"similarities": 0, "windows": 0}
    weights, windows = propagation._weights, propagation._windows

    def measured(similarities: Tensor, topk: int, temperature: float) -> Tensor:
        largest["similarities"] = max(largest["similarities"], similarities.nbytes)
        return weights(similarities, topk, temperature)

    def gathered(*arguments: object) -> Tensor:
        found = windows(*arguments)
        largest["windows"] = max(largest["windows"], found.nbytes)
        return found

    monkeypatch.setattr(propagation, "_weights", measured)
    monkeypatch.setattr(propagation, "_windows", gathered)
    found = propagate_labels(maps[0], list(maps[1:]), [maps[0, :2]] * frames, radius=radius, budget_mib=mib)
    assert found.shape == (2, *size)
    assert 0 < largest["similarities"] + largest["windows"] <= mib * 2**20
    if mib < 16:
        assert largest["similarities"] < 4 * frames * (30 * 41) ** 2 / 10


def maps(count: int = 1, channels: int = 3) -> list[Tensor]:
    return [torch.ones(channels, 4, 5)] * count


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": []}, "`context` is '0 maps for 1 labels'"),
        ({"context": [torch.ones(3, 4, 6)]}, r"`context` is (3, 4, 6)"),
        ({"labels": [torch.ones(2, 4, 6)]}, r"`labels` is (2, 4, 6)"),
        ({"target": torch.ones(3, 4)}, r"`target` is '(3, 4)"),
        ({"target": torch.full((3, 4, 5), torch.nan)}, "`target` is '(3, 4, 5) with NaN"),
        ({"context": [torch.full((3, 4, 5), torch.inf)]}, "`context` is '(3, 4, 5) with NaN"),
        ({"radius": -1}, "`radius` is -1"),
        ({"topk": 0}, "`topk` is 0"),
        ({"temperature": 0.0}, "`temperature` is 0.0"),
        ({"budget_mib": math.nan}, "`budget_mib` is nan"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    arguments = {"target": torch.ones(3, 4, 5), "context": maps(), "labels": maps(channels=2)}
    with pytest.raises(InputError, match=re.escape(message)):
        propagate_labels(**(arguments | change))
