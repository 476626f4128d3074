"""The search by bounds against looking at every pixel."""

import shutil

import pytest
import torch

from ditf_probe.errors import InputError
from ditf_probe.matching import MatchingRule, PreparedMap, bounds, match_by_rule, match_prepared
from ditf_probe.matching.bounds import MARGIN, Limits, fused, upper_bounds
from ditf_probe.matching.cosines import CANCELLED, cosines, dot_products, unit
from ditf_probe.matching.search import SearchedMap, best_pixels


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def directions(count, channels, seed=0):
    return unit(noise(count, channels, seed=seed).double())


def every_pixel(descriptors, features, size):
    """All cosines `(K, H * W)` float64."""
    maps = torch.empty(len(descriptors), *size, dtype=torch.float64)
    for keypoints, rows, piece in cosines(descriptors, "features", features, size):
        maps[keypoints, rows] = piece
    return maps.flatten(1)


def check(descriptors, features, size):
    (pixel, best), *_ = best_pixels([descriptors], [SearchedMap("features", features, size)])
    maps = every_pixel(descriptors, features, size)
    highest, first = maps.max(1)
    assert (best - highest).abs().max() <= 1e-12
    # Another pixel than the first of the best may only be found where both are equal but for rounding.
    there = maps.gather(1, pixel[:, None])[:, 0]
    assert ((pixel == first) | (highest - there <= 1e-15)).all()
    return pixel, first


@pytest.mark.parametrize("seed", range(200))
def test_finds_what_looking_at_every_pixel_finds(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    channels, grid, size = draw(1, 12), (draw(1, 9), draw(1, 9)), (draw(1, 70), draw(1, 70))
    features = noise(channels, *grid, seed=seed)
    if seed % 4 == 1:
        features[:, draw(0, grid[0] - 1)] = 0
    if seed % 4 == 2:
        features = features.round()  # many equal and opposite cells
    if seed % 4 == 3:
        features = features * 1e-6 + noise(channels, 1, 1, seed=seed + 1)  # nearly constant: everything nearly ties
    check(directions(5, channels, seed), features, size)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_lengths_do_not_matter(factor):
    features = noise(16, 5, 7)
    first, _ = check(directions(9, 16), features, (50, 60))
    scaled, _ = check(directions(9, 16), features * factor, (50, 60))
    assert torch.equal(first, scaled)


def test_massive_channels_and_cells_of_very_different_lengths():
    features = noise(16, 6, 6)
    features[3] += 1000
    check(directions(9, 16), features, (61, 47))
    features = noise(16, 6, 6, seed=1) * 10 ** (4 * noise(1, 6, 6, seed=2))
    check(directions(9, 16), features, (61, 47))


def test_of_equal_pixels_the_first_is_found():
    descriptors = directions(4, 8)
    pixel, first = check(descriptors, torch.ones(8, 5, 5), (40, 40))
    assert pixel.tolist() == first.tolist() == [0] * 4
    pixel, first = check(descriptors, torch.zeros(8, 5, 5), (40, 40))
    assert pixel.tolist() == first.tolist() == [0] * 4
    columns = noise(8, 1, 5).expand(8, 5, 5)  # every row of the image is the same
    pixel, first = check(descriptors, columns, (40, 40))
    assert torch.equal(pixel, first)
    assert (pixel < 40).all()


def test_descriptors_that_are_opposite_to_everything():
    features = noise(8, 4, 4) * 0.1 + 1
    pixel, first = check(-unit(features.flatten(1).mean(1)[None].double()), features, (30, 30))
    assert torch.equal(pixel, first)


def test_what_grows_out_of_a_sum_that_cancels_is_looked_at():
    """Half-way between opposite cells the length counts as zero, and what lies a little below is of no known angle."""
    first, second, rest = torch.eye(3, dtype=torch.float64)
    nothing = 0.5 * CANCELLED**0.5
    top = torch.stack([first, 2 * nothing * rest - first, *[second] * 10])
    bottom = torch.stack([*[second] * 11, second + 1.5e-4 * rest])
    size = (4000, 18)
    pixel, found = check(rest[None], torch.stack([top, bottom]).permute(2, 0, 1), size)
    assert torch.equal(pixel, found)
    assert pixel % size[1] == 1


def test_between_opposite_rows_anything_may_be():
    """Half-way between u and -u + e n stands n alone; float32 could not tell that from their cosines."""
    first, second = torch.eye(2, dtype=torch.float64)
    top = torch.stack([*[first] * 11, first + 0.6 * second])
    bottom = torch.stack([1e-4 * second - first, *[first] * 10, first + 0.6 * second])
    pixel, found = check(second[None], torch.stack([top, bottom]).permute(2, 0, 1), (31, 12))
    assert pixel.tolist() == found.tolist() == [15 * 12]


def test_maps_that_nearly_tie_are_looked_at_in_bands_of_rows(monkeypatch):
    monkeypatch.setattr("ditf_probe.matching.cosines.ROW_PIECE", 1)
    for size in ((45, 31), (31, 45)):
        features = noise(8, 5, 6) * 1e-6 + noise(8, 1, 1, seed=1)
        pixel, _ = check(directions(7, 8), features, size)
        assert (pixel >= size[1]).any(), "one of them is not in the first row"


def test_bytes_are_those_of_what_is_kept():
    searched = SearchedMap("features", noise(8, 4, 7), (30, 50))
    kept = [*searched.gram, searched.squares, searched.inverse, *searched.limits]
    assert searched.nbytes == sum(x.nbytes for x in kept)


@pytest.mark.parametrize("seed", range(50))
def test_bounds_hold_and_are_close(seed):
    """Between two grid rows no pixel is above its bound; with many pixels the best comes near it."""
    grid, size = (4, 5), (160, 25)
    features, descriptors = noise(6, *grid, seed=seed), directions(3, 6, seed=seed + 1000)
    if seed % 2:  # rows that are much alike, and what lies between two of them
        features = noise(6, 1, 5, seed=seed) + 0.2 * features
        descriptors = unit((features[:, :-1] + features[:, 1:]).flatten(1).T[:3].double())
    searched = SearchedMap("features", features, size)
    limits = Limits(*(x[None] for x in searched.limits))
    bounds = upper_bounds(dot_products(descriptors, features), searched.x, limits)
    maps = every_pixel(descriptors, features, size).view(-1, *size)
    for row in range(grid[0]):
        best = maps[:, searched.y.low == row].amax(1)
        assert (bounds[:, row] >= best - MARGIN / 10).all()
        close = (bounds[:, row] - best) < 0.05
        assert (close | (best < 0) | (bounds[:, row] == 2)).all()  # 2: float32 cannot tell


def test_few_columns_are_looked_at(monkeypatch):
    """On smooth maps the bounds leave a handful of columns per descriptor."""
    from ditf_probe.matching import pixels

    looked = []
    best = pixels.Pixels.best
    monkeypatch.setattr(pixels.Pixels, "best", lambda self, at: looked.append(len(at.map)) or best(self, at))
    features = torch.nn.functional.interpolate(noise(1, 32, 5, 5), (20, 20), mode="bicubic")[0]
    check(directions(10, 32), features, (320, 320))
    assert sum(looked) < 10 * 0.01 * 20 * 320


def test_many_maps_at_once_equal_one_by_one():
    sizes = [(40, 50), (40, 50), (33, 50), (40, 50)]
    counts = [3, 0, 7, 5]
    maps = [noise(8, 5, 6, seed=i) for i in range(4)]
    descriptors = [directions(count, 8, seed=i) for i, count in enumerate(counts)]
    searched = [SearchedMap("features", one, size) for one, size in zip(maps, sizes, strict=True)]
    together = best_pixels(descriptors, searched)
    small = best_pixels(descriptors, searched, budget=1)
    for i, (pixel, best) in enumerate(together):
        ((alone, cosine),) = best_pixels([descriptors[i]], [searched[i]])
        assert len(pixel) == counts[i]
        assert torch.equal(pixel, alone)
        assert torch.equal(pixel, small[i][0])
        torch.testing.assert_close(best, cosine, rtol=0, atol=1e-15)


RULES = [
    MatchingRule(),
    MatchingRule(check="mutual", rounding="integer"),
    MatchingRule("window_softargmax", window=5),
    MatchingRule(precision="float16", check="ratio"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.kind}-{rule.check}")
def test_prepared_pairs_match_as_each_alone(rule):
    cases = []
    for i, (source_size, target_size) in enumerate([((40, 50), (30, 60)), ((20, 20), (30, 60)), ((40, 50), (31, 60))]):
        maps = noise(8, 4 + i, 5, seed=i), noise(8, 6, 5 - i, seed=10 + i)
        points = torch.rand(3 + i, 2, generator=torch.Generator().manual_seed(i)) * 19
        cases.append((*maps, points, source_size, target_size))
    shared = PreparedMap.of(cases[0][1], cases[0][4], rule)
    prepared = [(PreparedMap.of(a, x, rule), PreparedMap.of(b, y, rule), points) for a, b, points, x, y in cases]
    prepared[0] = (prepared[0][0], shared, prepared[0][2])
    found = match_prepared(prepared)
    for case, matches in zip(cases, found, strict=True):
        for one, expected in zip(matches, match_by_rule(*case, rule), strict=True):
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-6)
    again = match_prepared([(prepared[1][0], shared, prepared[1][2])])[0]
    assert again[0].shape == (4, 2)
    assert match_prepared([]) == []


def test_prepared_maps_that_do_not_fit_are_refused():
    a, b = PreparedMap.of(noise(8, 4, 4), (9, 9)), PreparedMap.of(noise(7, 4, 4), (9, 9))
    with pytest.raises(InputError, match=r"`target_features` is \(7, 4, 4\)"):
        match_prepared([(a, b, torch.zeros(1, 2))])
    broken = noise(8, 4, 4)
    broken[0, 0, 0] = torch.nan
    bad = PreparedMap.of(broken, (9, 9), prefix="target_")
    with pytest.raises(InputError, match=r"`target_features` is .* NaN or infinity"):
        match_prepared([(a, bad, torch.zeros(1, 2))])
    with pytest.raises(InputError, match="NaN or infinity"):
        match_prepared([(bad, a, torch.zeros(1, 2))])


@pytest.mark.parametrize("missing", ["triton", "compiler", "headers", None])
def test_bounds_are_fused_where_triton_can_build(missing, monkeypatch, tmp_path):
    """On a GPU without what it builds with, as in images without compilers, they are computed as anywhere else."""
    (tmp_path / "Python.h").touch()
    folder = tmp_path / "none" if missing == "headers" else tmp_path
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(bounds.sysconfig, "get_path", lambda *names: str(folder))
    monkeypatch.setattr(bounds, "find_spec", lambda name: None if missing == "triton" else name)
    monkeypatch.setattr(bounds.shutil, "which", lambda name: None if missing == "compiler" else name)
    bounds._triton_builds.cache_clear()
    try:
        assert bounds.can_fuse(torch.device("cuda")) == (missing is None)
        assert not bounds.can_fuse(torch.device("cpu"))
    finally:
        bounds._triton_builds.cache_clear()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_fused_bounds_equal_the_plain_ones():
    features, descriptors = noise(6, 6, 3), directions(3, 6)
    searched = SearchedMap("features", features, (5, 50))  # less rows than the grid: some have no pixel
    limits = Limits(*(x[None] for x in searched.limits))
    dots = dot_products(descriptors, features)
    plain, found = upper_bounds(dots, searched.x, limits), fused()(dots, searched.x, limits)
    assert plain.isinf().any()
    assert torch.equal(found.isinf(), plain.isinf())
    assert (found - plain).abs().nan_to_num(0.0).max() <= MARGIN / 10
