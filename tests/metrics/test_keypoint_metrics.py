"""PCK-dagger, rejection, KAP, the geometry-aware subset and the ceiling of a grid against loops, on 1 and 2 ranks."""

import doctest
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from ditf_probe.errors import InputError
from ditf_probe.geometry import cell_centres
from ditf_probe.metrics import average_precision as kap
from ditf_probe.metrics.average_precision import KeypointAveragePrecision, average_precision
from ditf_probe.metrics.ceiling import distance_to_cells
from ditf_probe.metrics.nearest import nearest_keypoints
from ditf_probe.metrics.pck import PercentageCorrectKeypoints
from ditf_probe.metrics.subsets import geometry_aware

CASES = 200
ALPHAS = (0.05, 0.10, 0.30)


@cache
def make_pair(index: int) -> dict[str, Any]:
    """A pair that follows from its index: whole pixels and few cosines, so that ties come up; NaN where hidden."""
    generator = torch.Generator().manual_seed(index)

    def chance(share: float) -> Tensor:
        return torch.rand(count, generator=generator) < share

    count = 1 + index % 7
    targets = torch.randint(0, 40, (count, 2), generator=generator).float()
    predictions = targets + torch.randint(-6, 7, (count, 2), generator=generator).float()
    source, target = chance(0.8), chance(0.7) if index % 9 else torch.zeros(count, dtype=torch.bool)
    targets[~target], predictions[~source] = torch.nan, torch.nan
    similarity = torch.randint(-5, 6, (count,), generator=generator) / 5
    base = 20.0 + index % 5 if (source & target).any() else math.nan
    return {"predictions": predictions, "targets": targets, "source_visible": source, "target_visible": target,
            "similarity": similarity, "accepted": chance(0.8), "threshold_base": base, "pair_index": index,
            "category": ("cat", "dog", "räder")[index % 3]}  # fmt: skip


def batch(indices: list[int]) -> dict[str, Any]:
    pairs = [make_pair(index) for index in indices]
    ragged = ("predictions", "targets", "source_visible", "target_visible", "similarity", "accepted")
    found: dict[str, Any] = {
        name: torch.nn.utils.rnn.pad_sequence([pair[name] for pair in pairs], batch_first=True) for name in ragged
    }
    found["threshold_base"] = torch.tensor([pair["threshold_base"] for pair in pairs])
    found["pair_index"] = torch.tensor(indices)
    return found | {"category": [pair["category"] for pair in pairs]}


def within(pair: dict[str, Any], k: int, alpha: float) -> bool:
    gap = math.dist(pair["predictions"][k].tolist(), pair["targets"][k].tolist())
    return gap <= alpha * pair["threshold_base"]


def is_own(pair: dict[str, Any], k: int) -> bool:
    """No visible keypoint of the target is nearer to the prediction than its own."""
    found = pair["predictions"][k].tolist()
    gaps = {
        j: math.dist(found, pair["targets"][j].tolist())
        for j in range(len(pair["targets"]))
        if pair["target_visible"][j]
    }
    return all(gaps[k] <= gap for gap in gaps.values())


@cache
def slow_pck(alpha: float, *, dagger: bool, rejecting: bool) -> dict[str, float]:
    hits = points = 0
    shares = []
    for pair in map(make_pair, range(CASES)):
        own_hits = own_points = 0
        for k in range(len(pair["targets"])):
            if pair["source_visible"][k] and pair["target_visible"][k]:
                right = within(pair, k, alpha) and (is_own(pair, k) or not dagger)
                own_hits += right and bool(pair["accepted"][k] or not rejecting)
                own_points += 1
        if own_points:
            hits, points = hits + own_hits, points + own_points
            shares.append(own_hits / own_points)
    return {"per_point": 100 * hits / points, "per_image": 100 * sum(shares) / len(shares)}


def slow_average_precision(confidence: list[float], positive: list[bool]) -> float:
    """The sum over thresholds on the confidence, each of which looks at every match again."""
    total, area, before = sum(positive), 0.0, 0.0
    for limit in sorted(set(confidence), reverse=True):
        kept = [right for sure, right in zip(confidence, positive, strict=True) if sure >= limit]
        recall = sum(kept) / total if total else 0.0
        area += (recall - before) * sum(kept) / len(kept)
        before = recall
    return 100 * area


@cache
def slow_kap(alpha: float, *, rejecting: bool) -> float:
    confidence, positive = [], []
    for pair in map(make_pair, range(CASES)):
        for k in range(len(pair["targets"])):
            if pair["source_visible"][k]:
                kept = bool(pair["accepted"][k]) or not rejecting
                confidence.append(pair["similarity"][k].item() if kept else -math.inf)
                positive.append(bool(pair["target_visible"][k]) and within(pair, k, alpha))
    return slow_average_precision(confidence, positive)


METRICS: dict[str, Any] = {
    "pck": lambda: PercentageCorrectKeypoints(ALPHAS),
    "pck_rejecting": lambda: PercentageCorrectKeypoints(ALPHAS),
    "dagger": lambda: PercentageCorrectKeypoints(ALPHAS, dagger=True),
    "dagger_rejecting": lambda: PercentageCorrectKeypoints(ALPHAS, dagger=True),
    "kap": lambda: KeypointAveragePrecision(ALPHAS),
    "kap_rejecting": lambda: KeypointAveragePrecision(ALPHAS),
}


def run(share: list[list[int]]) -> dict[str, Any]:
    """Every metric over batches of pairs."""
    metrics = {name: make() for name, make in METRICS.items()}
    for indices in share:
        for name, metric in metrics.items():
            values = batch(indices)
            if not name.endswith("rejecting"):
                values.pop("accepted")
            if name.startswith("kap"):
                values.pop("category")
            else:
                values.pop("similarity")
                values["visible"] = values.pop("source_visible") & values["target_visible"]
                if not name.startswith("dagger"):
                    values.pop("target_visible")
            metric.update(**values)
    return {name: metric.compute() for name, metric in metrics.items()}


def assert_scores(found: dict[str, Any]) -> None:
    for name, scores in found.items():
        rejecting = name.endswith("rejecting")
        for alpha in ALPHAS:
            key = f"{alpha:.2f}"
            if name.startswith("kap"):
                assert scores[key].item() == pytest.approx(slow_kap(alpha, rejecting=rejecting), abs=1e-4)
                continue
            slow = slow_pck(alpha, dagger=name.startswith("dagger"), rejecting=rejecting)
            for average, score in slow.items():
                assert scores[average][key].item() == pytest.approx(score, abs=1e-4), (name, average)


def test_random_pairs_equal_slow_loops_and_pairs_count_once() -> None:
    found = run([list(range(start, start + 25)) for start in range(0, CASES, 25)] + [[3, 60, 61]])
    assert_scores(found)
    # The cases tell the metrics apart.
    scores = [found[name]["per_point"]["0.30"].item() for name in ("pck", "pck_rejecting", "dagger")]
    assert len({*scores, found["kap"]["0.30"].item(), found["kap_rejecting"]["0.30"].item()}) == 5
    assert max(scores) == scores[0]


SHARES = {
    "uneven": [[list(range(120)), [120, 121]], [list(range(122, CASES))]],
    "padded": [[list(range(0, CASES, 2))], [list(range(1, CASES, 2)), [0, 2]]],
    "an empty rank": [[list(range(CASES))], []],
}


def one_rank(rank: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save({name: run(shares[rank]) for name, shares in SHARES.items()}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_ranks_equal_slow_loops(tmp_path: Path) -> None:
    multiprocessing.start_processes(one_rank, args=(tmp_path,), nprocs=2, start_method="fork")
    for rank in (0, 1):
        for found in torch.load(tmp_path / f"{rank}.pt", weights_only=True).values():
            assert_scores(found)


def test_dagger_by_hand() -> None:
    """Two eyes 6 pixels apart, a threshold of 10: each prediction is within it of both, one nearer to the other eye."""
    targets = torch.tensor([[[10.0, 10.0], [16.0, 10.0], [90.0, 90.0]]])
    predictions = torch.tensor([[[14.0, 10.0], [16.0, 12.0], [14.0, 10.0]]])
    both = torch.tensor([[True, True, False]])
    assert nearest_keypoints(predictions, targets, both).tolist() == [[1, 1, 1]]
    metric = PercentageCorrectKeypoints((0.10,), dagger=True)
    arguments = (predictions, targets, both, torch.tensor([100.0]), torch.tensor([0]), ["face"])
    metric.update(*arguments, target_visible=both)
    assert metric.compute()["per_point"]["0.10"] == 50
    with pytest.raises(InputError, match="`target_visible` is None"):
        metric.update(*arguments)


def test_nearest_of_the_visible_ones_and_ties() -> None:
    targets = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [4.0, 0.0]]])
    predictions = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [2.0, 0.0]]])
    seen = torch.tensor([[True, True, True]])
    assert nearest_keypoints(predictions, targets, seen).tolist() == [[0, 1, 2]]  # ties fall to one's own
    targets[0, 1] = torch.nan
    seen = torch.tensor([[True, False, True]])
    assert nearest_keypoints(predictions, targets, seen).tolist() == [[0, 0, 2]]
    assert nearest_keypoints(predictions, targets, torch.zeros_like(seen)).tolist() == [[-1, -1, -1]]
    assert nearest_keypoints(torch.zeros(2, 0, 2), torch.zeros(2, 0, 2), torch.zeros(2, 0).bool()).shape == (2, 0)


def test_nearest_equals_slow_loops() -> None:
    for index in range(CASES):
        pair = make_pair(index)
        found = nearest_keypoints(*(pair[name][None] for name in ("predictions", "targets", "target_visible")))[0]
        for k in pair["source_visible"].nonzero()[:, 0].tolist():
            gaps = {
                j: math.dist(pair["predictions"][k].tolist(), pair["targets"][j].tolist())
                for j in pair["target_visible"].nonzero()[:, 0].tolist()
            }
            best = [j for j, gap in gaps.items() if gap == min(gaps.values())]
            assert found[k] == (-1 if not best else k if k in best else best[0])


def test_average_precision_by_hand_and_against_slow_loops() -> None:
    # Ranked: right, wrong, right, wrong. Precision 1 at recall 1/2, 2/3 at recall 1.
    assert average_precision(np.array([0.1, 0.9, 0.5, 0.7]), np.array([0, 1, 1, 0])) == pytest.approx(
        100 * (0.5 + 1 / 3)
    )
    assert average_precision(np.array([0.5, 0.5]), np.array([1, 0])) == 50  # equal ones fall together
    assert average_precision(np.array([0.5, 0.4]), np.array([0, 0])) == 0
    assert math.isnan(average_precision(np.zeros(0), np.zeros(0)))
    generator = np.random.default_rng(0)
    for case in range(CASES):
        confidence = generator.integers(0, 6, 1 + case % 20) / 5
        positive = generator.random(len(confidence)) < 0.5
        slow = slow_average_precision(confidence.tolist(), positive.tolist())
        assert average_precision(confidence, positive) == pytest.approx(slow)


def test_kap_asks_for_what_pck_does_not() -> None:
    """Every visible keypoint is found exactly, and the surest match is of one that is not there."""
    targets = torch.tensor([[[10.0, 10.0], [50.0, 30.0], [0.0, 0.0]]])
    shown, there = torch.tensor([[True, True, True]]), torch.tensor([[True, True, False]])
    similarity, base, index = torch.tensor([[0.8, 0.7, 0.9]]), torch.tensor([100.0]), torch.tensor([0])
    metric = KeypointAveragePrecision((0.10,))
    metric.update(targets, targets, shown, there, similarity, base, index)
    assert metric.compute()["0.10"].item() == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    metric.reset()
    metric.update(targets, targets, shown, there, similarity, base, index, accepted=there)
    assert metric.compute()["0.10"] == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarity": torch.full((1, 2), torch.nan)}, "`similarity` is nan: give a number"),
        ({"source_visible": torch.ones(1, 3, dtype=torch.bool)}, r"`source_visible` is \(1, 3\): give \(1, 2\)"),
        ({"accepted": torch.ones(1, 2)}, "`accepted` is torch.float32: give bool"),
        ({"predictions": torch.full((1, 2, 2), torch.nan)}, r"`predictions` is \[nan, nan\]: .*keypoint 0 of pair 4"),
    ],
)
def test_bad_input(change: dict[str, Tensor], message: str) -> None:
    values = {
        "predictions": torch.zeros(1, 2, 2),
        "targets": torch.zeros(1, 2, 2),
        "source_visible": torch.tensor([[True, False]]),
        "target_visible": torch.tensor([[False, True]]),
        "similarity": torch.zeros(1, 2),
        "threshold_base": torch.tensor([torch.nan]),  # nothing is visible in both
        "pair_index": torch.tensor([4]),
    }
    KeypointAveragePrecision().update(**values)
    with pytest.raises(InputError, match=message):
        KeypointAveragePrecision().update(**(values | change))


def test_geometry_aware_by_hand() -> None:
    groups = ((0, 1), (2, 3), (4, 5, 6))
    target = torch.tensor([1, 1, 1, 0, 1, 1, 0, 1]).bool()
    both = torch.tensor([1, 0, 1, 0, 1, 1, 0, 1]).bool()
    # 0: its twin is in the target. 2: its twin is not. 4 and 5: each other's. 7: in no group.
    assert geometry_aware(groups, both, target).nonzero()[:, 0].tolist() == [0, 4, 5]
    assert not geometry_aware((), both, target).any()


def test_geometry_aware_equals_slow_loops() -> None:
    generator = np.random.default_rng(1)
    for _ in range(CASES):
        count = int(generator.integers(1, 12))
        order = generator.permutation(count).tolist()
        cut = sorted(generator.integers(0, count + 1, 3).tolist())
        groups = [order[: cut[0]], order[cut[0] : cut[1]], order[cut[1] : cut[2]]]
        source, target = torch.from_numpy(generator.random((2, count)) < 0.6)
        slow = set()
        for group in groups:
            in_target = [k for k in group if target[k]]
            in_both = [k for k in group if target[k] and source[k]]
            if len(in_target) >= 2 and len(in_both) >= 1:
                slow |= set(in_both)
        found = geometry_aware(groups, source & target, target)
        assert set(found.nonzero()[:, 0].tolist()) == slow


def test_ceiling_equals_a_search_over_all_cell_centres() -> None:
    generator = np.random.default_rng(2)
    for _ in range(CASES):
        size = tuple(generator.integers(8, 200, 2).tolist())
        grid = tuple(generator.integers(1, 30, 2).tolist())
        points = torch.from_numpy(generator.random((5, 2)) * (size[1], size[0]) - 0.5)
        centres = cell_centres(grid, size).double()
        slow = [min(math.dist(point, centre) for centre in centres.tolist()) for point in points.tolist()]
        assert distance_to_cells(points, size, grid).tolist() == pytest.approx(slow, abs=1e-4)


def test_ceiling_by_hand() -> None:
    """Cells of 4 pixels: centres at 1.5 and 5.5 along each side of an image of 8."""
    points = torch.tensor([[1.5, 1.5], [3.5, 5.5], [-0.5, 1.5], [7.5, 7.5]])
    assert distance_to_cells(points, (8, 8), (2, 2)).tolist() == pytest.approx([0, 2, 2, 2 * math.sqrt(2)])


def test_example_of_the_documentation() -> None:
    result = doctest.testmod(kap)
    assert (result.failed, result.attempted) == (0, 10)
