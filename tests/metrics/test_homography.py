"""Corner and matching errors against plain loops, and homographies that are found again."""

import math

import numpy as np
import pytest
import torch

from ditf_probe.errors import InputError
from ditf_probe.metrics.homography import corner_error, estimate_homography, match_errors, project


def random_homography(generator, strength=0.2):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[:2, :2] += strength * torch.randn(2, 2, generator=generator).double()
    matrix[:2, 2] = 20 * torch.randn(2, generator=generator).double()
    matrix[2, :2] = 4e-4 * strength * torch.randn(2, generator=generator).double()
    return matrix


def slow_project(matrix, x, y):
    rows = [[float(number) for number in row] for row in matrix]
    u, v, w = (row[0] * x + row[1] * y + row[2] for row in rows)
    return u / w, v / w


@pytest.mark.parametrize("seed", range(200))
def test_errors_agree_with_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth, guess = random_homography(generator), random_homography(generator)
    height, width = (int(torch.randint(1, 400, (), generator=generator)) for _ in range(2))
    total = 0.0
    for x in (0, width - 1):
        for y in (0, height - 1):
            total += math.dist(slow_project(truth, x, y), slow_project(guess, x, y))
    assert corner_error(guess, truth, (height, width)) == pytest.approx(total / 4, rel=1e-9)
    source, target = (torch.rand(5, 2, generator=generator) * 300 for _ in range(2))
    found = match_errors(source, target, truth)
    for k in range(5):
        expected = math.dist(slow_project(truth, *source[k].tolist()), target[k].tolist())
        assert float(found[k]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("estimator", ["ransac", "magsac", "lmeds"])
@pytest.mark.parametrize("seed", range(5))
def test_outliers_do_not_matter(estimator: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = random_homography(generator)
    source = torch.rand(200, 2, generator=generator) * torch.tensor([320.0, 240.0])
    target = project(truth, source).float()
    target[:70] = torch.rand(70, 2, generator=generator) * 300
    found = estimate_homography(source, target, estimator=estimator)  # type: ignore[arg-type]
    assert found is not None
    assert found.dtype == torch.float64
    assert corner_error(found, truth, (240, 320)) < 0.1
    torch.manual_seed(seed)
    again = estimate_homography(source, target, estimator=estimator)  # type: ignore[arg-type]
    assert again is not None
    assert torch.equal(found, again)


def test_the_threshold_decides_what_is_an_inlier() -> None:
    generator = torch.Generator().manual_seed(3)
    source = torch.rand(60, 2, generator=generator) * 200
    target = source + 8 * torch.rand(60, 2, generator=generator)
    target[:12] = source[:12]
    near = estimate_homography(source, target, threshold=0.1)
    assert near is not None
    assert corner_error(near, torch.eye(3), (200, 200)) < 0.01
    far = estimate_homography(source, target, threshold=30.0)
    assert far is not None
    assert corner_error(far, torch.eye(3), (200, 200)) > 1


def test_corner_error_by_hand() -> None:
    shift = torch.tensor([[1.0, 0, 3], [0, 1, 4], [0, 0, 1]])
    assert corner_error(shift, torch.eye(3), (7, 9)) == 5.0
    assert corner_error(2 * torch.eye(3), torch.eye(3), (7, 9)) == 0.0
    # Twice as wide about the first column: the right corners of nine pixels move by eight, the left ones stay.
    assert corner_error(torch.diag(torch.tensor([2.0, 1, 1])), torch.eye(3), (7, 9)) == 4.0


def test_failures_are_infinite() -> None:
    assert corner_error(None, torch.eye(3), (7, 9)) == math.inf
    horizon = torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1 / 8, 0, 1]])  # the right corners go to infinity
    assert corner_error(horizon, torch.eye(3), (7, 9)) == math.inf
    origin = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])  # 0 / 0
    assert corner_error(origin, torch.eye(3), (7, 9)) == math.inf
    assert match_errors(torch.tensor([[8.0, 2.0]]), torch.zeros(1, 2), horizon).tolist() == [math.inf]


@pytest.mark.parametrize("estimator", ["ransac", "magsac", "lmeds"])
def test_degenerate_matches_give_no_homography_or_a_wrong_one(estimator: str) -> None:
    points = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    assert estimate_homography(points, points, estimator=estimator) is None  # type: ignore[arg-type]
    assert estimate_homography(points[:0], points[:0], estimator=estimator) is None  # type: ignore[arg-type]
    line = torch.arange(8.0)[:, None] * torch.tensor([1.0, 2.0])
    for ends in ((line, line), (torch.ones(8, 2), torch.ones(8, 2)), (line, torch.zeros(8, 2))):
        found = estimate_homography(*ends, estimator=estimator)  # type: ignore[arg-type]
        assert found is None or np.isfinite(found.numpy()).all()


def test_bad_input_is_named() -> None:
    points = torch.zeros(5, 2)
    with pytest.raises(InputError, match="estimator"):
        estimate_homography(points, points, estimator="dlt")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threshold"):
        estimate_homography(points, points, threshold=0)
    with pytest.raises(InputError, match="target"):
        estimate_homography(points, points[:4])
    with pytest.raises(InputError, match="target"):
        match_errors(points, points[:, :1], torch.eye(3))
