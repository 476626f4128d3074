"""Normalisations that are fitted to the tokens of calibration images: per-channel standardisation and whitening.

Layer norm, RMS norm and AdaLN look at one token at a time; these look at one channel, or at all pairs of channels, over
many tokens. Both are affine: y = (x - mean) A. Everything that is fitted is computed in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ditf_probe.errors import InputError

_CONSTANT = 1e-6  # a standard deviation below this part of a channel's root mean square is rounding


@dataclass(frozen=True)
class Moments:
    """What the tokens of calibration images have in common.

    Attributes:
        tokens: How many there were.
        mean: `(C,)` float64.
        variance: `(C,)` float64, over all tokens of all images (divided by their number).
        covariance: `(C, C)` float64, or None where it was not asked for.
    """

    tokens: int
    mean: Tensor
    variance: Tensor
    covariance: Tensor | None = None

    def without(self, channels: Sequence[int]) -> "Moments":
        """The moments of the same tokens with some channels set to zero."""
        if not channels:
            return self
        zero = torch.tensor(sorted(channels), dtype=torch.int64, device=self.mean.device)
        covariance = self.covariance
        if covariance is not None:
            covariance = covariance.index_fill(0, zero, 0).index_fill(1, zero, 0)
        mean, variance = (x.index_fill(0, zero, 0) for x in (self.mean, self.variance))
        return replace(self, mean=mean, variance=variance, covariance=covariance)


def moments(streams: Sequence[Tensor], covariance: bool = False) -> Moments:
    """Mean and variance of every channel over all tokens, and the covariance of channels where it is asked for.

    Args:
        streams: `(..., C)` each, tokens on the leading axes.
        covariance: Whether to compute it: `tokens * C * C` products.

    Raises:
        InputError: There are no tokens, or values that are not finite.
    """
    count = sum(stream[..., 0].numel() for stream in streams)
    if not count:
        raise InputError("images", "no tokens", "give at least one calibration image")
    mean = torch.stack([_tokens(stream).sum(0) for stream in streams]).sum(0) / count
    if not bool(mean.isfinite().all()):
        raise InputError("hidden_states", "not finite", "streams saturate, use bfloat16 or float32")
    squares, products = torch.zeros_like(mean), mean.new_zeros(len(mean), len(mean)) if covariance else None
    for stream in streams:
        centred = _tokens(stream) - mean
        squares += centred.square().sum(0)
        if products is not None:
            products += centred.T @ centred
    return Moments(count, mean, squares / count, None if products is None else products / count)


def deviations(fitted: Moments) -> Tensor:
    """One over the standard deviation of every channel `(C,)` float64; 0 where a channel is constant."""
    floor = _CONSTANT**2 * (fitted.variance + fitted.mean.square())
    return torch.where(fitted.variance > floor, fitted.variance.rsqrt(), 0.0)


def whitening_matrix(fitted: Moments, shrinkage: float) -> Tensor:
    """The matrix A of whitening, y = (x - mean) A: afterwards channels have variance one and no correlation.

    It is ZCA-cor whitening (Kessy, Lewin and Strimmer, "Optimal Whitening and Decorrelation", 2018): channels are
    standardised, then multiplied by the inverse square root of their correlation matrix, so that each stays as close
    to what it was as whitening allows. Cosines are those of ZCA and PCA whitening, which differ by a rotation.

    Correlations are shrunk first, R' = (1 - shrinkage) R + shrinkage I (the target of Schaefer and Strimmer, 2005),
    which has an inverse however few tokens there were. Shrinking correlations and not covariances leaves the scale of
    every channel its own: the variance of a massive channel tells nothing of the others. 1 is standardisation.

    Args:
        fitted: With the covariance.
        shrinkage: Above 0, up to 1.

    Returns:
        `(C, C)` float64; rows and columns of constant channels are zero.

    Raises:
        InputError: A shrinkage out of range, or no covariance.
    """
    check_shrinkage(shrinkage)
    if fitted.covariance is None:
        raise InputError("modulation", "whiten", "call extractor.calibrate(images, modulations=['whiten']) first")
    inverse = deviations(fitted)
    correlation = inverse[:, None] * fitted.covariance * inverse
    correlation = (1 - shrinkage) * correlation
    correlation.diagonal().fill_(1.0)
    values, vectors = torch.linalg.eigh(correlation)
    # No eigenvalue is below the shrinkage, but for rounding.
    root = (vectors * values.clamp_min(shrinkage).rsqrt()) @ vectors.T
    matrix: Tensor = inverse[:, None] * root * (inverse > 0)
    return matrix


def check_shrinkage(shrinkage: float) -> None:
    """Refuses what does not make every correlation matrix invertible.

    Raises:
        InputError: Out of range.
    """
    if not 0 < shrinkage <= 1:
        raise InputError("whiten_shrinkage", shrinkage, "use a number above 0, up to 1")


def standardise(x: Tensor, mean: Tensor, inverse_deviation: Tensor) -> Tensor:
    """Per-channel standardisation, (x - mean) / deviation.

    Args:
        x: `(..., C)`.
        mean: `(C,)`.
        inverse_deviation: `(C,)`, as `deviations` gives it.

    Returns:
        `(..., C)` of the dtype of `x`.
    """
    return (x - mean.to(x)) * inverse_deviation.to(x)


def whiten(x: Tensor, mean: Tensor, matrix: Tensor) -> Tensor:
    """Whitening, (x - mean) A.

    Args:
        x: `(..., C)`.
        mean: `(C,)`.
        matrix: `(C, C)`, as `whitening_matrix` gives it.

    Returns:
        `(..., C)` of the dtype of `x`.
    """
    return (x - mean.to(x)) @ matrix.to(x)


@dataclass(frozen=True)
class FittedNorm:
    """A fitted normalisation, ready to use.

    Attributes:
        mean: `(C,)`.
        factor: `(C,)` inverse deviations, or `(C, C)` whitening matrix.
    """

    mean: Tensor
    factor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Normalises `(..., C)`."""
        return (standardise if self.factor.ndim == 1 else whiten)(x, self.mean, self.factor)


def _tokens(stream: Tensor) -> Tensor:
    return stream.flatten(0, -2).double()
