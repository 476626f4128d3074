"""Crops of feature maps: what is annotated stays on its cell, and nothing else is moved."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ditf_probe.data.crops import View, Window, cropped_side, cropped_views, whole_views
from ditf_probe.data.pairs import Pair, Side
from ditf_probe.geometry import Transform, fit, grid_coordinates


def side(generator: torch.Generator, size: tuple[int, int], count: int = 6) -> Side:
    points = torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]]) - 0.5
    visible = torch.rand(count, generator=generator) < 0.8
    return Side(f"{size}", size, points, visible, torch.tensor([3.0, 2.0, size[1] - 4.0, size[0] - 2.0]))


def pair_of(seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(20, 90, (4,), generator=generator).tolist()
    return Pair(0, "thing", "u", side(generator, (sizes[0], sizes[1])), side(generator, (sizes[2], sizes[3])))


def stretched(size: tuple[int, int]) -> Transform:
    return fit(size, 64, "stretch", 8)


@pytest.mark.parametrize("seed", range(200))
def test_keypoints_keep_their_place_on_the_grid(seed: int) -> None:
    """Against the plain statement: a place on the whole grid, minus the corner of the window."""
    rng = np.random.default_rng(seed)
    given = side(torch.Generator().manual_seed(seed), (int(rng.integers(20, 90)), int(rng.integers(20, 90))))
    grid = (int(rng.integers(3, 12)), int(rng.integers(3, 12)))
    height, width = int(rng.integers(1, grid[0] + 1)), int(rng.integers(1, grid[1] + 1))
    window = Window(
        int(rng.integers(0, grid[0] - height + 1)), int(rng.integers(0, grid[1] - width + 1)), height, width
    )
    found = cropped_side(given, grid, window, 8)
    assert found.size == (8 * height, 8 * width)
    whole = grid_coordinates(given.keypoints, given.size, grid)
    for row in range(len(whole)):
        x, y = (float(value) for value in whole[row])
        place = grid_coordinates(found.keypoints[row], found.size, (height, width)).tolist()
        assert place == pytest.approx([x - window.left, y - window.top], abs=1e-4)
        inside = (
            abs(x - window.left - (width - 1) / 2) <= width / 2 and abs(y - window.top - (height - 1) / 2) <= height / 2
        )
        assert bool(found.visible[row]) == (bool(given.visible[row]) and inside)
    box = grid_coordinates(given.bbox.reshape(2, 2), given.size, grid).tolist()
    kept = grid_coordinates(found.bbox.reshape(2, 2), found.size, (height, width)).tolist()
    for corner, cut in zip(box, kept, strict=True):
        for value, start, length, got in zip(corner, (window.left, window.top), (width, height), cut, strict=True):
            assert got == pytest.approx(min(max(value - start, -0.5), length - 0.5), abs=1e-4)


def test_both_parts_of_a_pair_show_a_common_keypoint() -> None:
    rng = np.random.default_rng(0)
    shares = set()
    for seed in range(200):
        given = pair_of(seed)
        ((source, target),) = cropped_views([given], stretched, 8, 0.3, rng)
        assert source.window is not None
        assert target.window is not None
        shares.add((source.window.height, source.window.width))
        assert (target.window.height, target.window.width) == (source.window.height, source.window.width)
        assert min(source.window.height, source.window.width) >= 2
        if bool(given.visible.any()):
            assert bool((source.side.visible & target.side.visible).any())
        assert source.side.image_id == given.source.image_id
    assert len(shares) > 20


def test_a_batch_has_one_size_of_window_per_grid_and_its_draws_are_its_own() -> None:
    given = [pair_of(seed) for seed in range(6)]

    def windows(number: int) -> list[Window]:
        views = cropped_views(given, stretched, 8, 0.3, np.random.default_rng([1, number]))
        return [view.window for both in views for view in both if view.window]

    assert len(windows(2)) == 12
    assert len({(window.height, window.width) for window in windows(2)}) == 1
    assert len(set(windows(2))) > 1
    assert windows(2) == windows(2) != windows(3)


def test_pairs_without_a_common_keypoint_are_cropped_anywhere() -> None:
    given = pair_of(0)
    blind = replace(given, target=replace(given.target, visible=torch.zeros(6, dtype=torch.bool)))
    ((source, _),) = cropped_views([blind], stretched, 8, 0.5, np.random.default_rng(0))
    assert source.window is not None


def test_tokens_by_hand() -> None:
    """A 20 x 40 image in the middle of a 32 x 32 canvas: 16 x 32 pixels, rows 2 to 5 of 8 with a stride of 4."""
    transform = fit((20, 40), 32, "pad", 4)
    annotated = Side("a", (20, 40), torch.zeros(1, 2), torch.ones(1, dtype=torch.bool), torch.zeros(4))
    whole = View(annotated, transform)
    assert whole.tokens((8, 8)).tolist() == [[8 * row + column for column in range(8)] for row in range(2, 6)]
    # In cells of 8 pixels the image has two rows of four, the second and third of the canvas.
    part = View(annotated, transform, Window(0, 2, 1, 2), 8)
    assert part.tokens((4, 4)).tolist() == [[4 + 2, 4 + 3]]
    assert part.tokens((8, 8)).tolist() == [[20, 21, 22, 23], [28, 29, 30, 31]]


def test_whole_views_cut_padding_off_and_parts_have_none() -> None:
    transform = fit((20, 40), 32, "pad", 4)
    annotated = Side("a", (20, 40), torch.zeros(1, 2), torch.ones(1, dtype=torch.bool), torch.zeros(4))
    pair = Pair(0, "thing", "u", annotated, annotated)
    view = whole_views([pair], lambda size: fit(size, 32, "pad", 4))[0][1]
    maps = torch.arange(64).reshape(1, 8, 8)
    assert torch.equal(view.crop(maps), maps[:, 2:6])
    part = View(annotated, transform, Window(0, 0, 1, 2), 8)
    assert part.crop(maps) is maps
