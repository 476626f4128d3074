"""The losses of keypoints on searched maps, against loops over keypoints and cells in plain Python floats."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.data.pairs import Pair, Side
from ditf_probe.errors import InputError
from ditf_probe.losses import (
    CycleConsistency,
    DenseContrast,
    End,
    GaussianCrossEntropy,
    KeypointContrast,
    OptimalTransport,
    SoftArgmaxRegression,
    Term,
)
from ditf_probe.matching import MatchingRule, match_by_rule

Array = NDArray[np.float64]
Draw = Callable[..., tuple[list[Tensor], list[Tensor], list[Pair]]]
T = 0.1
Near = list[Array]  # descriptors of the keypoints of one image
Places = list[tuple[float, float]]  # their places on its map, in cells
CASES = range(50)


def unit(vector: Array) -> Array:
    return vector / max(float(np.sqrt((vector**2).sum())), 1e-12)


def place(side: Side, row: int, grid: tuple[int, ...]) -> tuple[float, float]:
    x, y = side.keypoints[row].tolist()
    return (x + 0.5) * grid[1] / side.size[1] - 0.5, (y + 0.5) * grid[0] / side.size[0] - 0.5


def sample(features: Array, x: float, y: float) -> Array:
    """Bilinear by hand; cells repeat beyond the border."""
    _, height, width = features.shape
    x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    total = np.zeros(features.shape[0])
    for j in range(height):
        for i in range(width):
            total += max(0.0, 1 - abs(x - i)) * max(0.0, 1 - abs(y - j)) * features[:, j, i]
    return unit(total)


def cells(features: Array) -> list[tuple[float, float, Array]]:
    """(x, y, unit descriptor) of all cells, row by row."""
    _, height, width = features.shape
    return [(float(i), float(j), unit(features[:, j, i])) for j in range(height) for i in range(width)]


def softmax(numbers: list[float]) -> list[float]:
    most = max(numbers)
    powers = [math.exp(number - most) for number in numbers]
    return [power / sum(powers) for power in powers]


def gaussian(at: tuple[float, float], features: Array, sigma: float) -> list[float]:
    powers = [math.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * sigma**2)) for x, y, _ in cells(features)]
    return [power / sum(powers) for power in powers]


def cross_entropy(wanted: list[float], found: list[float]) -> float:
    return -sum(p * math.log(q) for p, q in zip(wanted, found, strict=True))


def dense(near: Near, home: Places, own: Array, far: Array, partners: Places, size: Any) -> list[float]:
    losses = []
    for query, at in zip(near, partners, strict=True):
        positive = float(query @ sample(far, *at)) / T
        others = [query @ d / T for x, y, d in cells(far) if math.hypot(x - at[0], y - at[1]) > 1.2]
        losses.append(math.log(math.exp(positive) + sum(math.exp(other) for other in others)) - positive)
    return losses


def smoothed(near: Near, home: Places, own: Array, far: Array, partners: Places, size: Any) -> list[float]:
    return [
        cross_entropy(gaussian(at, far, 0.8), softmax([float(query @ d) / T for _, _, d in cells(far)]))
        for query, at in zip(near, partners, strict=True)
    ]


def cycled(near: Near, home: Places, own: Array, far: Array, partners: Places, size: Any) -> list[float]:
    losses = []
    for query, at in zip(near, home, strict=True):
        weights = softmax([float(query @ d) / T for _, _, d in cells(far)])
        neighbour = unit(np.sum([w * d for w, (_, _, d) in zip(weights, cells(far), strict=True)], axis=0))
        back = softmax([float(neighbour @ d) / T for _, _, d in cells(own)])
        losses.append(cross_entropy(gaussian(at, own, 0.8), back))
    return losses


def transported(near: Near, home: Places, own: Array, far: Array, partners: Places, size: Any) -> list[float]:
    columns = cells(far)
    kernel = [[math.exp(float(query @ d) / T) for _, _, d in columns] for query in near]
    kernel.append([1.0] * len(columns))
    masses = [1.0] * len(near) + [1.5 * len(columns) - len(near)]
    right = [1.0] * len(columns)
    for _ in range(7):
        left = [m / sum(k * b for k, b in zip(row, right, strict=True)) for m, row in zip(masses, kernel, strict=True)]
        right = [1.5 / sum(a * row[j] for a, row in zip(left, kernel, strict=True)) for j in range(len(columns))]
    left = [m / sum(k * b for k, b in zip(row, right, strict=True)) for m, row in zip(masses, kernel, strict=True)]
    return [
        cross_entropy(gaussian(at, far, 0.8), [left[k] * kernel[k][j] * right[j] for j in range(len(columns))])
        for k, at in enumerate(partners)
    ]


def soft_place(query: Array, far: Array, kind: str) -> tuple[float, float]:
    scores = [(x, y, float(query @ d)) for x, y, d in cells(far)]
    best = max(scores, key=lambda score: score[2])
    if kind == "window":
        scores = [s for s in scores if abs(s[0] - best[0]) <= 1 and abs(s[1] - best[1]) <= 1]
    if kind == "kernel":
        scores = [(x, y, c * math.exp(-((x - best[0]) ** 2 + (y - best[1]) ** 2) / (2 * 1.5**2))) for x, y, c in scores]
    weights = softmax([c / T for _, _, c in scores])
    return (
        sum(w * x for w, (x, _, _) in zip(weights, scores, strict=True)),
        sum(w * y for w, (_, y, _) in zip(weights, scores, strict=True)),
    )


def placed(kind: str, measure: str, units: str) -> Callable[..., list[float]]:
    def reference(near: Near, home: Places, own: Array, far: Array, partners: Places, size: Any) -> list[float]:
        losses = []
        for query, at in zip(near, partners, strict=True):
            x, y = soft_place(query, far, kind)
            error = [x - at[0], y - at[1]]
            if units == "image":
                pixels = [error[0] * size[1] / far.shape[2], error[1] * size[0] / far.shape[1]]
                error = [pixel / max(size) for pixel in pixels]
            if measure == "l2":
                losses.append(math.hypot(*error))
            else:
                losses.append(sum(e**2 / (2 * 0.3) if abs(e) < 0.3 else abs(e) - 0.15 for e in error))
        return losses

    return reference


TERMS: dict[str, tuple[Callable[..., Term], Callable[..., list[float]]]] = {
    "dense": (lambda **o: DenseContrast(T, margin=1.2, **o), dense),
    "gaussian": (lambda **o: GaussianCrossEntropy(0.8, T, **o), smoothed),
    "cycle": (lambda **o: CycleConsistency(0.8, T, **o), cycled),
    "transport": (lambda **o: OptimalTransport(1.5, 7, 0.8, T, **o), transported),
    "soft": (
        lambda **o: SoftArgmaxRegression("softargmax", temperature=T, learn_temperature=True, **o),
        placed("all", "l2", "cells"),
    ),
    "window": (
        lambda **o: SoftArgmaxRegression(
            window=3, measure="smooth_l1", beta=0.3, temperature=T, learn_temperature=True, **o
        ),
        placed("window", "smooth_l1", "cells"),
    ),
    "kernel": (
        lambda **o: SoftArgmaxRegression(
            "kernel_softargmax", sigma=1.5, units="image", temperature=T, learn_temperature=True, **o
        ),
        placed("kernel", "l2", "image"),
    ),
}
MAKERS = {name: make for name, (make, _) in TERMS.items()} | {"keypoints": lambda **o: KeypointContrast(T)}


def slow(reference: Callable[..., list[float]], batch: Any, symmetric: bool) -> float:
    losses: list[float] = []
    for source, target, pair in zip(*batch, strict=True):
        rows = pair.visible.nonzero()[:, 0].tolist()
        ends = [(source.numpy(), pair.source), (target.numpy(), pair.target)]
        for (own, one), (far, other) in (ends, ends[::-1]) if symmetric else (ends,):
            home = [place(one, row, own.shape[1:]) for row in rows]
            partners = [place(other, row, far.shape[1:]) for row in rows]
            near = [sample(own, *at) for at in home]
            losses += reference(near, home, own, far, partners, other.size) if rows else []
    return sum(losses) / len(losses)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", TERMS)
def test_equals_loops_over_keypoints_and_cells(draw: Draw, name: str, symmetric: bool) -> None:
    make, reference = TERMS[name]
    term = make(symmetric=symmetric)
    for seed in CASES:
        batch = draw(seed)
        assert float(term(*batch).detach()) == pytest.approx(slow(reference, batch, symmetric), abs=2e-5), seed


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_right_and_reach_the_temperature(draw: Draw, name: str) -> None:
    term = MAKERS[name]().double()
    a, b, pairs = draw(5, count=2, width=3)
    inputs = [m.requires_grad_() for m in (*a, *b)]

    def value(*given: Tensor) -> Tensor:
        result: Tensor = term(given[:2], given[2:4], pairs)
        return result

    assert torch.autograd.gradcheck(value, (*inputs, term.log_temperature), fast_mode=True)
    value(*inputs).backward()
    for parameter in term.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MAKERS)
def test_length_and_basis_of_descriptors_and_order_of_pairs_do_not_matter(draw: Draw, name: str) -> None:
    term = MAKERS[name]()
    for seed in range(10):
        a, b, pairs = draw(seed)
        first = term(a, b, pairs)
        rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
        turned = [[torch.einsum("ed,dhw->ehw", rotation, 3.7 * m) for m in maps] for maps in (a, b)]
        torch.testing.assert_close(term(*turned, pairs), first)
        torch.testing.assert_close(term(a[::-1], b[::-1], pairs[::-1]), first)


@pytest.mark.parametrize("name", MAKERS)
def test_both_directions_weigh_the_same(draw: Draw, name: str) -> None:
    a, b, pairs = draw(8)
    turned = [Pair(p.index, p.category, p.unit, p.target, p.source) for p in pairs]
    term = MAKERS[name]()
    torch.testing.assert_close(term(b, a, turned), term(a, b, pairs))


@pytest.mark.parametrize("name", MAKERS)
def test_pairs_without_common_keypoints_change_nothing(draw: Draw, name: str) -> None:
    a, b, pairs = draw(2, count=3)
    for pair in pairs[1:]:
        pair.target.visible[:] = False
    term = MAKERS[name]()
    torch.testing.assert_close(term(a, b, pairs), term(a[:1], b[:1], pairs[:1]))
    inputs = [m.requires_grad_() for m in (*a[1:], *b[1:])]
    loss = term(inputs[:2], inputs[2:], pairs[1:])
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(m.grad is not None and not m.grad.any() for m in (*inputs, term.log_temperature))
    assert float(term([], [], []).detach()) == 0


@pytest.mark.parametrize("name", MAKERS)
def test_half_precision_and_autocast_lose_nothing_in_the_loss(draw: Draw, name: str) -> None:
    a, b, pairs = draw(3, dtype=torch.bfloat16)
    term = MAKERS[name]()
    exact = term([m.float() for m in a], [m.float() for m in b], pairs)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(term(a, b, pairs), exact, rtol=0, atol=0)


@pytest.mark.parametrize("name", MAKERS)
def test_bad_maps_are_named(draw: Draw, name: str) -> None:
    a, b, pairs = draw(4)
    with pytest.raises(InputError, match=r"`targets` is '2 maps': give one for each of the 3 pairs"):
        MAKERS[name]()(a, b[:2], pairs)
    b[0][0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="`targets` is 'NaN or infinity'"):
        MAKERS[name]()(a, b, pairs)


def two_cells(partner: float) -> tuple[list[Tensor], list[Tensor], list[Pair]]:
    """Maps of two cells, descriptors (1, 0) and (0, 1); the keypoint lies in the first, the partner where told."""
    features = torch.eye(2, dtype=torch.float64)[:, None]
    seen, box = torch.tensor([True]), torch.tensor([0.0, 0.0, 1.0, 0.0])
    source = Side("a", (1, 2), torch.tensor([[0.0, 0.0]]), seen, box)
    target = Side("b", (1, 2), torch.tensor([[partner, 0.0]]), seen, box)
    return [features], [features.clone()], [Pair(0, "cat", "0", source, target)]


# With a temperature of 1 the cosines 1 and 0 become shares of e / (1 + e) = 0.731059 and 0.268941.
@pytest.mark.parametrize(
    ("term", "partner", "expected"),
    [
        (DenseContrast(1.0, margin=0.0, symmetric=False), 0.0, 0.313262),  # log(1 + 1/e)
        (DenseContrast(1.0, margin=0.0, symmetric=False), 1.0, 1.313262),  # log(1 + e)
        (DenseContrast(1.0, margin=1.0, symmetric=False), 1.0, 0.0),  # no negative is left
        # The target is 1 / (1 + exp(-1/2)) = 0.622459 and 0.377541.
        (GaussianCrossEntropy(1.0, 1.0, symmetric=False), 0.0, 0.690803),
        (GaussianCrossEntropy(0.01, 1.0, symmetric=False), 1.0, 1.313262),
        (SoftArgmaxRegression("softargmax", temperature=1.0, symmetric=False), 0.0, 0.268941),
        (SoftArgmaxRegression("softargmax", temperature=1.0, units="image", symmetric=False), 0.0, 0.134471),
        (SoftArgmaxRegression("softargmax", temperature=1.0, measure="smooth_l1", symmetric=False), 0.0, 0.036165),
        (SoftArgmaxRegression(window=1, temperature=1.0, symmetric=False), 1.0, 1.0),
        (SoftArgmaxRegression("kernel_softargmax", sigma=1.0, temperature=1.0, symmetric=False), 1.0, 0.731059),
        # The neighbour is (0.731059, 0.268941) / 0.778958; its cosines 0.938509 and 0.345258 lead home with 0.644111.
        (CycleConsistency(0.01, 1.0, symmetric=False), 1.0, 0.439885),
        # The plan ((p, 1 - p), (1 - p, p)) keeps p^2 / (1 - p)^2 = e, so p = 0.622459.
        (OptimalTransport(1.0, 20, 0.01, 1.0, symmetric=False), 0.0, 0.474077),
    ],
)
def test_values_by_hand(term: Term, partner: float, expected: float) -> None:
    assert float(term(*two_cells(partner)).detach()) == pytest.approx(expected, abs=2e-6)


def at_centres(draw: Draw, seed: int) -> Any:
    """A batch whose keypoints lie at the centres of cells."""
    a, b, pairs = draw(seed)
    moved = []
    for features, other, pair in zip(a, b, pairs, strict=True):
        sides = []
        for one, side in ((features, pair.source), (other, pair.target)):
            cell = torch.tensor([side.size[1] / one.shape[2], side.size[0] / one.shape[1]])
            points = ((side.keypoints + 0.5) / cell).floor().mul(cell) + cell / 2 - 0.5
            sides.append(Side(side.image_id, side.size, points, side.visible, side.bbox))
        moved.append(Pair(pair.index, pair.category, pair.unit, *sides))
    return a, b, moved


def test_a_narrow_gaussian_is_infonce(draw: Draw) -> None:
    for seed in range(20):
        batch = at_centres(draw, seed)
        torch.testing.assert_close(
            GaussianCrossEntropy(0.05, T)(*batch), DenseContrast(T, margin=1e-3)(*batch), atol=1e-5, rtol=0
        )


def test_a_cold_contrast_measures_how_far_the_partner_is_behind(draw: Draw) -> None:
    def behind(near: Near, home: Places, own: Array, far: Array, partners: Places, size: Any) -> list[float]:
        pairs = zip(near, partners, strict=True)
        return [max(0.0, max(float(q @ d) for _, _, d in cells(far)) - float(q @ sample(far, *at))) for q, at in pairs]

    for seed in range(20):
        batch = at_centres(draw, seed)
        loss = 0.01 * float(DenseContrast(0.01, margin=1e-3)(*batch).detach())
        assert loss == pytest.approx(slow(behind, batch, True), abs=0.01 * math.log(12))


@pytest.mark.parametrize("name", TERMS)
def test_sources_that_are_not_needed_whole_count_around_keypoints_only(draw: Draw, name: str) -> None:
    term = MAKERS[name](symmetric=False)
    everything = {"source_maps", "target_maps", "source_points", "target_points"}
    assert MAKERS[name](symmetric=True).needs == everything
    assert term.needs == everything - (set() if name == "cycle" else {"source_maps"})
    for seed in range(10):
        a, b, pairs = draw(seed)
        bare = [torch.zeros_like(m) for m in a]
        for features, whole, pair in zip(bare, a, pairs, strict=True):
            for row in pair.visible.nonzero()[:, 0].tolist():
                x, y = place(pair.source, row, tuple(whole.shape[1:]))
                rows = slice(max(0, math.floor(y)), math.floor(y) + 2)
                columns = slice(max(0, math.floor(x)), math.floor(x) + 2)
                features[:, rows, columns] = whole[:, rows, columns]
        assert torch.equal(term(bare, b, pairs), term(a, b, pairs)) == ("source_maps" not in term.needs)


@pytest.mark.parametrize("kind", ["window_softargmax", "kernel_softargmax"])
def test_regression_measures_what_the_matching_rule_finds(draw: Draw, kind: Any) -> None:
    rule = MatchingRule(kind, window=3, sigma=1.5, temperature=0.05)
    term = SoftArgmaxRegression(kind, 3, 1.5, units="image", temperature=0.05, symmetric=False)
    for seed in range(20):
        a, b, pairs = draw(seed)
        errors = []
        for source, target, pair in zip(a, b, pairs, strict=True):
            sizes = pair.source.size, pair.target.size
            found = match_by_rule(source, target, pair.source.keypoints, *sizes, rule, visible=pair.visible)[0]
            distance = (found - pair.target.keypoints)[pair.visible].norm(dim=1)
            errors += (distance / max(pair.target.size)).tolist()
        assert float(term(a, b, pairs).detach()) == pytest.approx(sum(errors) / len(errors), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (DenseContrast, {"margin": -1.0}),
        (DenseContrast, {"temperature": 2.0}),
        (GaussianCrossEntropy, {"sigma": 0.001}),
        (GaussianCrossEntropy, {"sigma": math.nan}),
        (SoftArgmaxRegression, {"kind": "argmax"}),
        (SoftArgmaxRegression, {"window": 4}),
        (SoftArgmaxRegression, {"sigma": 0.0}),
        (SoftArgmaxRegression, {"beta": math.inf}),
        (SoftArgmaxRegression, {"measure": "l1"}),
        (SoftArgmaxRegression, {"units": "pixels"}),
        (OptimalTransport, {"capacity": 0.0}),
        (OptimalTransport, {"iterations": 0}),
        (OptimalTransport, {"sigma": -1.0}),
        (CycleConsistency, {"sigma": 0.0}),
        (CycleConsistency, {"temperature": math.nan}),
    ],
)
def test_bad_arguments_are_named(kind: Callable[..., Term], arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        kind(**arguments)


def test_distances_on_large_maps_are_exact_to_a_thousandth_of_a_cell() -> None:
    size = (60, 60)
    points = 59 * torch.rand(30, 2, generator=torch.Generator().manual_seed(1))
    side = Side("a", size, points, torch.ones(30, dtype=torch.bool), torch.tensor([0.0, 0.0, 59.0, 59.0]))
    features = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    end = End.of([features], [(side, side.visible)])
    expected = torch.cdist(points.double(), end.centres().double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(end.distances()[0].double(), expected, rtol=0, atol=1e-4)
