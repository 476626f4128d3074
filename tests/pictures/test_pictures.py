"""Pictures show what they are told to show, where they are told to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.pictures import (
    Curve,
    bar_panels,
    curve_panels,
    grid_picture,
    magnitude_plot,
    match_picture,
    pca_colours,
    pca_map,
    save_picture,
    similarity_heat_map,
)
from ditf_probe.pictures.canvas import GAP, Strip, distinct_colour
from ditf_probe.pictures.maps import overlay

BLACK = torch.zeros(3, 100, 100, dtype=torch.uint8)
TITLE = 32


def rgb(index: int) -> np.ndarray:
    return np.array([int(distinct_colour(index)[i : i + 2], 16) for i in (1, 3, 5)])


def near(picture: np.ndarray, x: float, y: float, radius: int = 9) -> np.ndarray:
    """`(N, 3)` pixels of the canvas around a place."""
    x, y = round(x), round(y)
    return picture[y - radius : y + radius + 1, x - radius : x + radius + 1].reshape(-1, 3).astype(int)


def shows(pixels: np.ndarray, colour: np.ndarray) -> bool:
    return bool((np.abs(pixels - colour).max(1) < 25).any())


def match(predictions: list[list[float]], visible: list[bool], title: str = "x") -> np.ndarray:
    source = torch.tensor([[20.0, 20.0], [80.0, 30.0], [20.0, 90.0]])
    targets = torch.tensor([[30.0, 15.0], [70.0, 20.0], [15.0, 85.0]])
    return match_picture(
        BLACK, BLACK, source, torch.tensor(predictions), targets, torch.tensor(visible), 10.0, title=title, height=200
    )


RIGHT = [[31.0, 16.0], [70.0, 20.0], [15.0, 85.0]]


def test_matches_stand_where_they_belong() -> None:
    picture = match(RIGHT, [True, True, False])
    assert picture.dtype == np.uint8
    assert picture.shape == (TITLE + 200, 200 + GAP + 200, 3)
    # Twice as large: pixel 20 has its centre at 40.5. The target begins after the gap.
    for k, (x, y) in enumerate([(40.5, 40.5), (160.5, 60.5)]):
        assert shows(near(picture, x, TITLE + y, 3), rgb(k))
    for k, (x, y) in enumerate([(62.5, 32.5), (140.5, 40.5)]):
        assert shows(near(picture, 212 + x, TITLE + y, 9), rgb(k))
    # The invisible keypoint is drawn nowhere.
    assert not shows(picture.reshape(-1, 3).astype(int), rgb(2))


def test_right_is_a_ring_and_wrong_a_cross_with_the_truth() -> None:
    right = match(RIGHT, [True, False, False])
    wrong = match([[75.0, 60.0], *RIGHT[1:]], [True, False, False])
    x, y = 212 + 62.5, TITLE + 32.5
    # A ring is open in its middle; the line enters from the left only.
    assert not shows(near(right, x + 3, y, 0), rgb(0))
    assert shows(near(right, x, y, 8), rgb(0))
    # A cross is filled in its middle.
    assert shows(near(wrong, 212 + 150.5, TITLE + 120.5, 1), rgb(0))
    # The truth has a dotted circle of the radius, 10 pixels of the target, which right ones do not have.
    angles = np.linspace(np.pi / 8, np.pi * 0.9, 60)
    arc = [near(wrong, x + 20 * np.cos(-a), y + 20 * np.sin(-a), 0)[0] for a in angles]
    assert shows(np.array(arc), rgb(0))
    arc = [near(right, x + 20 * np.cos(-a), y + 20 * np.sin(-a), 0)[0] for a in angles]
    assert not shows(np.array(arc), rgb(0))


def test_a_rejected_match_shows_the_true_places_only() -> None:
    arguments = (BLACK, BLACK, torch.tensor([[20.0, 20.0]]), torch.tensor([[75.0, 60.0]]), torch.tensor([[30.0, 15.0]]))
    shown = torch.tensor([True])
    kept, rejected = (
        match_picture(*arguments, shown, 10.0, title="x", height=200, accepted=torch.tensor([accepted]))
        for accepted in (True, False)
    )
    cross, start, x, y = (212 + 150.5, TITLE + 120.5), (40.5, TITLE + 40.5), 212 + 62.5, TITLE + 32.5
    assert shows(near(kept, *cross, 1), rgb(0))
    assert not shows(near(rejected, *cross, 9), rgb(0))
    assert shows(near(rejected, *start, 3), rgb(0))
    assert not shows(near(rejected, start[0] + 60, start[1], 9), rgb(0))
    arc = [near(rejected, x + 20 * np.cos(-a), y + 20 * np.sin(-a), 0)[0] for a in np.linspace(0.4, 2.8, 60)]
    assert shows(np.array(arc), rgb(0))


def test_a_rejected_match_counts_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = []
    monkeypatch.setattr("ditf_probe.pictures.matches._headline", lambda _, *counts: titles.append(counts) or "")
    points = torch.tensor([[20.0, 20.0], [30.0, 30.0]])
    shown, accepted = torch.tensor([True, True]), torch.tensor([True, False])
    match_picture(BLACK, BLACK, points, points, points, shown, 10.0, accepted=accepted)
    assert titles == [(1, 2)]


def test_the_radius_itself_is_right() -> None:
    """Drawn like an exact hit: 3-4-5 gives a distance of exactly 10."""
    exact, beyond = [[36.0, 23.0], *RIGHT[1:]], [[36.1, 23.0], *RIGHT[1:]]
    rings, crosses = (match(points, [True, False, False]) for points in (exact, beyond))
    x, y = 212 + 72.5, TITLE + 46.5
    assert not shows(near(rings, x + 3, y, 0), rgb(0))
    assert shows(near(crosses, x, y, 1), rgb(0))


def test_nothing_visible_is_still_a_picture() -> None:
    assert match(RIGHT, [False] * 3).shape == (TITLE + 200, 412, 3)


def test_images_are_shown_unchanged_at_their_size() -> None:
    images = [torch.randint(0, 256, (3, 40, width), dtype=torch.uint8) for width in (60, 30)]
    picture = Strip([images], 40).picture()
    assert picture.shape == (40, 90 + GAP, 3)
    assert (picture[:, :60] == images[0].permute(1, 2, 0).numpy()).all()
    assert (picture[:, 60 + GAP :] == images[1].permute(1, 2, 0).numpy()).all()
    assert (picture[:, 60 : 60 + GAP] == 255).all()


def test_drawing_leaves_pyplot_alone() -> None:
    import sys

    Strip([[BLACK]], 50).picture()
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_heat_is_brightest_at_the_maximum() -> None:
    values = torch.zeros(5, 5)
    values[1, 3] = 1
    heated = overlay(BLACK, values).float().sum(0)
    assert heated.shape == (100, 100)
    y, x = divmod(int(heated.argmax()), 100)
    assert 20 <= y < 40
    assert 60 <= x < 80
    assert torch.isfinite(overlay(BLACK, torch.ones(2, 2)).float()).all()
    picture = similarity_heat_map(
        BLACK, values, prediction=torch.tensor([70.0, 30.0]), truth=torch.tensor([10.0, 10.0]), source=BLACK,
        source_keypoint=torch.tensor([50.0, 50.0]), title="x", height=100,
    )  # fmt: skip
    assert picture.shape == (TITLE + 100, 200 + GAP, 3)
    assert shows(near(picture, 50, TITLE + 50, 2), np.array([57, 211, 83]))
    assert shows(near(picture, 112 + 10, TITLE + 10, 2), np.array([255, 255, 255]))


@pytest.mark.parametrize("channels", [5, 400])
def test_pca_equals_numpy(channels: int) -> None:
    """Both ways to decompose, more and fewer channels than vectors, against a plain decomposition."""
    rng = np.random.default_rng(0)
    scales = np.concatenate([[9, 6, 4], np.full(channels - 3, 0.1)])[:, None, None]
    features = [torch.from_numpy(rng.normal(size=(channels, h, w)) * scales) for h, w in ((6, 7), (5, 9))]
    found = pca_colours(features)
    assert [tuple(colours.shape) for colours in found] == [(3, 6, 7), (3, 5, 9)]
    vectors = np.concatenate([f.reshape(channels, -1).T.numpy() for f in features])
    centred = vectors - vectors.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    together = torch.cat([colours.reshape(3, -1) for colours in found], 1).T
    for i in range(3):
        direction = directions[i] * np.sign(directions[i][np.abs(directions[i]).argmax()])
        values = centred @ direction
        low, high = np.quantile(values, 0.01), np.quantile(values, 0.99)
        expected = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
        assert np.abs(together[:, i].numpy() - expected).max() <= 1


def test_pca_gives_equal_features_equal_colours() -> None:
    one: Tensor = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(0))
    first, second = pca_colours([one, one.flip(2)])
    assert torch.equal(first, second.flip(2))
    flat = pca_colours([torch.ones(2, 3, 3)])[0]
    assert flat.shape == (3, 3, 3)
    picture = pca_map([BLACK, BLACK], [one, one], title="x", height=100)
    assert picture.shape == (TITLE + 100 + GAP + 100, 200 + GAP, 3)
    assert (picture[TITLE + 100 + GAP :, :100] == picture[TITLE + 100 + GAP :, 112:]).all()


def test_magnitudes_mark_massive_channels() -> None:
    magnitudes = torch.ones(64)
    magnitudes[[5, 40]] = 500
    marked, unmarked = magnitude_plot(magnitudes, [5, 40]), magnitude_plot(magnitudes, [])
    assert marked.shape == unmarked.shape == (360, 900, 3)
    red = [int((np.abs(p.astype(int) - [196, 67, 43]).max(2) < 20).sum()) for p in (marked, unmarked)]
    assert red[0] > red[1] + 100
    assert magnitude_plot(torch.zeros(4), []).shape == (360, 900, 3)


def test_a_grid_shows_every_score_and_frames_the_best() -> None:
    scores = {10: {0: 5.0, 3: 20.0}, 200: {0: 20.0, 3: 7.5}, 400: {0: 1.0, 3: 2.0}}
    picture = grid_picture(scores, title="x", row_label="timestep", column_label="block")
    assert picture.dtype == np.uint8
    left, top, width, height = 70, 40, 46, 30
    cells = {}
    for row in range(3):
        for column in range(2):
            y, x = top + row * height, left + column * width
            cells[row, column] = picture[y + 4 : y + 8, x + 4 : x + width - 4].astype(int)  # above the number
    brightness = {place: float(cell.mean()) for place, cell in cells.items()}
    order = [scores[t][b] for t in scores for b in scores[t]]
    ranked = sorted(brightness, key=lambda place: brightness[place])
    assert [order[2 * r + c] for r, c in ranked] == sorted(order)
    green = (np.abs(picture.astype(int) - [57, 211, 83]).max(2) < 30).nonzero()
    assert len(green[0]), "the first of the best cells has a frame"
    assert abs(green[0].mean() - (top + height / 2)) < 4
    assert abs(green[1].mean() - (left + 1.5 * width)) < 4
    same = grid_picture({1: {0: 3.0}})
    assert same.ndim == 3
    for wrong in ({}, {1: {}}, {1: {0: 1.0}, 2: {1: 1.0}}):
        with pytest.raises(InputError, match="scores"):
            grid_picture(wrong)


def test_panels_show_curves_with_their_bands() -> None:
    def pixels(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
        return int((np.abs(picture.astype(int) - colour).max(2) < 12).sum())

    red = Curve("a", [0, 1, 4], [1.0, 2.0, 0.0], [(0.0, 2.0), (1.0, 3.0), (-1.0, 1.0)], "#ff0000")
    bare = Curve("a", [0, 1, 4], [1.0, 2.0, 0.0], None, "#ff0000")
    blue = Curve("b", [0, 4], [2.0, 2.0], None, "#0000ff", dashed=True)
    picture = curve_panels({"one": [red, blue], "two": [red], "three": []}, title="t", x_label="x", y_label="y")
    assert picture.shape == (310, 900, 3)
    halves = [picture[:260, :300], picture[:260, 300:600], picture[:260, 600:]]
    assert [pixels(half, (255, 0, 0)) > 50 for half in halves] == [True, True, False]
    assert [pixels(half, (0, 0, 255)) > 50 for half in halves] == [True, False, False]
    band = (255, 214, 214)
    assert pixels(picture, band) > pixels(curve_panels({"one": [bare], "two": [bare], "three": []}), band) + 500
    solid = Curve("b", [0, 4], [2.0, 2.0], None, "#0000ff")
    assert pixels(curve_panels({"one": [blue]}), (0, 0, 255)) < pixels(curve_panels({"one": [solid]}), (0, 0, 255))
    assert curve_panels({name: [red] for name in "abcdef"}, zero=True).shape == (2 * 240 + 70, 1200, 3)
    assert curve_panels({}).shape == (310, 300, 3)


def test_a_picture_is_written_whole(tmp_path: Path) -> None:
    picture = grid_picture({1: {0: 3.0, 1: 4.0}})
    save_picture(tmp_path / "new" / "x.png", picture)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "x.png")), picture)


def test_bars_are_as_high_as_their_means() -> None:
    bar = np.array([0x9D, 0xB8, 0xD6])
    picture = bar_panels({"a": {"x": [0.5], "y": [0.125, 0.375]}, "b": {"z": [1.0]}}, title="t", y_label="weight")
    assert picture.shape == (270, 600, 3)
    heights = (np.abs(picture.astype(int) - bar).max(2) < 4).sum(0)  # pixels of bars in each column
    left, middle, right = heights[40:165].max(), heights[190:300].max(), heights[310:].max()
    assert right > 100
    assert abs(left - right / 2) < 12  # a dot hides some of it
    assert abs(middle - right / 4) < 12
    assert bar_panels({}).ndim == 3


def test_curves_on_a_logarithmic_scale() -> None:
    curve = Curve("c", [1.0, 10.0, 1000.0], [0.0, 1.0, 0.0], colour="#ff0000")
    places = []
    for log_x in (False, True):
        picture = curve_panels({"a": [curve]}, log_x=log_x).astype(int)
        red = (picture[..., 0] > 200) & (picture[..., 1] < 60) & (picture[..., 2] < 60)
        rows, columns = np.nonzero(red[:-40])  # above the legend
        peak = columns[rows == rows.min()].mean()
        places.append((peak - columns.min()) / (columns.max() - columns.min()))
    assert places[0] < 0.08
    assert abs(places[1] - 1 / 3) < 0.05
