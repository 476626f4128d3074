"""Dense matches against brute force over all pixels of both images."""

import pytest
import torch
from torch.nn import functional as F

from ditf_probe.errors import InputError
from ditf_probe.matching import match_dense

CLOSE = 1e-5  # cosines that differ by less are ties of the border, where any winner is right


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def upsampled(feature, size):
    big = F.interpolate(feature[None].double(), size, mode="bilinear", align_corners=False)[0]
    return F.normalize(big, dim=0)


def slow_grid(feature, size, stride):
    """Points and unit descriptors: the cells themselves, or pixels of the map at full resolution."""
    if stride is None:
        height, width = feature.shape[1:]
        ys = [(row + 0.5) * size[0] / height - 0.5 for row in range(height)]
        xs = [(column + 0.5) * size[1] / width - 0.5 for column in range(width)]
        return xs, ys, F.normalize(feature.double(), dim=0)
    ys, xs = ([p for p in range(side) if p % stride == min(stride - 1, side - 1) // 2] for side in size)
    return xs, ys, upsampled(feature, size)[:, ys][:, :, xs]


def draw_case(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    channels = draw(6, 16)
    maps = [features(channels, draw(1, 6), draw(1, 6), seed=seed + 1000 * k) for k in (1, 2)]
    sizes = [(draw(1, 20), draw(1, 20)) for _ in range(2)]
    return maps, sizes, (None, None, 3, 5)[draw(0, 3)], (None, 2.0, 0.0)[draw(0, 2)], draw(2000, 60000)


@pytest.mark.parametrize("seed", range(200))
def test_equals_the_slow_reference(seed: int) -> None:
    (source, target), (source_size, target_size), stride, max_cycle, budget = draw_case(seed)
    found = match_dense(source, target, source_size, target_size, stride=stride, max_cycle=max_cycle, budget=budget)
    loose = match_dense(source, target, source_size, target_size, stride=stride, max_cycle=max_cycle, mutual=False)
    assert torch.equal(found.flow, loose.flow)
    assert torch.equal(found.cycle, loose.cycle)
    xs, ys, grid = slow_grid(source, source_size, stride)
    wide_source, wide_target = upsampled(source, source_size), upsampled(target, target_size)
    cell = max(source_size[0] / source.shape[1], source_size[1] / source.shape[2])
    limit = cell if max_cycle is None else max_cycle
    assert found.flow.shape == (2, len(ys), len(xs))
    for r, y in enumerate(ys):
        for c, x in enumerate(xs):
            torch.testing.assert_close(found.points[:, r, c].double(), torch.tensor([x, y]).double(), atol=1e-4, rtol=0)
            there = (wide_target * grid[:, r, c, None, None]).sum(0)
            u, v = (found.points + found.flow)[:, r, c].round().long().tolist()
            assert there.max() - there[v, u] <= CLOSE
            assert abs(found.confidence[r, c] - there.max()) <= CLOSE
            back = (wide_source * wide_target[:, v, u, None, None]).sum(0)
            rows, columns = (back.max() - back <= CLOSE).nonzero(as_tuple=True)
            errors = ((rows - y) ** 2 + (columns - x) ** 2).double().sqrt()
            cycle = float(found.cycle[r, c])
            assert (errors - cycle).abs().min() <= 1e-3
            assert bool(loose.matched[r, c]) == (cycle <= limit)
            rivals = (grid * wide_target[:, v, u, None, None]).sum(0)
            own = float(rivals[r, c])
            rivals[r, c] = -1
            if abs(own - rivals.max()) > CLOSE:
                assert bool(found.matched[r, c]) == (cycle <= limit and own > rivals.max())


def test_an_image_matches_itself() -> None:
    own = features(16, 5, 7)
    found = match_dense(own, own, (20, 28), (20, 28))
    # The centre of a cell of four pixels lies between pixels: the nearest are half a diagonal away.
    assert found.flow[:, 1:-1, 1:-1].abs().max() == 0.5
    assert found.cycle[1:-1, 1:-1].max() == pytest.approx(0.5**0.5)
    assert found.flow[:, 0, 0].tolist() == [-1.5, -1.5]  # the first of the pixels that repeat the corner
    assert found.matched.all()
    exact = match_dense(own, own, (20, 28), (20, 28), stride=4)
    inside = exact.flow[:, 1:-1, 1:-1]
    assert torch.equal(inside, torch.zeros_like(inside))
    assert exact.confidence.min() > 0.999999


def test_a_shift_and_what_has_no_match() -> None:
    wide = features(24, 4, 9)
    source, target = wide[:, :, :6], wide[:, :, 3:6]
    found = match_dense(source, target, (4, 6), (4, 3))  # a pixel per cell
    assert torch.equal(found.flow[:, :, 3:], torch.tensor([-3.0, 0.0])[:, None, None].expand(2, 4, 3))
    assert found.matched[:, 3:].all()
    assert (found.confidence[:, 3:] > 0.999).all()
    assert not found.matched[:, :3].any()


def test_a_target_twice_as_large() -> None:
    own = features(16, 4, 4)
    found = match_dense(own, own, (4, 4), (8, 8))
    # Interpolation over twice the pixels has its cells between pixels, a quarter of a source pixel away.
    torch.testing.assert_close(found.flow, found.points + 0.5, atol=0.5, rtol=0)
    assert found.matched.all()


def test_equal_places_do_not_spoil_each_other() -> None:
    flat = torch.ones(3, 2, 2)
    found = match_dense(flat, flat, (2, 2), (2, 2), max_cycle=10)
    assert found.matched.all()
    assert torch.equal(found.flow, -found.points)  # the first pixel for all


def test_any_budget_finds_the_same() -> None:
    source, target = features(8, 6, 5), features(8, 4, 7, seed=1)
    whole = match_dense(source, target, (30, 25), (24, 35))
    for budget in (1, 700, 5000):
        part = match_dense(source, target, (30, 25), (24, 35), budget=budget)
        for name in ("points", "flow", "confidence", "cycle", "matched"):
            assert torch.equal(getattr(whole, name), getattr(part, name)), name


@pytest.mark.parametrize(
    ("argument", "options"), [("stride", {"stride": 0}), ("max_cycle", {"max_cycle": -1.0}), ("budget", {"budget": 0})]
)
def test_bad_options_are_named(argument: str, options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=argument):
        match_dense(features(3, 2, 2), features(3, 2, 2), (4, 4), (4, 4), **options)


def test_a_batch_is_refused() -> None:
    with pytest.raises(InputError, match="source_features"):
        match_dense(features(1, 3, 2, 2), features(1, 3, 2, 2), (4, 4), (4, 4))
