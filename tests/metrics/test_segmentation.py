"""J, F and J&F against loops over pixels, a hand-computed case, and two ranks."""

import doctest
import math
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.morphology import disk
from torch import Tensor, distributed, multiprocessing

from ditf_probe.errors import InputError
from ditf_probe.metrics import segmentation
from ditf_probe.metrics.segmentation import (
    METRICS,
    VideoObjectSegmentation,
    boundary_map,
    boundary_measure,
    region_similarity,
    sequence_statistics,
)


def slow_boundary(mask: list[list[bool]]) -> set[tuple[int, int]]:
    height, width = len(mask), len(mask[0])
    found = set()
    for y in range(height):
        for x in range(width):
            neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            inside = [mask[v][u] for v, u in neighbours if v < height and u < width]
            if any(value != mask[y][x] for value in inside):
                found.add((y, x))
    return found


def slow_f(prediction: np.ndarray, target: np.ndarray, bound_th: float) -> float:
    height, width = prediction.shape
    radius = math.ceil(bound_th * math.hypot(height, width))
    found, truth = slow_boundary(prediction.tolist()), slow_boundary(target.tolist())
    if not found and not truth:
        return 1.0
    if not found or not truth:
        return 0.0

    def near(a: set[tuple[int, int]], b: set[tuple[int, int]]) -> float:
        hits = [any((y - v) ** 2 + (x - u) ** 2 <= radius**2 for v, u in b) for y, x in a]
        return sum(hits) / len(a)

    precision, recall = near(found, truth), near(truth, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def slow_j(prediction: np.ndarray, target: np.ndarray) -> float:
    both = sum(a and b for a, b in zip(prediction.flat, target.flat, strict=True))
    either = sum(a or b for a, b in zip(prediction.flat, target.flat, strict=True))
    return both / either if either else 1.0


def slow_statistics(values: list[float]) -> tuple[float, float, float]:
    count = len(values)
    ends = []
    for part in range(5):
        place = 1 + part * (count - 1) / 4
        ends.append(math.floor(place + 0.5 + 1e-10) - 1)  # halves go up
    first, last = values[ends[0] : ends[1] + 1], values[ends[3] : ends[4] + 1]
    recall = sum(value > 0.5 for value in values) / count
    return sum(values) / count, recall, sum(first) / len(first) - sum(last) / len(last)


def blobs(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that follow from a number: rectangles, noise, and now and then an empty or a full one."""
    rng = np.random.default_rng(index)
    size = tuple(rng.integers(1, 14, 2))
    masks = []
    for _ in range(2):
        mask = rng.random(size) < rng.choice([0.0, 0.05, 0.5])
        y, x = (rng.integers(0, side) for side in size)
        mask[y : y + rng.integers(0, 8), x : x + rng.integers(0, 8)] ^= True
        masks.append(np.ones(size, dtype=bool) if rng.random() < 0.05 else mask)
    return masks[0], masks[1]


def test_equals_loops_over_pixels() -> None:
    for index in range(200):
        prediction, target = blobs(index)
        assert {tuple(place) for place in np.argwhere(boundary_map(target)).tolist()} == slow_boundary(target.tolist())
        assert region_similarity(prediction, target) == pytest.approx(slow_j(prediction, target), abs=1e-12)
        for bound_th in (0.008, 0.15):
            found = boundary_measure(prediction, target, bound_th)
            assert found == pytest.approx(slow_f(prediction, target, bound_th), abs=1e-12), index


def test_statistics_equal_loops() -> None:
    for count in range(1, 201):
        values = np.random.default_rng(count).random(count)
        assert sequence_statistics(values) == pytest.approx(slow_statistics(values.tolist()))
    assert all(map(math.isnan, sequence_statistics(np.zeros(0))))


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 8])
def test_disk_is_that_of_scikit_image(radius: int) -> None:
    assert (segmentation._disk(radius) == disk(radius)).all()


def test_distance_of_480p() -> None:
    """0.008 of the diagonal of 854 x 480 is 7.84 pixels: boundaries 8 apart match, 9 apart do not."""
    target = np.zeros((480, 854), dtype=bool)
    target[:, :400] = True
    for shift, expected in ((8, 1.0), (9, 0.0)):
        prediction = np.zeros_like(target)
        prediction[:, : 400 + shift] = True
        assert boundary_measure(prediction, target) == expected


def square(top: int, left: int, size: tuple[int, int] = (20, 30)) -> Tensor:
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[top : top + 8, left : left + 8] = 1
    return mask


def test_perfect_oracle() -> None:
    targets = torch.stack([square(4, 5 + time) for time in range(9)])
    targets[:, 14:18, 20:25] = 2
    metric = VideoObjectSegmentation()
    metric.update(targets, targets, num_objects=2, sequence_index=0)
    scores = {name: float(value) for name, value in metric.compute().items()}
    assert scores == dict.fromkeys(("J&F", "J", "J recall", "F", "F recall"), 100.0) | {"J decay": 0.0, "F decay": 0.0}


def test_constant_mask_by_hand() -> None:
    """An 8 x 8 square that moves 2 pixels per frame against its place in the first frame.

    Frames 1 to 3 of 5 count: 6, 4 and 2 of 8 columns are shared, so J = 48/80, 32/96, 16/112. In pictures of 20 x 30
    boundaries match within ceil(0.29) = 1 pixel. The boundary is a ring of 9 x 9 pixels, 32 in all. Moved by 2, the top
    and the bottom of a ring each have 8 pixels within 1 of the other ring; of one side none and of the other the two
    next to the corners, which the other's top and bottom pass. So 18 of 32, and 4 fewer for 2 columns more.
    """
    targets = torch.stack([square(6, 4 + 2 * time) for time in range(5)])
    metric = VideoObjectSegmentation()
    metric.update(targets[:1].expand(5, -1, -1), targets, num_objects=1, sequence_index=0)
    scores = metric.compute()
    assert float(scores["J"]) == pytest.approx(100 * (48 / 80 + 32 / 96 + 16 / 112) / 3)
    assert float(scores["J recall"]) == pytest.approx(100 / 3)
    # Quarters share their border frames: of three frames the first is two of them, the last one.
    assert float(scores["J decay"]) == pytest.approx(100 * ((48 / 80 + 32 / 96) / 2 - 16 / 112))
    shared = {2: 18, 4: 14, 6: 10}
    boundary = [slow_f(square(6, 4).numpy() > 0, square(6, 4 + shift).numpy() > 0, 0.008) for shift in shared]
    assert boundary == pytest.approx([count / 32 for count in shared.values()])
    assert float(scores["F"]) == pytest.approx(100 * sum(shared.values()) / 32 / 3)
    assert float(scores["J&F"]) == pytest.approx(float(scores["J"] + scores["F"]) / 2)


def sequence(index: int) -> tuple[Tensor, Tensor, int]:
    """Predictions and targets that follow from a number; as many objects as its remainder."""
    generator = torch.Generator().manual_seed(index)
    objects = 1 + index % 3
    shape = (3 + index % 8, 6 + index % 5, 9)
    targets = torch.randint(0, objects + 1, shape, generator=generator, dtype=torch.uint8)
    keep = torch.rand(shape, generator=generator) < 0.7
    return torch.where(keep, targets, torch.randint(0, objects + 1, shape, generator=generator)), targets, objects


def slow_scores(indices: list[int]) -> dict[str, float]:
    """Means over the objects of distinct sequences."""
    rows = []
    for index in sorted(set(indices)):
        predictions, targets, objects = sequence(index)
        for number in range(1, objects + 1):
            pairs = [
                (predictions[t].numpy() == number, targets[t].numpy() == number) for t in range(1, len(targets) - 1)
            ]
            regions = slow_statistics([slow_j(*pair) for pair in pairs])
            boundaries = slow_statistics([slow_f(*pair, 0.008) for pair in pairs])
            rows.append([(regions[0] + boundaries[0]) / 2, *regions, *boundaries])
    return {name: 100 * sum(row[i] for row in rows) / len(rows) for i, name in enumerate(METRICS)}


def feed(metric: VideoObjectSegmentation, indices: list[int]) -> None:
    for index in indices:
        predictions, targets, objects = sequence(index)
        metric.update(predictions, targets, objects, index)


def assert_scores(found: dict[str, float], indices: list[int]) -> None:
    assert {name: float(value) for name, value in found.items()} == pytest.approx(slow_scores(indices), abs=1e-4)


def test_means_over_objects_and_each_sequence_once() -> None:
    metric = VideoObjectSegmentation()
    feed(metric, [4, 2, 7, 2])
    assert_scores(metric.compute(), [4, 2, 7])
    rows = metric.rows()
    assert rows.sequence_index.tolist() == [2, 2, 2, 4, 4, 7, 7]
    assert rows.object_number.tolist() == [1, 2, 3, 1, 2, 1, 2]
    assert rows.metrics()["J&F"].mean() == pytest.approx(float(metric.compute()["J&F"]), abs=1e-4)


SHARES = {"even": ([0, 1], [2, 3]), "padded": ([0, 2, 4], [1, 3, 0]), "empty": ([], [5, 1]), "nobody": ([], [])}


def _process(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    scores = {}
    for name, shares in SHARES.items():
        metric = VideoObjectSegmentation()
        feed(metric, shares[rank])
        rows = metric.rows()
        means = {key: float(value) for key, value in metric.compute().items()}
        scores[name] = (means, rows.sequence_index.tolist(), len(metric.sequence_index))
    torch.save(scores, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_ranks_agree_with_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(_process, args=(port, tmp_path), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, shares in SHARES.items():
        everyone = sorted({index for share in shares for index in share})
        for rank in range(2):
            scores, sequences, own = ranks[rank][name]
            assert sorted(set(sequences)) == everyone
            assert own == len(shares[rank])  # gathering leaves a rank with what it saw
            if everyone:
                assert_scores(scores, everyone)
            else:
                assert all(map(math.isnan, scores.values()))


def masks(value: int = 1, dtype: torch.dtype = torch.uint8, frames: int = 4) -> Tensor:
    return torch.full((frames, 5, 6), value, dtype=dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": masks(frames=3)}, "`predictions` is '(3, 5, 6) for targets (4, 5, 6)'"),
        ({"predictions": masks(2)}, "`predictions` is 'values 2 to 2': number the objects from 1 to 1"),
        ({"targets": masks(-1, torch.int64)}, "`targets` is 'values -1 to -1'"),
        ({"targets": masks(dtype=torch.float32)}, "`targets` is torch.float32"),
        ({"num_objects": 0}, "`num_objects` is 0"),
        ({"sequence_index": -1}, "`sequence_index` is -1"),
        ({"sequence_index": 2**24}, "`sequence_index` is 16777216"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    arguments = {"predictions": masks(), "targets": masks(), "num_objects": 1, "sequence_index": 0}
    with pytest.raises(InputError, match=re.escape(message)):
        VideoObjectSegmentation().update(**(arguments | change))


def test_example() -> None:
    assert doctest.testmod(segmentation).failed == 0
