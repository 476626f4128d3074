"""Standardisation and whitening against loops in float64, against scipy, and by hand."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.features.normalisation import (
    FittedNorm,
    Moments,
    deviations,
    moments,
    standardise,
    whiten,
    whitening_matrix,
)


def correlated(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mix + 5 * torch.randn(width, generator=generator)


def slow_moments(tokens: Tensor) -> tuple[list[float], list[list[float]]]:
    rows = tokens.double().tolist()
    count, width = len(rows), len(rows[0])
    mean = [math.fsum(row[c] for row in rows) / count for c in range(width)]
    return mean, [
        [math.fsum((row[a] - mean[a]) * (row[b] - mean[b]) for row in rows) / count for b in range(width)]
        for a in range(width)
    ]


def slow_whitening(tokens: Tensor, shrinkage: float) -> np.ndarray:
    """The matrix by scipy's power of a matrix, from numpy's own covariance."""
    covariance = np.cov(tokens.double().numpy(), rowvar=False, bias=True)
    deviation = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(deviation, deviation)
    shrunk = (1 - shrinkage) * correlation + shrinkage * np.eye(len(correlation))
    return np.diag(1 / deviation) @ scipy.linalg.fractional_matrix_power(shrunk, -0.5).real


def test_moments_against_loops_over_tokens() -> None:
    streams = [correlated(12, 5, 0).reshape(3, 4, 5), correlated(20, 5, 1).reshape(2, 2, 5, 5)]
    found = moments(streams, covariance=True)
    mean, covariance = slow_moments(torch.cat([stream.reshape(-1, 5) for stream in streams]))
    assert found.tokens == 32
    np.testing.assert_allclose(found.mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance.numpy(), covariance, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.variance.numpy(), np.diag(covariance), rtol=1e-12)
    assert moments(streams).covariance is None
    assert torch.equal(moments(streams).variance, found.variance)


def test_moments_without_channels_are_those_of_streams_without_them() -> None:
    stream = correlated(30, 6, 3)
    zeroed = stream.clone()
    zeroed[:, [1, 4]] = 0
    found, expected = moments([stream], covariance=True).without([4, 1]), moments([zeroed], covariance=True)
    for name in ("mean", "variance", "covariance"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    whole = moments([stream])
    assert whole.without([]) is whole
    assert whole.without([0]).covariance is None


@pytest.mark.parametrize("case", range(200))
def test_standardisation_against_a_loop(case: int) -> None:
    width = 1 + case % 7
    stream, other = correlated(9, width, case), correlated(4, width, case + 1)
    fitted = moments([stream])
    found = standardise(other, fitted.mean, deviations(fitted))
    assert found.dtype == torch.float32
    mean, covariance = slow_moments(stream)
    for token, row in zip(other.double().tolist(), found.tolist(), strict=True):
        expected = [(token[c] - mean[c]) / math.sqrt(covariance[c][c]) for c in range(width)]
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("case", range(200))
def test_whitening_against_scipy(case: int) -> None:
    width, shrinkage = 2 + case % 6, (0.02, 0.1, 0.5, 1.0)[case % 4]
    stream, other = correlated(5 + case % 30, width, case), correlated(4, width, case + 1).double()
    fitted = moments([stream], covariance=True)
    matrix = whitening_matrix(fitted, shrinkage)
    expected = slow_whitening(stream, shrinkage)
    np.testing.assert_allclose(matrix.numpy(), expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())
    found = whiten(other, fitted.mean, matrix)
    mean = stream.double().mean(0).numpy()
    np.testing.assert_allclose(found.numpy(), (other.numpy() - mean) @ expected, rtol=1e-5, atol=1e-6)


def test_two_channels_by_hand() -> None:
    """Means 3 and -1, deviations 2 and 1, correlation 0.6; shrunk by a half 0.3, with eigenvalues 1.3 and 0.7."""
    covariance = torch.tensor([[4.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
    fitted = Moments(9, torch.tensor([3.0, -1.0], dtype=torch.float64), covariance.diagonal(), covariance)
    x = torch.tensor([[5.0, -1.0]])
    assert standardise(x, fitted.mean, deviations(fitted)).tolist() == [[1.0, 0.0]]
    own, cross = ((1.3**-0.5 + sign * 0.7**-0.5) / 2 for sign in (1, -1))
    found = whiten(x, fitted.mean, whitening_matrix(fitted, 0.5))
    assert found.tolist() == [pytest.approx([own, cross], rel=1e-6)]


def test_what_whitening_does() -> None:
    tokens = correlated(4000, 6, 5).double()
    tokens[:, 2] *= 1000  # a massive channel
    fitted = moments([tokens], covariance=True)
    white = whiten(tokens, fitted.mean, whitening_matrix(fitted, 1e-9))
    torch.testing.assert_close(white.T @ white / len(tokens), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-6)
    assert float(white.mean(0).abs().max()) < 1e-9
    alike = torch.stack([torch.corrcoef(torch.stack([white[:, c], tokens[:, c]]))[0, 1] for c in range(6)])
    assert float(alike.min()) > 0.3, "channels stay what they are, unlike those of PCA whitening"


def test_cosines_are_those_of_pca_whitening() -> None:
    tokens = correlated(300, 5, 6).double()
    fitted = moments([tokens], covariance=True)
    values, vectors = torch.linalg.eigh(fitted.covariance)
    pca = (tokens - fitted.mean) @ vectors / values.sqrt()
    found = whiten(tokens, fitted.mean, whitening_matrix(fitted, 1e-12))
    first, second = (torch.nn.functional.normalize(x, dim=1) for x in (pca, found))
    torch.testing.assert_close(first @ first.T, second @ second.T, rtol=0, atol=1e-7)


def test_full_shrinkage_is_standardisation() -> None:
    tokens = correlated(50, 6, 7)
    fitted = moments([tokens], covariance=True)
    found = whiten(tokens, fitted.mean, whitening_matrix(fitted, 1.0))
    torch.testing.assert_close(found, standardise(tokens, fitted.mean, deviations(fitted)))


def test_the_scale_of_one_channel_changes_no_other() -> None:
    tokens = correlated(40, 6, 8).double()
    scaled = tokens.clone()
    scaled[:, 0] *= 1e4
    found = [whiten(x, m.mean, whitening_matrix(m, 0.1)) for x in (tokens, scaled) for m in [moments([x], True)]]
    torch.testing.assert_close(found[0], found[1])


def test_fewer_tokens_than_channels() -> None:
    tokens = correlated(3, 24, 9)
    fitted = moments([tokens], covariance=True)
    matrix = whitening_matrix(fitted, 0.1)
    assert bool(matrix.isfinite().all())
    scale = matrix / deviations(fitted)[:, None]
    assert float(torch.linalg.matrix_norm(scale, 2)) <= 0.1**-0.5 + 1e-6  # no direction is blown up further
    single = moments([tokens[:1]], covariance=True)
    assert not whitening_matrix(single, 0.1).any(), "one token says nothing of any deviation"


@pytest.mark.parametrize("value", [0.0, 40.1, 1e-30])
def test_constant_channels_say_nothing(value: float) -> None:
    tokens = correlated(30, 4, 10)
    tokens[:, 1] = value
    fitted = moments([tokens], covariance=True)
    assert float(deviations(fitted)[1]) == 0
    for found in (
        standardise(tokens, fitted.mean, deviations(fitted)),
        whiten(tokens, fitted.mean, whitening_matrix(fitted, 0.1)),
    ):
        assert not found[:, 1].any()
        assert bool(found[:, [0, 2, 3]].any(0).all())
    rest = moments([tokens[:, [0, 2, 3]]], covariance=True)
    expected = whitening_matrix(rest, 0.1)
    torch.testing.assert_close(whitening_matrix(fitted, 0.1)[[0, 2, 3]][:, [0, 2, 3]], expected)


def test_a_fitted_norm_is_either() -> None:
    x, mean = torch.tensor([[3.0, 5.0]]), torch.tensor([1.0, 1.0])
    assert FittedNorm(mean, torch.tensor([0.5, 2.0]))(x).tolist() == [[1.0, 8.0]]
    assert FittedNorm(mean, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))(x).tolist() == [[4.0, 2.0]]


def test_refusals() -> None:
    tokens = correlated(5, 3, 0)
    for shrinkage in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="whiten_shrinkage"):
            whitening_matrix(moments([tokens], covariance=True), shrinkage)
    with pytest.raises(InputError, match="calibrate"):
        whitening_matrix(moments([tokens]), 0.1)
    with pytest.raises(InputError, match="no tokens"):
        moments([tokens[:0]])
    tokens[0, 0] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        moments([tokens])
