import pytest
import torch
from torch.nn import functional as F

from ditf_probe.errors import InputError
from ditf_probe.geometry import crop_features, fit
from ditf_probe.matching import cosines as pieces
from ditf_probe.matching import match_keypoints, sample_descriptors, similarity_maps


def features(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def slow_maps(source, target, keypoints, source_size, target_size):
    """The rule as written in papers: both maps at full resolution, then the cosine with every pixel, in float64."""

    def upsample(feature, size):
        return F.interpolate(feature[None].double(), size, mode="bilinear", align_corners=False)[0]

    big_source, big_target = upsample(source, source_size), upsample(target, target_size)
    maps = []
    for x, y in keypoints.floor().long().tolist():
        vector = big_source[:, y, x]
        maps.append(F.cosine_similarity(vector[:, None, None], big_target, dim=0, eps=1e-30))
    return torch.stack(maps)


def whole_keypoints(count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    points = [torch.randint(0, side, (count,), generator=generator) for side in (size[1], size[0])]
    return torch.stack(points, dim=1).float()


@pytest.mark.parametrize("seed", range(200))
def test_equals_the_slow_reference(seed):
    generator = torch.Generator().manual_seed(1000 + seed)

    def draw(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    channels = draw(8, 24)
    source = features(channels, draw(1, 9), draw(1, 9), seed=seed)
    target = features(channels, draw(1, 9), draw(1, 9), seed=seed + 500)
    source_size, target_size = (draw(1, 60), draw(1, 60)), (draw(1, 60), draw(1, 60))
    keypoints = whole_keypoints(3, source_size, seed)
    reference = slow_maps(source, target, keypoints, source_size, target_size)
    best, place = reference.flatten(1).max(1)
    predictions, similarity = match_keypoints(source, target, keypoints, source_size, target_size, rounding="integer")
    columns, rows = predictions.long().unbind(1)
    there = reference[torch.arange(3), rows, columns]
    same = rows * target_size[1] + columns == place
    assert (same | (best - there <= 1e-5)).all()
    assert (similarity - there).abs().max() <= 1e-5
    descriptors = sample_descriptors(source, keypoints, source_size, rounding="integer")
    assert (similarity_maps(descriptors, target, target_size) - reference).abs().max() <= 1e-5


@pytest.mark.parametrize(("grid", "stride"), [((4, 6), 8), ((5, 3), 7), ((16, 16), 4), ((3, 3), 101)])
def test_an_image_against_itself_returns_its_keypoints(grid, stride):
    size = (grid[0] * stride, grid[1] * stride)
    border = (stride + 1) // 2
    rows, columns = (torch.arange(border, side - border, max(1, stride // 3)) for side in size)
    keypoints = torch.cartesian_prod(columns, rows).float()
    feature = features(16, *grid)
    for rounding in ("subpixel", "integer"):
        predictions, similarity = match_keypoints(feature, feature, keypoints, size, size, rounding=rounding)
        assert torch.equal(predictions, keypoints)
        torch.testing.assert_close(similarity, torch.ones(len(keypoints)))


def test_a_map_shifted_by_cells_shifts_the_predictions():
    stride, size = 8, (64, 80)
    source = features(16, 8, 10)
    target = torch.roll(source, (2, -3), dims=(1, 2))
    keypoints = torch.cartesian_prod(torch.arange(30, 74, 5), torch.arange(6, 44, 5)).float()
    predictions, _ = match_keypoints(source, target, keypoints, size, size)
    assert torch.equal(predictions - keypoints, torch.tensor([-3.0 * stride, 2.0 * stride]).expand_as(keypoints))


def test_predictions_from_a_padded_canvas_are_pixels_of_the_original_image():
    """The padding holds the best feature of all, and is never found."""
    transform = fit((60, 100), 80, "pad", 8)
    assert (transform.scaled, transform.offset) == ((48, 80), (16, 0))
    canvas = features(16, 10, 10)
    keypoints = torch.cartesian_prod(torch.arange(5, 95, 9), torch.arange(5, 55, 7)).float()
    image = crop_features(canvas, transform)
    canvas[:, 0] = 9 * image[:, 3, :]
    predictions, _ = match_keypoints(image, crop_features(canvas, transform), keypoints, (60, 100), (60, 100))
    assert torch.equal(predictions, keypoints)


def test_two_cells_by_hand():
    """Cells (1, 0) and (0, 1) over 4 pixels: weights of the second cell are 0, 1/4, 3/4 and 1."""
    target = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    maps = similarity_maps(torch.tensor([[2.0, 0.0]]), target, (1, 4))
    expected = torch.tensor([1.0, 0.75 / 0.625**0.5, 0.25 / 0.625**0.5, 0.0])
    torch.testing.assert_close(maps[0, 0], expected)
    # Keypoint at x = 1.5 lies in the middle: the descriptor is (1, 1) / sqrt(2); pixels 1 and 2 tie and the first wins.
    predictions, similarity = match_keypoints(target, target, torch.tensor([[1.5, 0.0]]), (1, 4), (1, 4))
    assert predictions.tolist() == [[1.0, 0.0]]
    assert similarity.item() == pytest.approx(1 / (2 * 0.625) ** 0.5, abs=1e-6)
    # Rounded down to pixel 1, the descriptor is (3, 1) / sqrt(10): that pixel itself.
    predictions, similarity = match_keypoints(
        target, target, torch.tensor([[1.5, 0.0]]), (1, 4), (1, 4), rounding="integer"
    )
    assert predictions.tolist() == [[1.0, 0.0]]
    assert similarity.item() == pytest.approx(1.0)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 1)])
def test_grids_of_one_row_or_column(grid):
    feature = features(8, *grid)
    size = (30, 40)
    keypoints = whole_keypoints(5, size, 0)
    predictions, similarity = match_keypoints(feature, feature, keypoints, size, size)
    reference = slow_maps(feature, feature, keypoints, size, size)
    torch.testing.assert_close(similarity.double(), reference.flatten(1).amax(1), atol=1e-6, rtol=0)
    # Along an axis of one cell all pixels are equal, and the first is taken.
    for axis in (0, 1):
        if grid[axis] == 1:
            assert (predictions[:, 1 - axis] == 0).all()


@pytest.mark.parametrize("rows_at_once", [1, 2**18])
def test_ties_go_to_the_first_in_row_major_order(rows_at_once, monkeypatch):
    monkeypatch.setattr(pieces, "ROW_PIECE", rows_at_once)
    size = (37, 53)
    constant = features(8, 1, 1).expand(8, 6, 7)
    predictions, similarity = match_keypoints(constant, constant, torch.tensor([[50.0, 30.0]]), size, size)
    assert predictions.tolist() == [[0.0, 0.0]]
    assert similarity.item() == pytest.approx(1.0)
    # Beyond the outermost centres everything repeats: a keypoint in the corner finds the first pixel of its corner.
    feature = features(8, 4, 4)
    corners = torch.tensor([[1.0, 2.0], [38.0, 1.0], [2.0, 39.0], [39.0, 39.0]])
    predictions, _ = match_keypoints(feature, feature, corners, (40, 40), (40, 40))
    assert predictions.tolist() == [[0.0, 0.0], [35.0, 0.0], [0.0, 35.0], [35.0, 35.0]]


def test_subpixel_descriptor_interpolates_the_grid():
    feature = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
    # 2x2 cells over 8x8 pixels: x = 2.5 is 1/4 of the way from the first to the second centre, y = 3.5 half way.
    found = sample_descriptors(feature, torch.tensor([[2.5, 3.5]]), (8, 8))
    expected = torch.tensor([[0.75 * 0.5, 0.5]])
    torch.testing.assert_close(found, expected / expected.norm())


def test_sampling_passes_gradients():
    feature = features(4, 3, 3).double().requires_grad_()
    points = torch.tensor([[1.3, 7.2], [9.4, 0.1]])
    assert torch.autograd.gradcheck(lambda maps: sample_descriptors(maps, points, (9, 10)), feature)


def test_zero_features_have_similarity_zero():
    zero, feature = torch.zeros(8, 3, 3), features(8, 3, 3)
    point = torch.tensor([[4.0, 4.0]])
    for source, target in ((zero, feature), (feature, zero)):
        predictions, similarity = match_keypoints(source, target, point, (9, 9), (9, 9))
        assert predictions.tolist() == [[0.0, 0.0]]
        assert similarity.tolist() == [0.0]
    half = torch.cat([zero, feature], dim=2)
    assert similarity_maps(features(1, 8), half, (6, 12)).isfinite().all()
    # Neighbours that cancel exactly: between 1 and -1 lies a zero, neither NaN nor a wild quotient.
    opposite = torch.tensor([[[1.0, -1.0]]])
    assert similarity_maps(torch.ones(1, 1), opposite, (1, 5)).flatten().tolist() == [1.0, 1.0, 0.0, -1.0, -1.0]


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_scale_does_not_matter(factor):
    source, target, points = features(8, 4, 5), features(8, 5, 4, seed=1), whole_keypoints(6, (40, 50), 0)
    expected = match_keypoints(source, target, points, (40, 50), (50, 40))
    found = match_keypoints(source * factor, target * factor, points, (40, 50), (50, 40))
    assert torch.equal(expected[0], found[0])
    torch.testing.assert_close(expected[1], found[1])


def test_massive_channels_keep_their_precision():
    source, target = features(64, 6, 6), features(64, 6, 6, seed=1)
    source[3], target[3] = 1e4, 1e4
    points = whole_keypoints(8, (48, 48), 0)
    reference = slow_maps(source, target, points, (48, 48), (48, 48))
    predictions, _ = match_keypoints(source, target, points, (48, 48), (48, 48))
    assert torch.equal((predictions[:, 1] * 48 + predictions[:, 0]).long(), reference.flatten(1).argmax(1))


def test_work_in_small_pieces_gives_the_same(monkeypatch):
    source, target, points = features(11, 7, 5), features(11, 4, 9, seed=1), whole_keypoints(7, (70, 50), 0)
    whole = match_keypoints(source, target, points, (70, 50), (41, 90))
    maps = similarity_maps(features(7, 11, seed=2), target, (41, 90))
    for name, count in (("CHANNEL_PIECE", 4 * 36), ("KEYPOINT_PIECE", 4 * 90 * 3), ("ROW_PIECE", 90 * 3 * 2)):
        monkeypatch.setattr(pieces, name, count)
    parts = match_keypoints(source, target, points, (70, 50), (41, 90))
    assert torch.equal(whole[0], parts[0])
    torch.testing.assert_close(whole[1], parts[1])
    torch.testing.assert_close(maps, similarity_maps(features(7, 11, seed=2), target, (41, 90)))


def test_a_batch_equals_its_pairs():
    source, target = features(3, 8, 4, 5), features(3, 8, 6, 4, seed=1)
    points = torch.stack([whole_keypoints(4, (40, 50), seed) for seed in range(3)]) + 0.3
    visible = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    points[~visible] = torch.nan
    predictions, similarity = match_keypoints(source, target, points, (40, 50), (60, 40), visible=visible)
    assert predictions.shape == (3, 4, 2)
    for pair in range(3):
        seen = visible[pair]
        alone = match_keypoints(source[pair], target[pair], points[pair][seen], (40, 50), (60, 40))
        assert torch.equal(predictions[pair][seen], alone[0])
        torch.testing.assert_close(similarity[pair][seen], alone[1])
        assert predictions[pair][~seen].isnan().all()
        assert similarity[pair][~seen].isnan().all()


def test_half_precision_autocast_and_no_keypoints():
    source, target = features(32, 4, 4).bfloat16(), features(32, 4, 4, seed=1).bfloat16()
    points = whole_keypoints(4, (32, 32), 0)
    expected = match_keypoints(source.float(), target.float(), points, (32, 32), (32, 32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = match_keypoints(source, target, points, (32, 32), (32, 32))
    assert torch.equal(expected[0], found[0])
    assert torch.equal(expected[1], found[1])
    assert found[1].dtype == torch.float32
    predictions, similarity = match_keypoints(source, target, torch.zeros(0, 2), (32, 32), (32, 32))
    assert predictions.shape == (0, 2)
    assert similarity.shape == (0,)


def broken(value):
    feature = features(4, 3, 3)
    feature[2, 1, 1] = value
    return feature


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_features": broken(torch.nan)}, "`source_features` is .*NaN or infinity"),
        ({"source_features": broken(-torch.inf)}, "`source_features` is .*NaN or infinity"),
        ({"target_features": broken(torch.nan)}, "`target_features` is .*NaN or infinity"),
        ({"target_features": broken(torch.inf)}, "`target_features` is .*NaN or infinity"),
        ({"target_features": torch.zeros(5, 3, 3)}, r"`target_features` is \(5, 3, 3\)"),
        ({"target_features": torch.zeros(3, 3)}, r"`target_features` is '\(3, 3\)"),
        ({"source_features": torch.zeros(4, 0, 3)}, r"`source_features` is '\(4, 0, 3\)"),
        ({"source_keypoints": torch.zeros(2, 3)}, r"`source_keypoints` is '\(2, 3\)"),
        ({"source_keypoints": torch.zeros(2, 2, dtype=torch.int64)}, r"`source_keypoints` is .*int64"),
        ({"source_keypoints": torch.tensor([[3.0, torch.nan]])}, r"`source_keypoints` is \(3.0, nan\)"),
        ({"source_keypoints": torch.tensor([[3.0, 1.0], [12.0, 3.0]])}, r"`source_keypoints` is \(12.0, 3.0\)"),
        ({"source_size": (0, 12)}, r"`source_size` is \(0, 12\)"),
        ({"target_size": (9,)}, r"`target_size` is \(9,\)"),
        ({"rounding": "nearest"}, "`rounding` is 'nearest'"),
        ({"visible": torch.ones(3, dtype=torch.bool)}, r"`visible` is '\(3,\)"),
    ],
)
def test_bad_input(change, message):
    arguments = {
        "source_features": features(4, 3, 3),
        "target_features": features(4, 3, 3),
        "source_keypoints": torch.tensor([[11.0, 3.0]]),
        "source_size": (9, 12),
        "target_size": (9, 12),
    }
    match_keypoints(**arguments)
    with pytest.raises(InputError, match=message) as caught:
        match_keypoints(**(arguments | change))
    assert "\n" not in str(caught.value)


def test_finite_features_with_an_overflowing_sum_are_fine():
    feature = features(8, 3, 3).abs().mul(1e38).clamp_max(3e38)
    assert feature.sum().isinf()
    point = torch.tensor([[4.0, 4.0]])
    assert match_keypoints(feature, feature, point, (9, 9), (9, 9))[0].tolist() == [[4.0, 4.0]]
