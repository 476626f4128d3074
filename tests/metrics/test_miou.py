"""mIoU against loops and torchmetrics, on one and two ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics.classification import MulticlassJaccardIndex

from ditf_probe.errors import InputError
from ditf_probe.metrics.miou import MeanIntersectionOverUnion, PixelCounts, segmentation_scores

CLASSES = 5


def images(seed: int, count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        size = torch.randint(1, 9, (2,), generator=generator).tolist()
        few = int(torch.randint(1, CLASSES + 1, (1,), generator=generator))  # some classes stay away
        targets = torch.randint(0, few, size, generator=generator)
        targets[torch.rand(size, generator=generator) < 0.2] = 255
        made.append((torch.randint(0, few, size, generator=generator), targets))
    return made


def slow(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    both, predicted, true = ([0] * CLASSES for _ in range(3))
    for found, truth in pairs:
        for p, t in zip(found.flatten().tolist(), truth.flatten().tolist(), strict=True):
            if t != 255:
                predicted[p] += 1
                true[t] += 1
                both[p] += p == t
    unions = [p + t - b for p, t, b in zip(predicted, true, both, strict=True)]
    ious = [b / u for b, u in zip(both, unions, strict=True) if u]
    recalls = [b / t for b, t in zip(both, true, strict=True) if t]
    if not sum(true):
        return {name: float("nan") for name in ("mIoU", "mAcc", "aAcc")}
    return {
        "mIoU": 100 * sum(ious) / len(ious),
        "mAcc": 100 * sum(recalls) / len(recalls),
        "aAcc": 100 * sum(both) / sum(true),
    }


@pytest.mark.parametrize("seed", range(200))
def test_against_a_loop(seed: int) -> None:
    metric = MeanIntersectionOverUnion(CLASSES)
    for index, (found, truth) in enumerate(images(seed)):
        metric.update(found, truth, index)
    scores = metric.compute()
    for name, expected in slow(images(seed)).items():
        assert float(scores[name]) == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_against_torchmetrics() -> None:
    metric, other = MeanIntersectionOverUnion(CLASSES), MulticlassJaccardIndex(CLASSES, ignore_index=255)
    for index, (found, truth) in enumerate(images(7, 6)):
        metric.update(found, truth, index)
        other.update(found, truth)
    assert float(metric.compute()["mIoU"]) == pytest.approx(100 * float(other.compute()), rel=1e-6)


def test_by_hand() -> None:
    metric = MeanIntersectionOverUnion(3)
    metric.update(torch.tensor([[0, 0], [1, 1]]), torch.tensor([[0, 1], [1, 255]]), 0)
    # Class 0: 1 of 2; class 1: 1 of 2; class 2 is nowhere.
    assert {name: round(float(score), 4) for name, score in metric.compute().items()} == {
        "mIoU": 50.0,
        "mAcc": 75.0,
        "aAcc": 66.6667,
    }


def test_an_image_counts_once() -> None:
    metric = PixelCounts(2)
    for value in (0, 1):
        metric.update(torch.full((2, 2), value), torch.zeros(2, 2, dtype=torch.long), 4)
    assert metric.compute()["counts"].tolist() == [[[4, 0], [4, 0], [4, 0]]]


def test_resamples_are_scored_at_once() -> None:
    counts = np.stack([np.array([[1.0, 2], [2, 2], [1, 3]]), np.array([[0.0, 1], [1, 4], [4, 1]])])
    together = segmentation_scores(counts)["mIoU"]
    for one, score in zip(counts, together, strict=True):
        assert segmentation_scores(one)["mIoU"] == score


def test_refusals() -> None:
    metric = PixelCounts(2)
    with pytest.raises(InputError, match="predictions"):
        metric.update(torch.zeros(2, 2), torch.zeros(2, 3), 0)
    with pytest.raises(InputError, match="predictions"):
        metric.update(torch.full((1, 1), 2), torch.zeros(1, 1), 0)
    with pytest.raises(InputError, match="targets"):
        metric.update(torch.zeros(1, 1), torch.full((1, 1), 9), 0)
    with pytest.raises(InputError, match="num_classes"):
        PixelCounts(0)


def _rank(rank: int, port: Path, answer: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=2)
    metric = MeanIntersectionOverUnion(CLASSES)
    for index, (found, truth) in enumerate(images(3, 5)):
        if index % 2 == rank or index == 4:  # the last is padding on one of them
            metric.update(found, truth, index)
    scores = metric.compute()
    if rank == 0:
        torch.save(scores, answer)
    dist.destroy_process_group()


def test_two_ranks(tmp_path: Path) -> None:
    mp.start_processes(_rank, (tmp_path / "port", tmp_path / "scores.pt"), nprocs=2, start_method="fork")
    scores = torch.load(tmp_path / "scores.pt", weights_only=True)
    for name, expected in slow(images(3, 5)).items():
        assert float(scores[name]) == pytest.approx(expected, rel=1e-6)
