"""Labels of cells from masks, masks from labels, and what is remembered of a video."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.matching.labels import hard_labels, soft_labels
from ditf_probe.matching.memory import LabelMemory, Propagation
from ditf_probe.matching.propagation import propagate_labels


def random_mask(height: int, width: int, objects: int, seed: int) -> Tensor:
    return torch.randint(0, objects + 1, (height, width), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("size", "grid"), [((48, 80), (6, 10)), ((480, 854), (30, 52)), ((33, 47), (7, 5))])
def test_nearest_labels_are_those_of_pil(size: tuple[int, int], grid: tuple[int, int]) -> None:
    mask = random_mask(*size, 3, seed=0)
    image = Image.fromarray(mask.numpy().astype(np.uint8)).resize(grid[::-1], Image.Resampling.NEAREST)
    found = soft_labels(mask, 3, grid)
    assert found.shape == (4, *grid)
    assert (found.argmax(0).numpy() == np.array(image)).all()
    assert (found.sum(0) == 1).all()


def test_area_labels_are_shares() -> None:
    mask = random_mask(8, 12, 2, seed=1)
    found = soft_labels(mask, 2, (2, 3), "area")
    for number in range(3):
        for row in range(2):
            for column in range(3):
                cell = mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                assert found[number, row, column] == pytest.approx(float((cell == number).float().mean()))


def slow_mask(labels: Tensor, size: tuple[int, int], through: tuple[int, int], norm: bool) -> np.ndarray:
    """As the code of DINO: interpolate, stretch channel by channel, the largest, PIL's nearest."""
    maps = torch.nn.functional.interpolate(labels[None], size=through, mode="bilinear", align_corners=False)[0]
    if norm:
        for channel in maps:
            if channel.max() > 0:
                channel -= channel.min()
                channel /= channel.max()
    mask = maps.max(0).indices.numpy().astype(np.uint8)
    return np.array(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


@pytest.mark.parametrize("norm", [True, False])
def test_masks_are_those_of_dino(norm: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        labels = torch.rand(3, 5, 7, generator=generator).pow(3)
        labels /= labels.sum(0)
        for through in ((40, 56), (43, 61)):
            expected = slow_mask(labels.clone(), (43, 61), through, norm)
            found = hard_labels(labels, (43, 61), through=through, norm_mask=norm)
            assert found.dtype == torch.uint8
            assert (found.numpy() == expected).all()
        assert (hard_labels(labels, (43, 61), norm_mask=norm).numpy() == expected).all()


def test_stretching_lets_a_faint_object_win() -> None:
    labels = torch.zeros(2, 1, 4)
    labels[1, 0] = torch.tensor([0.0, 0.0, 0.4, 0.2])
    labels[0] = 1 - labels[1]
    assert hard_labels(labels, (1, 4), norm_mask=False).tolist() == [[0, 0, 0, 0]]
    assert hard_labels(labels, (1, 4)).tolist() == [[0, 0, 1, 0]]


def test_labels_without_contrast_stay() -> None:
    """An object that is everywhere, and one that is nowhere."""
    everywhere = torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])
    assert hard_labels(everywhere, (4, 4)).unique().tolist() == [1]
    assert hard_labels(everywhere.flip(0), (4, 4)).unique().tolist() == [0]


@pytest.mark.parametrize("n_last", [0, 1, 2, 9])
def test_context_is_the_first_frame_and_the_last(n_last: int) -> None:
    generator = torch.Generator().manual_seed(3)
    frames = torch.randn(6, 4, 5, 6, generator=generator)
    first = torch.rand(2, 5, 6, generator=generator).softmax(0)
    memory = LabelMemory(Propagation(n_last_frames=n_last, radius=2, topk=3, temperature=0.2), frames[0], first)
    labels = [first]
    for time in range(1, 6):
        # Written out: frame 0 once, then the last n of frames 1 to time - 1.
        context = [0, *range(max(1, time - n_last), time)] if n_last else [0]
        expected = propagate_labels(
            frames[time],
            [frames[t] for t in context],
            [labels[t] for t in context],
            radius=2,
            topk=3,
            temperature=0.2,
        )
        labels.append(memory.step(frames[time]))
        torch.testing.assert_close(labels[-1], expected, rtol=0, atol=0)
        assert len(memory) == 1 + min(time, n_last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_last_frames": -1}, "`n_last_frames` is -1"),
        ({"radius": -1}, "`radius` is -1"),
        ({"topk": 0}, "`topk` is 0"),
        ({"temperature": 0.0}, "`temperature` is 0.0"),
        ({"labels": "mean"}, "`labels` is 'mean': use one of nearest, area"),
        ({"argmax_at": "grid"}, "`argmax_at` is 'grid'"),
        ({"short_side": 16}, "`short_side` is 16: use at least `multiple`, 32"),
    ],
)
def test_bad_protocols(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Propagation(**change)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, 2, 2, dtype=torch.uint8), "`mask` is '(2, 2, 2)"),
        (torch.zeros(2, 2), "`mask` is '(2, 2) torch.float32'"),
        (torch.tensor([[0, 3]]), "`mask` is 'values 0 to 3': number the objects from 1 to 2"),
        (torch.tensor([[-1, 0]]), "`mask` is 'values -1 to 0'"),
    ],
)
def test_bad_masks(mask: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        soft_labels(mask, 2, (1, 1))
