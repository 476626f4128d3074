import numpy as np
import pytest

from ditf_probe.errors import InputError
from ditf_probe.metrics import intervals
from ditf_probe.metrics.intervals import percentile_interval, resampled_scores, unit_count


def made_up(pairs=60, units=9, seed=0):
    """Counts of two methods; some pairs, and one whole unit, show nothing."""
    generator = np.random.default_rng(seed)
    names = [f"set {number}" for number in generator.integers(units, size=pairs)]
    points = generator.integers(0, 9, size=pairs)
    points[np.asarray(names) == "set 3"] = 0
    easy = generator.random(pairs)
    correct = np.stack([generator.binomial(points, easy), generator.binomial(points, easy * 0.7)], axis=1)
    return names, points, correct


def slow_scores(names, points, correct, statistic, resamples, seed):
    """Draws units one resample at a time and copies their pairs out."""
    present = sorted({name for name, count in zip(names, points, strict=True) if count})
    generator = np.random.default_rng(seed)
    scores = []
    for _ in range(resamples):
        times = generator.multinomial(len(present), [1 / len(present)] * len(present))
        drawn = []
        for name, copies in zip(present, times, strict=True):
            pairs = [i for i in range(len(names)) if names[i] == name and points[i]]
            drawn += pairs * int(copies)
        if statistic == "per_point":
            scores.append(100 * sum(correct[i] for i in drawn) / sum(points[i] for i in drawn))
        else:
            scores.append(100 * sum(correct[i] / points[i] for i in drawn) / len(drawn))
    return np.array(scores)


@pytest.mark.parametrize("statistic", ["per_point", "per_image"])
def test_equals_a_slow_loop(statistic):
    names, points, correct = made_up()
    found = resampled_scores(names, points, correct, statistic=statistic, resamples=150, seed=5)
    expected = slow_scores(names, points, correct, statistic, 150, 5)
    np.testing.assert_allclose(found, expected)
    low, high = np.percentile(expected[:, 0], [2.5, 97.5])
    assert percentile_interval(found[:, 0]) == pytest.approx((low, high))
    low, high = np.percentile(expected[:, 0] - expected[:, 1], [2.5, 97.5])
    assert percentile_interval(found[:, 0] - found[:, 1]) == pytest.approx((low, high))
    # Each method is scored as if it were alone.
    alone = resampled_scores(names, points, correct[:, 1:], statistic=statistic, resamples=150, seed=5)
    np.testing.assert_allclose(alone[:, 0], expected[:, 1])


def test_level_is_the_share_inside():
    assert percentile_interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))
    assert percentile_interval(np.arange(101.0), 0.5) == pytest.approx((25, 75))


def test_pieces_and_the_order_of_pairs_do_not_matter(monkeypatch):
    names, points, correct = made_up()
    expected = resampled_scores(names, points, correct, resamples=100)
    order = np.random.default_rng(1).permutation(len(names))
    shuffled = resampled_scores([names[i] for i in order], points[order], correct[order], resamples=100)
    np.testing.assert_allclose(shuffled, expected)
    monkeypatch.setattr(intervals, "RESAMPLES_AT_ONCE", 7 * 9)
    np.testing.assert_allclose(resampled_scores(names, points, correct, resamples=100), expected)
    assert not np.allclose(resampled_scores(names, points, correct, resamples=100, seed=1), expected)


def test_one_unit_has_no_interval():
    points, correct = np.array([4, 6, 0]), np.array([[2], [3], [0]])
    assert unit_count(["a", "a", "b"], points) == 1
    assert resampled_scores(["a", "a", "b"], points, correct) is None
    assert resampled_scores(["a", "a", "b"], points, np.repeat(correct, 2, axis=1)) is None
    assert resampled_scores([], np.zeros(0), np.zeros((0, 1))) is None
    assert resampled_scores(["a", "a", "b"], np.array([4, 6, 1]), correct).shape == (2000, 1)


def test_the_same_method_differs_by_nothing_and_a_constant_shift_is_certain():
    names, points, correct = made_up()
    twice = resampled_scores(names, points, correct[:, [0, 0]])
    assert percentile_interval(twice[:, 0] - twice[:, 1]) == (0.0, 0.0)
    # 1 of 2 against 0 of 2 in every pair: each resample differs by 50 points, though the scores could have varied.
    units = [str(i) for i in range(20)]
    scores = resampled_scores(units, np.full(20, 2), np.stack([np.ones(20), np.zeros(20)], 1), statistic="per_image")
    assert percentile_interval(scores[:, 0] - scores[:, 1]) == pytest.approx((50.0, 50.0))


def test_width_is_that_of_theory():
    """400 units of one point each, half of them right: standard error 50 / sqrt(400) = 2.5 percent."""
    units = [str(i) for i in range(400)]
    correct = np.arange(400)[:, None] % 2
    low, high = percentile_interval(resampled_scores(units, np.ones(400), correct, resamples=4000))
    assert (low + high) / 2 == pytest.approx(50, abs=0.5)
    assert high - low == pytest.approx(2 * 1.96 * 2.5, rel=0.06)
    # The same pairs in 20 units that are right or wrong as a whole: sqrt(20) times as wide.
    lumps = [str(i // 20) for i in range(400)]
    correct = np.arange(400)[:, None] // 20 % 2
    low, high = percentile_interval(resampled_scores(lumps, np.ones(400), correct, resamples=4000))
    assert high - low == pytest.approx(2 * 1.96 * 2.5 * 20**0.5, rel=0.12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_points": np.ones(2)}, r"`num_points` is \(2,\)"),
        ({"num_correct": np.ones((2, 1))}, r"`num_correct` is \(2, 1\)"),
        ({"num_correct": np.full((3, 1), 9.0)}, "`num_correct` is 9.0"),
        ({"num_correct": np.full((3, 1), np.nan)}, "`num_correct` is nan"),
        ({"num_correct": np.array([[1.0], [1.0], [-1.0]])}, "`num_correct` is -1.0: give pair 2 between 0 and its 1"),
        ({"statistic": "micro"}, "`statistic` is 'micro'"),
        ({"resamples": 0}, "`resamples` is 0"),
    ],
)
def test_bad_input(change, message):
    good = {"units": ["a", "b", "c"], "num_points": np.ones(3), "num_correct": np.ones((3, 1))}
    assert resampled_scores(**good) is not None
    with pytest.raises(InputError, match=message):
        resampled_scores(**(good | change))
    with pytest.raises(InputError, match="`level` is 95"):
        percentile_interval(np.ones(3), 95)
