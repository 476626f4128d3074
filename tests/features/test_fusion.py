"""Fusion and joint PCA against values worked out by hand and slow references."""

import doctest
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.features import fusion
from ditf_probe.features.fusion import fuse, joint_pca
from ditf_probe.geometry import crop_features, fit
from ditf_probe.matching import match_keypoints


def random_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_fuse_by_hand() -> None:
    one = torch.tensor([3.0, 0.0]).view(1, 1, 2).expand(2, 1, 2) * torch.tensor([1.0, 4 / 3]).view(2, 1, 1)
    other = torch.tensor([[[-7.0, 0.5]]])
    # (3, 4) has length 5, so 2 * (0.6, 0.8); a zero stays zero; a single channel becomes its sign.
    expected = torch.tensor([[[1.2, 0.0]], [[1.6, 0.0]], [[-0.5, 0.5]]])
    torch.testing.assert_close(fuse([one, other], weights=[2, 0.5]), expected)


def test_resampled_by_hand_before_it_is_normalised() -> None:
    coarse = torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]])  # (2, 1, 2): (1, 0) and (0, 3)
    fine = torch.ones(1, 1, 4)
    # Four cells over two: centres at -0.25, 0.25, 0.75, 1.25 of the coarse cells, outer ones repeated.
    mixed = [(1.0, 0.0), (0.75, 0.75), (0.25, 2.25), (0.0, 3.0)]
    expected = torch.tensor([[x / math.hypot(x, y), y / math.hypot(x, y), 1.0] for x, y in mixed]).T[:, None]
    torch.testing.assert_close(fuse([coarse, fine]), expected)


@pytest.mark.parametrize(
    ("grid", "size"), [("finest", (4, 6)), ("coarsest", (3, 3)), ((2, 5), (2, 5)), ([7, 1], (7, 1))]
)
def test_the_common_grid(grid: object, size: tuple[int, int]) -> None:
    fused = fuse([random_map(5, 3, 3), random_map(2, 4, 6)], grid=grid)
    assert fused.shape == (7, *size)
    for part in fused.split([5, 2]):
        torch.testing.assert_close(part.norm(dim=0), torch.ones(size))


def test_a_batch_is_fused_image_by_image() -> None:
    one, other = random_map(2, 5, 3, 3), random_map(2, 4, 4, 6, seed=1)
    fused = fuse([one, other], [1, 3])
    for i in range(2):
        torch.testing.assert_close(fused[i], fuse([one[i], other[i]], [1, 3]))


def test_cosines_are_weighted_means_of_those_of_the_parts() -> None:
    one, other = random_map(6, 2, 2).half(), random_map(3, 2, 2, seed=1).double()
    fused = fuse([one, other], weights=[2, 1]).flatten(1).T
    assert fused.dtype == torch.float64
    cosine = torch.nn.functional.cosine_similarity
    parts = [cosine(x.double()[:, 0, 0], x.double()[:, 1, 1], dim=0) for x in (one, other)]
    torch.testing.assert_close(cosine(fused[0], fused[3], dim=0), (4 * parts[0] + parts[1]) / 5)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"maps": [random_map(2, 3, 3)]}, "maps"),
        ({"maps": [random_map(2, 3, 3), random_map(1, 2, 3, 3)]}, "maps"),
        ({"maps": [random_map(2, 3, 3), random_map(3, 3)]}, "maps"),
        ({"weights": [1]}, "weights"),
        ({"weights": [1, 0]}, "weights"),
        ({"weights": [1, math.nan]}, "weights"),
        ({"grid": "finer"}, "grid"),
        ({"grid": [4]}, "grid"),
        ({"grid": [4, 0]}, "grid"),
    ],
)
def test_fuse_refuses(arguments: dict[str, object], name: str) -> None:
    given = {"maps": [random_map(2, 3, 3), random_map(2, 3, 3)]} | arguments
    with pytest.raises(InputError, match=f"`{name}`"):
        fuse(**given)


def test_joint_pca_by_hand() -> None:
    # Positions (0, 0), (4, 3) and (8, 6), (12, 9): on a line through their mean (6, 4.5), 5 apart.
    source = torch.tensor([[[0.0, 4.0]], [[0.0, 3.0]]])
    target = torch.tensor([[[8.0], [12.0]], [[6.0], [9.0]]])
    a, b = joint_pca(source, target, channels=2)
    # The axis (0.8, 0.6) has positive coefficients; along the other one there is nothing.
    torch.testing.assert_close(a, torch.tensor([[[-7.5, -2.5]], [[0.0, 0.0]]]))
    torch.testing.assert_close(b, torch.tensor([[[2.5], [7.5]], [[0.0], [0.0]]]))
    a, b = joint_pca(-source, -target, channels=1)
    torch.testing.assert_close(a, torch.tensor([[[7.5, 2.5]]]))  # the sign belongs to the axis, not to the data


def by_svd(source: np.ndarray, target: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """PCA by the singular value decomposition of numpy, position by position."""
    rows = [x[:, i, j] for x in (source, target) for i in range(x.shape[1]) for j in range(x.shape[2])]
    centred = np.array(rows, dtype=np.float64) - np.mean(np.array(rows, dtype=np.float64), axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    signs = [np.sign(axis[np.argmax(np.abs(axis))]) for axis in axes]
    scores = np.array([[sign * (row @ axis) for sign, axis in zip(signs, axes, strict=True)] for row in centred])
    cut, kept = source.shape[1] * source.shape[2], min(count, *centred.shape)
    return tuple(
        part[:, :kept].T.reshape(kept, *x.shape[1:]) for part, x in ((scores[:cut], source), (scores[cut:], target))
    )


@pytest.mark.parametrize("count", [3, 1280])
@pytest.mark.parametrize("channels", [4, 40])
def test_joint_pca_equals_a_singular_value_decomposition(channels: int, count: int) -> None:
    spectrum = torch.logspace(2, -1, channels, dtype=torch.float64).view(-1, 1, 1)
    source = random_map(channels, 2, 5).double() * spectrum + 3
    target = random_map(channels, 3, 3, seed=1).double() * spectrum + 3
    found = joint_pca(source, target, count)
    for a, b in zip(found, by_svd(source.numpy(), target.numpy(), count), strict=True):
        assert a.shape == (min(count, channels, 19), *b.shape[1:])
        np.testing.assert_allclose(a.numpy(), b, atol=1e-5)  # the last axis of centred rows carries nothing
    for a, b in zip(joint_pca(source.float(), target.float(), count), found, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-3)


def test_all_channels_keep_distances() -> None:
    source, target = random_map(6, 4, 4), random_map(6, 5, 2, seed=1)
    before = torch.cdist(source.flatten(1).T, target.flatten(1).T)
    a, b = joint_pca(source, target, 6)
    torch.testing.assert_close(torch.cdist(a.flatten(1).T, b.flatten(1).T), before)


def test_what_stands_in_the_padding_does_not_count() -> None:
    transform = fit((20, 40), 32, "pad", 4)
    whole, target = random_map(6, 8, 8), random_map(6, 4, 4, seed=1)
    padded = whole.clone()
    padded[:, :2], padded[:, 6:] = 1e3, -1e3
    points = torch.tensor([[3.0, 4.0], [30.0, 12.0]])
    found = []
    for features in (whole, padded):
        a, b = joint_pca(crop_features(features, transform), target, 3)
        found.append(match_keypoints(a, b, points, (20, 40), (16, 16)))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("source", "target", "channels", "name"),
    [
        (random_map(4, 2, 2), random_map(5, 2, 2), 2, "target"),
        (random_map(1, 4, 2, 2), random_map(1, 4, 2, 2), 2, "source"),
        (random_map(4, 2, 2), random_map(4, 2, 2), 0, "channels"),
        (random_map(4, 2, 2), random_map(4, 2, 2) / 0, 2, "target"),
    ],
)
def test_joint_pca_refuses(source: Tensor, target: Tensor, channels: int, name: str) -> None:
    with pytest.raises(InputError, match=f"`{name}`"):
        joint_pca(source, target, channels)


def test_the_recipe_of_the_docstring_runs() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(fusion, "fusion")
    assert len(example.examples) <= 12
    assert doctest.DocTestRunner(verbose=False).run(example, clear_globs=False).failed == 0
    predictions = example.globs["predictions"]
    assert predictions.shape == example.globs["pairs"][0].source.keypoints.shape
    assert example.globs["source"].shape == (64 + 96, 32, 32)
