import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from ditf_probe.errors import InputError
from ditf_probe.metrics.predictions import COLUMNS, KeypointPredictions, Predictions, pad_points

KEYPOINTS = 4


def batch(indices: list[int]) -> dict[str, Tensor]:
    """A batch whose values follow from the pair index.

    Keypoint k of pair i is in the source unless (i + k) % 3 == 0, and in the target unless (i + k) % 5 == 0.
    """
    pair = torch.tensor(indices, dtype=torch.long).reshape(-1)
    k = torch.arange(KEYPOINTS)
    x = pair[:, None] * 10.0 + k
    return {
        "predictions": torch.stack([x, x + 0.25], dim=-1),
        "targets": torch.stack([x + 0.5, x + 0.125], dim=-1),
        "source_visible": (pair[:, None] + k) % 3 != 0,
        "target_visible": (pair[:, None] + k) % 5 != 0,
        "similarity": x / 1000,
        "threshold_base": pair + 7.5,
        "pair_index": pair,
        "accepted": (pair[:, None] + k) % 4 != 0,
        "ceiling": x / 100,
    }


def expected(indices: list[int]) -> list[tuple[float, ...]]:
    rows = []
    for i in sorted(set(indices)):
        for k in range(KEYPOINTS):
            if (i + k) % 3 == 0:
                continue
            x, there = 10.0 * i + k, (i + k) % 5 != 0
            # The target's keypoint j stands half a pixel right of prediction j; of equally near ones its own counts.
            nearest = k if there else min((j for j in range(KEYPOINTS) if (i + j) % 5), key=lambda j: abs(j + 0.5 - k))
            truth = (x + 0.5, x + 0.125, float(np.float32(x / 100))) if there else (np.nan,) * 3
            facts = (float(np.float32(x / 1000)), i + 7.5, there, (i + k) % 4 != 0, nearest)
            rows.append((i, k, x, x + 0.25, *truth[:2], *facts, truth[2]))
    return rows


def assert_rows(found: list[tuple[float, ...]], indices: list[int]) -> None:
    np.testing.assert_array_equal(np.array(found, dtype=np.float64), np.array(expected(indices), dtype=np.float64))


def rows_of(predictions: Predictions) -> list[tuple[float, ...]]:
    return list(zip(*(getattr(predictions, name).tolist() for name in COLUMNS), strict=True))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_rows_are_visible_keypoints_in_order_and_pairs_count_once() -> None:
    metric = KeypointPredictions()
    for indices in ([5, 2], [0], [2, 7]):
        metric.update(**batch(indices))
    assert_rows(rows_of(metric.rows()), [0, 2, 5, 7])
    metric.reset()
    assert len(metric.rows()) == 0


def test_nothing_visible_leaves_no_rows() -> None:
    values = batch([1, 2])
    values["source_visible"] = torch.zeros_like(values["source_visible"])
    metric = KeypointPredictions()
    metric.update(**values)
    assert len(metric.rows()) == 0


@pytest.mark.parametrize(("name", "hidden"), [("predictions", (1, 2)), ("targets", (2, 3))])
def test_nan_in_a_visible_keypoint_is_named_and_elsewhere_ignored(name: str, hidden: tuple[int, int]) -> None:
    values = batch([hidden[0]])
    values[name][0, hidden[1]] = float("nan")
    KeypointPredictions().update(**values)
    values = batch([1])
    values[name][0, 1] = float("nan")
    with pytest.raises(InputError, match=rf"`{name}` is \[nan, nan\]: .*keypoint 1 of pair 1"):
        KeypointPredictions().update(**values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ceiling": torch.zeros(1, KEYPOINTS)}, r"`ceiling` is \(1, 4\): give \(2, 4\)"),
        ({"target_visible": torch.zeros(2, KEYPOINTS)}, "`target_visible` is torch.float32: give bool"),
        ({"pair_index": torch.tensor([1, 2**24])}, "`pair_index` is 16777216"),
        ({"pair_index": torch.tensor([-1, 5])}, "`pair_index` is -1"),
        ({"similarity": torch.zeros(2, KEYPOINTS + 1)}, r"`similarity` is \(2, 5\): give \(2, 4\)"),
        ({"threshold_base": torch.tensor([7.0, torch.nan])}, "`threshold_base` is nan: give pair 2"),
        ({"predictions": torch.full((2, KEYPOINTS, 2), 1e300, dtype=torch.float64)}, "`predictions` is .inf, inf"),
    ],
)
def test_bad_input(change: dict[str, Tensor], message: str) -> None:
    values = batch([1, 2])
    KeypointPredictions().update(**values)
    with pytest.raises(InputError, match=message):
        KeypointPredictions().update(**(values | change))


def test_similarity_may_be_missing() -> None:
    values = batch([1])
    values["similarity"][:] = torch.nan
    metric = KeypointPredictions()
    metric.update(**values)
    assert np.isnan(metric.rows().similarity).all()
    assert len(metric.rows()) == 3


def test_acceptance_and_ceiling_may_be_left_out() -> None:
    values = batch([1, 4])
    metric = KeypointPredictions()
    metric.update(**{name: tensor for name, tensor in values.items() if name not in ("accepted", "ceiling")})
    rows = metric.rows()
    assert rows.accepted.all()
    assert np.isnan(rows.ceiling).all()


def test_a_pair_without_a_common_keypoint_needs_no_base() -> None:
    values = batch([1])
    values["threshold_base"][:] = torch.nan
    with pytest.raises(InputError, match="threshold_base"):
        KeypointPredictions().update(**values)
    values["target_visible"][:] = False
    metric = KeypointPredictions()
    metric.update(**values)
    rows = metric.rows()
    assert (rows.nearest == -1).all()
    assert not rows.present.any()
    assert np.isnan(rows.true_x).all()


def test_padding_marks_what_is_real() -> None:
    padded, real = pad_points([torch.ones(2, 2), torch.ones(0, 2), torch.full((3, 2), 2.0)])
    assert padded.shape == (3, 3, 2)
    assert real.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert padded[~real].abs().sum() == 0


def _rank(rank: int, folder: Path, shares: list[list[list[int]]]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(shares))
    metric = KeypointPredictions()
    for indices in shares[rank]:
        metric.update(**batch(indices))
    rows: Any = rows_of(metric.rows())
    torch.save(torch.tensor(rows, dtype=torch.float64), folder / f"rows{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "shares", [[[[0, 2], [4]], [[1, 3], [0]]], [[[0, 1, 2]], []]], ids=["uneven with a padded pair", "an empty rank"]
)
def test_two_ranks_agree_with_one(shares: list[list[list[int]]], tmp_path: Path) -> None:
    multiprocessing.start_processes(_rank, args=(tmp_path, shares), nprocs=2, start_method="fork")
    indices = [i for share in shares for indices in share for i in indices]
    for rank in range(2):
        rows = torch.load(tmp_path / f"rows{rank}.pt", weights_only=True)
        assert_rows(rows.tolist(), indices)
