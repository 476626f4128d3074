import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.data.pairs import Pair, Side
from ditf_probe.errors import InputError
from ditf_probe.losses import KeypointContrast, same_keypoint
from ditf_probe.losses.ends import cosines, lengths_of, sample_stacked
from ditf_probe.losses.terms import checked
from ditf_probe.matching import sample_descriptors

SIZE = (8, 12)


def pair(index: int, category: str, points: list[tuple[float, float]], visible: list[bool] | None = None) -> Pair:
    keypoints = torch.tensor(points)
    seen = torch.tensor(visible if visible is not None else [True] * len(points))
    everything = torch.ones(len(points), dtype=torch.bool)
    box = torch.tensor([0.0, 0.0, 11.0, 7.0])
    source = Side(f"{index}/a", SIZE, keypoints, everything, box)
    target = Side(f"{index}/b", SIZE, keypoints.flip(0), seen, box)
    return Pair(index, category, f"{index}", source, target)


PAIRS = [
    pair(0, "car", [(1.5, 2.0), (9.0, 6.0), (4.0, 4.0)], [True, False, True]),
    pair(1, "car", [(3.0, 1.0), (5.5, 5.5), (10.0, 2.0)]),
    pair(2, "fish", [(6.0, 6.0), (2.0, 2.0)]),
    pair(3, "fish", [(6.0, 6.0), (2.0, 2.0)], [False, False]),
]


def maps(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 4, 6, generator=generator) for _ in PAIRS]


def unit(vector: Tensor) -> Tensor:
    return vector / vector.norm()


def sample(features: Tensor, x: float, y: float) -> Tensor:
    """Bilinear by hand: cell i has its centre at pixel 2 i + 0.5 here; cells repeat beyond the border."""
    column, row = min(max((x + 0.5) / 2 - 0.5, 0), 5), min(max((y + 0.5) / 2 - 0.5, 0), 3)
    total = torch.zeros(features.shape[0])
    for j in range(4):
        for i in range(6):
            total = total + max(0, 1 - abs(column - i)) * max(0, 1 - abs(row - j)) * features[:, j, i]
    return unit(total)


def slow_direction(queries: list[Tensor], keys: list[Tensor], from_side: str, to_side: str, margin: float) -> float:
    losses = []
    described = {
        (q, row): sample(keys[q], *getattr(other, to_side).keypoints[row].tolist())
        for q, other in enumerate(PAIRS)
        for row in range(len(other.visible))
    }
    for p, own in enumerate(PAIRS):
        for k in range(len(own.visible)):
            if not own.visible[k]:
                continue
            query = sample(queries[p], *getattr(own, from_side).keypoints[k].tolist())
            terms = []
            positive = 0.0
            for q, other in enumerate(PAIRS):
                for row in range(len(other.visible)):
                    if not other.visible[row]:
                        continue
                    similarity = float(query @ described[q, row]) / 0.1
                    if p == q and row == k:
                        positive = similarity
                    if (p == q and row == k) or not (other.category == own.category and row == k):
                        terms.append(similarity)
            x, y = getattr(own, to_side).keypoints[k].tolist()
            for j in range(4):
                for i in range(6):
                    if math.hypot(i - ((x + 0.5) / 2 - 0.5), j - ((y + 0.5) / 2 - 0.5)) > margin:
                        terms.append(float(query @ unit(keys[p][:, j, i])) / 0.1)
            losses.append(math.log(sum(math.exp(term) for term in terms)) - positive)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("margin", [0.0, 1.0, 2.5])
def test_equals_a_loop_over_keypoints_and_cells(margin: float) -> None:
    a, b = maps(0), maps(1)
    loss = KeypointContrast(temperature=0.1, margin=margin)(a, b, PAIRS)
    expected = slow_direction(a, b, "source", "target", margin) + slow_direction(b, a, "target", "source", margin)
    assert float(loss.detach()) == pytest.approx(expected / 2, abs=1e-5)


def test_same_keypoint_of_one_category_is_one_group() -> None:
    assert same_keypoint(PAIRS).tolist() == [0, 1, 0, 2, 1, 3, 4]


def test_gradient_reaches_maps_and_temperature() -> None:
    a, b = ([m.requires_grad_() for m in maps(seed)] for seed in (0, 1))
    contrast = KeypointContrast()
    contrast(a, b, PAIRS).backward()
    for m in (*a[:3], *b[:3]):
        assert m.grad is not None
        assert m.grad.isfinite().all()
        assert m.grad.abs().sum() > 0
    assert contrast.log_temperature.grad is not None
    assert contrast.log_temperature.grad != 0


def test_fixed_temperature_is_not_learnt() -> None:
    assert not KeypointContrast(learn_temperature=False).log_temperature.requires_grad


def test_nothing_visible_is_zero_with_a_graph() -> None:
    a, b = ([m.requires_grad_() for m in maps(seed)[3:]] for seed in (0, 1))
    contrast = KeypointContrast()
    loss = contrast(a, b, PAIRS[3:])
    loss.backward()
    assert float(loss.detach()) == 0
    assert contrast.log_temperature.grad == 0
    assert a[0].grad is not None


def test_descent_finds_the_correspondence() -> None:
    torch.manual_seed(0)
    a, b = ([m.requires_grad_() for m in maps(seed)] for seed in (0, 1))
    contrast = KeypointContrast(temperature=0.1, learn_temperature=False)
    optimiser = torch.optim.Adam([*a, *b], lr=0.05)
    first = float(contrast(a, b, PAIRS).detach())
    for _ in range(60):
        optimiser.zero_grad()
        contrast(a, b, PAIRS).backward()
        optimiser.step()
    assert float(contrast(a, b, PAIRS).detach()) < 0.2 * first


@pytest.mark.parametrize("arguments", [{"temperature": 0.0}, {"temperature": float("nan")}, {"margin": -1.0}])
def test_bad_arguments_are_named(arguments: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        KeypointContrast(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [[math.nan], [math.inf], [math.inf, -math.inf]])
def test_what_is_not_finite_in_features_is_named(values: list[float]) -> None:
    broken = maps(0)
    broken[1][0, 0, : len(values)] = torch.tensor(values)
    with pytest.raises(InputError, match="NaN"):
        KeypointContrast()(broken, maps(1), PAIRS)


def test_values_whose_sum_overflows_are_finite() -> None:
    large = [torch.full((2, 3, 3), 3e38)]
    assert checked(large, "maps")[0] is large[0]


def test_samples_as_the_matcher_does() -> None:
    generator = torch.Generator().manual_seed(3)
    for grid in [(4, 6), (3, 5), (1, 7)]:
        stacked = torch.randn(3, 5, *grid, generator=generator)
        places = torch.rand(3, 9, 2, generator=generator) * torch.tensor(grid[::-1]) - 0.5
        expected = [sample_descriptors(m, p, grid) for m, p in zip(stacked, places, strict=True)]
        torch.testing.assert_close(sample_stacked(stacked, places), torch.stack(expected), atol=1e-5, rtol=0)


def test_cosines_are_those_of_normed_cells_with_a_cell_of_zeros() -> None:
    """Values and gradients, against cells that are normed one by one."""
    generator = torch.Generator().manual_seed(4)
    cells = torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    cells[1, :, 3] = 0
    queries = F.normalize(torch.randn(2, 3, 5, generator=generator, dtype=torch.float64), dim=2)
    weights = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    ours, theirs = cells.clone().requires_grad_(), cells.clone().requires_grad_()
    found = cosines(queries, ours, lengths_of(ours))
    expected = queries @ F.normalize(theirs, dim=1)
    torch.testing.assert_close(found, expected)
    for values in (found, expected):
        (values * weights)[..., [0, 1, 2, 4, 5, 6]].sum().backward()
    assert ours.grad is not None
    assert ours.grad.isfinite().all()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_cell_at_the_margin_is_no_negative() -> None:
    """The partner at the centre of cell (2, 1) and its four neighbours are alike; all else has a cosine of 0."""
    centre = torch.tensor([[4.5, 2.5]])
    side = Side("a", SIZE, centre, torch.tensor([True]), torch.tensor([0.0, 0.0, 11.0, 7.0]))
    features = torch.zeros(2, 4, 6)
    features[0] = 1.0
    for x, y in ((2, 1), (1, 1), (3, 1), (2, 0), (2, 2)):
        features[:, y, x] = torch.tensor([0.0, 1.0])
    loss = KeypointContrast(0.02, margin=1.0)([features], [features], [Pair(0, "car", "0", side, side)])
    assert float(loss.detach()) < 1e-3
