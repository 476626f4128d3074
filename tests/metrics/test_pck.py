import doctest
import math
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from ditf_probe.errors import InputError
from ditf_probe.metrics import pck
from ditf_probe.metrics.pck import ALPHAS, PercentageCorrectKeypoints, alpha_key, pck_counts

CATEGORIES = ("cat", "dog", "räder 🚲")


def make_pair(index):
    """A pair that follows from its index: ragged, some keypoints invisible, every seventh pair without any."""
    generator = torch.Generator().manual_seed(index)
    count = 1 + index % 5
    targets = torch.rand(count, 2, generator=generator) * 100
    predictions = targets + torch.randn(count, 2, generator=generator) * 8
    visible = torch.rand(count, generator=generator) > 0.3 if index % 7 else torch.zeros(count, dtype=torch.bool)
    base = 60 + 10.0 * (index % 4) if visible.any() else math.nan
    return {"predictions": predictions, "targets": targets, "visible": visible, "base": base, "index": index,
            "category": CATEGORIES[index % 3]}  # fmt: skip


def update(metric, indices):
    """One call with all pairs; the padding is invisible and holds NaN."""
    pairs = [make_pair(index) for index in indices]
    longest = max((len(pair["visible"]) for pair in pairs), default=3)
    points = torch.full((2, len(pairs), longest, 2), torch.nan)
    visible = torch.zeros(len(pairs), longest, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        count = len(pair["visible"])
        points[0, row, :count], points[1, row, :count] = pair["predictions"], pair["targets"]
        visible[row, :count] = pair["visible"]
    base = torch.tensor([pair["base"] for pair in pairs])
    metric.update(
        points[0], points[1], visible, base, torch.tensor(indices).long(), [pair["category"] for pair in pairs]
    )


def slow_scores(indices, alpha, strict=False):
    """Plain loops over keypoints, pairs and categories."""
    rows = []
    for pair in map(make_pair, sorted(set(indices))):
        hits = total = 0
        for found, truth, seen in zip(pair["predictions"], pair["targets"], pair["visible"], strict=True):
            if seen:
                distance = math.dist(found.tolist(), truth.tolist())
                limit = alpha * pair["base"]
                hits += distance < limit if strict else distance <= limit
                total += 1
        if total:
            rows.append((pair["category"], hits, total))

    def point(rows):
        return 100 * sum(hits for _, hits, _ in rows) / sum(total for _, _, total in rows)

    def image(rows):
        return 100 * sum(hits / total for _, hits, total in rows) / len(rows)

    groups = [[row for row in rows if row[0] == name] for name in {name for name, _, _ in rows}]
    return {
        "per_point": point(rows),
        "per_image": image(rows),
        "category_macro": sum(map(point, groups)) / len(groups),
        "category_macro_per_image": sum(map(image, groups)) / len(groups),
    }


def assert_scores(found, indices):
    assert list(found) == ["per_point", "per_image", "category_macro", "category_macro_per_image"]
    for alpha in ALPHAS:
        for name, score in slow_scores(indices, alpha).items():
            assert found[name][f"{alpha:.2f}"].item() == pytest.approx(score, abs=1e-4)


def test_counts_by_hand():
    targets = torch.tensor([[[10.0, 10.0], [20.0, 20.0], [30.0, 30.0]], [[0.0, 0.0], [5.0, 5.0], [9.0, 9.0]]])
    offsets = torch.tensor([[[3.0, 4.0], [5.0, 0.0], [5.1, 0.0]], [[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]])
    visible = torch.tensor([[True, True, True], [True, False, True]])
    base = torch.tensor([50.0, 20.0])
    points, correct = pck_counts(targets + offsets, targets, visible, base, (0.05, 0.10))
    assert points.tolist() == [3, 2]
    assert correct.tolist() == [[0, 2], [1, 2]]
    _, correct = pck_counts(targets + offsets, targets, visible, base, (0.05, 0.10), strict=True)
    assert correct.tolist() == [[0, 0], [1, 1]]


def test_whole_distances_on_a_threshold_are_correct():
    """No rounding takes a tie away: 0.15 * 20 = 3, 0.1 * 70 = 7, 0.01 * 700 = 7, ..."""
    for text, numerator in (("0.01", 1), ("0.05", 5), ("0.10", 10), ("0.15", 15)):
        bases = [base for base in range(1, 3000) if numerator * base % 100 == 0]
        distance = torch.tensor([numerator * base // 100 for base in bases]).float()
        found = torch.stack([distance, torch.zeros_like(distance)], dim=-1)[:, None]
        visible = torch.ones(len(bases), 1, dtype=torch.bool)
        _, correct = pck_counts(found, torch.zeros_like(found), visible, torch.tensor(bases).float(), (float(text),))
        assert correct.all()


def test_averages_by_hand():
    """Two cats (1 of 1, 1 of 3) and a dog (0 of 2): per point 2/6, per image (1 + 1/3 + 0)/3, cats 2/4, dogs 0."""
    metric = PercentageCorrectKeypoints(alphas=(0.1,))
    targets = torch.zeros(3, 3, 2)
    predictions = torch.zeros(3, 3, 2)
    predictions[1, 1:] = 50
    predictions[2] = 50
    visible = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
    metric.update(predictions, targets, visible, torch.full((3,), 10.0), torch.arange(3), ["cat", "cat", "dog"])
    scores = {name: values["0.10"].item() for name, values in metric.compute().items()}
    assert scores == pytest.approx({
        "per_point": 100 * 2 / 6, "per_image": 100 * 4 / 9,
        "category_macro": 25.0, "category_macro_per_image": 100 * (2 / 3) / 2,
    })  # fmt: skip


def test_equals_slow_loops_over_ragged_updates_with_duplicates():
    metric = PercentageCorrectKeypoints()
    for indices in ([0, 1, 2], [3], [4, 5, 6, 7, 8, 9, 2, 9], [], [14, 0], list(range(10, 40))):
        update(metric, indices)
    assert_scores(metric.compute(), range(40))
    strict = PercentageCorrectKeypoints(alphas=(0.10,), strict=True)
    update(strict, list(range(40)))
    expected = slow_scores(range(40), 0.10, strict=True)
    assert strict.compute()["per_point"]["0.10"].item() == pytest.approx(expected["per_point"], abs=1e-4)


def test_a_pair_that_comes_twice_counts_as_it_came_first():
    metric = PercentageCorrectKeypoints(alphas=(0.1,))
    one = torch.ones(1, 1, dtype=torch.bool)
    for distance in (0.0, 99.0):
        found, index = torch.full((1, 1, 2), distance), torch.ones(1).long()
        metric.update(found, torch.zeros(1, 1, 2), one, torch.ones(1), index, ["a"])
    assert metric.compute()["per_point"]["0.10"] == 100


def test_nothing_visible_scores_nan_and_reset_starts_anew():
    metric = PercentageCorrectKeypoints()
    update(metric, [7, 14])
    assert all(score.isnan() for scores in metric.compute().values() for score in scores.values())
    metric.reset()
    update(metric, [1, 2, 3])
    assert_scores(metric.compute(), [1, 2, 3])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_update_scores_nan():
    assert PercentageCorrectKeypoints().compute()["per_image"]["0.15"].isnan()


def test_pickles_clones_and_keeps_no_state_in_checkpoints():
    metric = PercentageCorrectKeypoints()
    update(metric, [1, 2, 3, 4])
    for copy in (pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert_scores(copy.compute(), [1, 2, 3, 4])
    assert metric.state_dict() == {}
    assert metric.higher_is_better


def test_keys_of_thresholds():
    assert [alpha_key(alpha) for alpha in (0.01, 0.1, 0.15, 1, 0.005)] == ["0.01", "0.10", "0.15", "1.00", "0.005"]


def test_example_of_the_documentation():
    assert doctest.testmod(pck) == (0, 7)


SHARES = {
    "uneven": [[[0, 1, 2, 3, 4], [5]], [[6, 8]]],
    "empty rank": [[list(range(12))], []],
    "padded": [[[0, 2, 4]], [[1, 3, 0]]],
    "a rank without points": [[[3, 6, 9], [1]], [[7, 14], []]],
}


def one_rank(rank, shares, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for name, ranks in shares.items():
        metric = PercentageCorrectKeypoints()
        for indices in ranks[rank]:
            update(metric, indices)
        found[name] = metric.compute()
    found["nobody"] = PercentageCorrectKeypoints().compute()
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.start_processes(
        one_rank, (SHARES, str(folder)), nprocs=2, join=False, start_method="fork"
    )
    while not context.join(timeout=60):
        pass
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", SHARES)
def test_two_ranks_agree_with_one(name, two_ranks):
    seen = [index for rank in SHARES[name] for indices in rank for index in indices]
    for scores in two_ranks:
        assert_scores(scores[name], seen)


def test_two_ranks_without_pairs_score_nan(two_ranks):
    assert all(scores["nobody"]["category_macro"]["0.10"].isnan() for scores in two_ranks)


def arguments():
    return {
        "predictions": torch.zeros(2, 3, 2),
        "targets": torch.zeros(2, 3, 2),
        "visible": torch.tensor([[True, True, False], [True, False, False]]),
        "threshold_base": torch.tensor([10.0, 20.0]),
        "pair_index": torch.tensor([4, 5]),
        "category": ["cat", "dog"],
    }


def spoilt(value, *place):
    points = torch.zeros(2, 3, 2)
    points[place] = value
    return points


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": spoilt(torch.nan, 1, 0)}, r"`predictions` is \[nan, nan\]: .*keypoint 0 of pair 5"),
        ({"targets": spoilt(torch.inf, 0, 1, 1)}, r"`targets` is \[0.0, inf\]: .*keypoint 1 of pair 4"),
        ({"predictions": torch.zeros(2, 3)}, r"`predictions` is \(2, 3\)"),
        ({"targets": torch.zeros(2, 4, 2)}, r"`targets` is \(2, 4, 2\)"),
        ({"visible": torch.ones(2, 3)}, "`visible` is torch.float32"),
        ({"threshold_base": torch.tensor([10.0, torch.nan])}, "`threshold_base` is nan: .*pair 5"),
        ({"threshold_base": torch.tensor([-1.0, 2.0])}, "`threshold_base` is -1.0: .*pair 4"),
        ({"threshold_base": torch.ones(3)}, r"`threshold_base` is \(3,\)"),
        ({"pair_index": torch.tensor([0.0, 1.0])}, "`pair_index` is torch.float32"),
        ({"pair_index": torch.tensor([0, 2**24])}, "`pair_index` is 16777216"),
        ({"pair_index": torch.tensor([0, -1])}, "`pair_index` is -1"),
        ({"category": ["cat"]}, r"`category` is \['cat'\]"),
        ({"category": "ab"}, "`category` is 'ab'"),
    ],
)
def test_bad_input(change, message):
    metric = PercentageCorrectKeypoints()
    metric.update(**arguments())
    with pytest.raises(InputError, match=message):
        metric.update(**(arguments() | change))


def test_coordinates_of_invisible_keypoints_do_not_matter():
    metric = PercentageCorrectKeypoints()
    metric.update(**(arguments() | {"predictions": spoilt(torch.nan, 0, 2)}))
    assert metric.compute()["per_point"]["0.01"] == 100


@pytest.mark.parametrize("alphas", [(), (0.0,), (-0.1, 0.1), (math.nan,), (0.1, 0.1)])
def test_bad_thresholds(alphas):
    with pytest.raises(InputError, match="`alphas` is"):
        PercentageCorrectKeypoints(alphas=alphas)
