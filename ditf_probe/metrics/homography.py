"""Homographies from matches, and how far homographies and matches are off."""

from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from ditf_probe.errors import InputError, check_choice
from ditf_probe.precision import to_float64

Estimator = Literal["ransac", "magsac", "lmeds"]
FEWEST_MATCHES = 4

_METHODS = {"ransac": cv2.RANSAC, "magsac": cv2.USAC_MAGSAC, "lmeds": cv2.LMEDS}


def estimate_homography(
    source: Tensor,
    target: Tensor,
    *,
    estimator: Estimator = "ransac",
    threshold: float = 3.0,
    max_iterations: int = 2000,
    confidence: float = 0.995,
    seed: int = 0,
) -> Tensor | None:
    """The homography of matches with outliers, by `cv2.findHomography`.

    Args:
        source: `(M, 2)` (x, y) in pixels of the source.
        target: `(M, 2)` in pixels of the target.
        estimator: "ransac", "magsac" (USAC_MAGSAC) or "lmeds" (least median of squares: no threshold, more than half
            of the matches must be right).
        threshold: Largest reprojection error of an inlier, in pixels of the target.
        max_iterations: Most samples that are tried.
        confidence: Wanted probability that the best sample is free of outliers.
        seed: Of opencv's random numbers.

    Returns:
        `(3, 3)` float64 on the CPU, from source to target; None with fewer than four matches, or where opencv finds
        none.

    Raises:
        InputError: An unknown estimator, a number out of range, or shapes that do not fit.
    """
    check_choice("estimator", estimator, Estimator)
    if not threshold > 0:
        raise InputError("threshold", threshold, "give a positive number of pixels")
    _check_matches(source, target)
    if len(source) < FEWEST_MATCHES:
        return None
    cv2.setRNGSeed(seed)
    first, second = (x.detach().cpu().float().numpy().reshape(-1, 1, 2) for x in (source, target))
    found: Any  # None where there is none, which opencv's types leave out
    found, _ = cv2.findHomography(
        first, second, _METHODS[estimator], threshold, maxIters=max_iterations, confidence=confidence
    )
    if found is None or found.shape != (3, 3) or not np.isfinite(found).all():
        return None
    return torch.from_numpy(np.asarray(found, dtype=np.float64))


def project(homography: Tensor, points: Tensor) -> Tensor:
    """Points `(..., 2)` (x, y) under a homography `(3, 3)`, in float64; what goes to infinity is infinite or NaN."""
    exact, matrix = to_float64(points), to_float64(homography)
    moved = torch.cat([exact, torch.ones_like(exact[..., :1])], dim=-1) @ matrix.to(exact.device).mT
    return moved[..., :2] / moved[..., 2:]


def corner_error(estimated: Tensor | None, truth: Tensor, size: Sequence[int]) -> float:
    """Mean distance of the four corners of an image under two homographies, in pixels of the target.

    Args:
        estimated: `(3, 3)`, or None where there is none.
        truth: `(3, 3)`.
        size: (height, width) of the source image; its corners are the centres of its corner pixels.

    Returns:
        The distance; infinite where there is no estimate, or it takes a corner to infinity.
    """
    if estimated is None:
        return float("inf")
    bottom, right = float(size[0] - 1), float(size[1] - 1)
    corners = torch.tensor([[0, 0], [right, 0], [0, bottom], [right, bottom]], dtype=torch.float64)
    apart = (project(estimated, corners) - project(truth, corners)).square().sum(-1).sqrt()
    return float(apart.nan_to_num(float("inf"), float("inf")).mean())


def match_errors(source: Tensor, target: Tensor, homography: Tensor) -> Tensor:
    """How far matches are off.

    Args:
        source: `(M, 2)` (x, y) in pixels of the source.
        target: `(M, 2)` in pixels of the target.
        homography: `(3, 3)`, the true one.

    Returns:
        `(M,)` float64, pixels of the target.
    """
    _check_matches(source, target)
    apart = (project(homography, source) - to_float64(target)).square().sum(-1).sqrt()
    return apart.nan_to_num(float("inf"), float("inf"))


def _check_matches(source: Tensor, target: Tensor) -> None:
    if source.ndim != 2 or source.shape[-1] != 2 or source.shape != target.shape:
        found = f"{tuple(source.shape)} and {tuple(target.shape)}"
        raise InputError("source, target", found, "give as many points (M, 2) on both sides")
