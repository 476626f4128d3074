"""Accuracies over pairs against plain loops, on one and two ranks."""

import doctest
import math
import os
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from ditf_probe.errors import InputError
from ditf_probe.metrics import planar
from ditf_probe.metrics.planar import HomographyAccuracy, MeanMatchingAccuracy

CASES = 200


def make_pair(case: int, index: int) -> tuple[float, torch.Tensor, bool]:
    """Corner error, match errors and change of a pair; some fail, some have no match, some stand on a threshold."""
    generator = torch.Generator().manual_seed(1000 * case + index)
    corner = math.inf if index % 5 == 4 else float(torch.rand((), generator=generator) * 7)
    corner = float(index % 7) if index % 3 == 0 else corner
    errors = torch.rand(int(torch.randint(0, 6, (), generator=generator)), generator=generator) * 12
    errors[: index % 2] = 3.0
    return corner, errors, bool((case + index) % 3)


def indices_of(case: int) -> list[int]:
    """Which pairs a case shows, some twice, as padded loaders do."""
    generator = torch.Generator().manual_seed(case)
    count = int(torch.randint(1, 9, (), generator=generator))
    shown = torch.randint(0, 9, (count,), generator=generator).tolist()
    return shown + shown[:2]


def slow_scores(case: int) -> tuple[dict, dict]:
    pairs = [make_pair(case, index) for index in sorted(set(indices_of(case)))]
    accuracy: dict = {}
    matching: dict = {}
    for change, wanted in (("all", (True, False)), ("viewpoint", (True,)), ("illumination", (False,))):
        own = [pair for pair in pairs if pair[2] in wanted]
        accuracy[change], matching[change] = {}, {}
        for t in (1, 3, 5):
            hits = [corner <= t for corner, _, _ in own]
            accuracy[change][str(t)] = 100 * sum(hits) / len(own) if own else math.nan
        for t in range(1, 11):
            shares = []
            for _, errors, _ in own:
                close = [error for error in errors.tolist() if error <= t]
                shares.append(len(close) / len(errors) if len(errors) else 0.0)
            matching[change][str(t)] = 100 * sum(shares) / len(own) if own else math.nan
    return accuracy, matching


def update(accuracy: HomographyAccuracy, matching: MeanMatchingAccuracy, case: int, indices: list[int]) -> None:
    for start in range(0, len(indices), 3):
        batch = indices[start : start + 3]
        pairs = [make_pair(case, index) for index in batch]
        index, viewpoint = torch.tensor(batch), torch.tensor([pair[2] for pair in pairs])
        accuracy.update(torch.tensor([pair[0] for pair in pairs]), viewpoint, index)
        matching.update([pair[1] for pair in pairs], viewpoint, index)


def assert_scores(found: dict, expected: dict) -> None:
    assert {change: list(row) for change, row in found.items()} == {c: list(row) for c, row in expected.items()}
    for change, row in expected.items():
        for key, score in row.items():
            assert float(found[change][key]) == pytest.approx(score, abs=1e-4, nan_ok=True), (change, key)


@pytest.mark.parametrize("case", range(CASES))
def test_agrees_with_loops(case: int) -> None:
    metrics = HomographyAccuracy(), MeanMatchingAccuracy()
    update(*metrics, case, indices_of(case))
    for metric, expected in zip(metrics, slow_scores(case), strict=True):
        assert_scores(metric.compute(), expected)


def one_rank(rank: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = []
    for case in range(CASES):
        metrics = HomographyAccuracy(), MeanMatchingAccuracy()
        update(*metrics, case, indices_of(case)[rank::2])
        columns = {}
        if case % 20 == 0:
            columns = {name: torch.from_numpy(values) for name, values in metrics[1].pairs().items()}
        found.append(([metric.compute() for metric in metrics], columns))
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_agree_with_loops(tmp_path: Path) -> None:
    context = multiprocessing.start_processes(one_rank, (str(tmp_path),), nprocs=2, join=False, start_method="fork")
    while not context.join(timeout=60):
        pass
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for case, (scores, columns) in enumerate(found):
            for score, expected in zip(scores, slow_scores(case), strict=True):
                assert_scores(score, expected)
            if case % 20:
                continue
            assert columns["pair_index"].tolist() == sorted(set(indices_of(case)))
            errors = [make_pair(case, index)[1] for index in sorted(set(indices_of(case)))]
            assert columns["num_correct_3"].tolist() == [int((e <= 3).sum()) for e in errors]


def test_the_first_copy_counts_and_nothing_is_nan() -> None:
    metric = HomographyAccuracy((2, 2.5))
    metric.update(torch.tensor([1.0, 9.0]), torch.tensor([True, True]), torch.tensor([7, 7]))
    scores = metric.compute()
    assert scores["viewpoint"] == {"2": 100, "2.5": 100}
    assert scores["illumination"]["2"].isnan()
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert metric.compute()["all"]["2"].isnan()
    assert list(metric.pairs()) == ["pair_index", "viewpoint", "corner_error"]


def test_examples_of_the_documentation() -> None:
    assert doctest.testmod(planar).failed == 0
    assert doctest.testmod(planar).attempted > 4


def test_bad_input_is_named() -> None:
    one, seen, index = torch.ones(1), torch.tensor([True]), torch.tensor([0])
    for arguments, name in (
        ((torch.tensor([math.nan]), seen, index), "corner_error"),
        ((-one, seen, index), "corner_error"),
        ((one, one, index), "viewpoint"),
        ((one, seen, index.float()), "pair_index"),
        ((one, seen, index - 1), "pair_index"),
    ):
        with pytest.raises(InputError, match=name):
            HomographyAccuracy().update(*arguments)
    for errors in ([], [torch.zeros(2, 2)], [torch.tensor([math.nan])]):
        with pytest.raises(InputError, match="errors"):
            MeanMatchingAccuracy().update(errors, seen, index)
    for thresholds in ((), (0.0,), (1, 1.0), (math.inf,)):
        with pytest.raises(InputError, match="thresholds"):
            HomographyAccuracy(thresholds)
