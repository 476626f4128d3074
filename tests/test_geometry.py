import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.errors import InputError
from ditf_probe.geometry import (
    WHOLE_CANVAS,
    Mode,
    Transform,
    axis_coordinates,
    cell_centres,
    crop_features,
    fit,
    grid_coordinates,
    grid_points,
    mirror_points,
    prepare_image,
    resize_points,
)


def test_resize_keeps_edges_and_centres_where_they_are():
    points = torch.tensor([[-0.5, -0.5], [0.0, 0.0], [9.5, 3.5]])
    halved = resize_points(points, (4, 10), (2, 5))
    assert halved.tolist() == [[-0.5, -0.5], [-0.25, -0.25], [4.5, 1.5]]


def test_mirrored_points_lie_on_the_same_pixels_of_the_mirror_image():
    image = torch.arange(15).reshape(3, 5)
    points = torch.tensor([[0.0, 0.0], [4.0, 2.0], [1.0, 2.0]])
    x, y = mirror_points(points, 5).long().T
    assert image.flip(1)[y, x].tolist() == [0, 14, 11]
    assert mirror_points(torch.tensor([[-0.5, 1.25]]), 5).tolist() == [[4.5, 1.25]]


def test_grid_cells_have_centres_between_their_pixels():
    # stride 4: cell 0 covers pixels 0..3, centre 1.5; cell 2 covers 8..11, centre 9.5
    assert cell_centres((2, 3), (8, 12)).tolist() == [
        [1.5, 1.5], [5.5, 1.5], [9.5, 1.5], [1.5, 5.5], [5.5, 5.5], [9.5, 5.5],
    ]  # fmt: skip
    assert grid_coordinates(torch.tensor([[9.5, 1.5]]), (8, 12), (2, 3)).tolist() == [[2.0, 0.0]]
    assert axis_coordinates(12, 3)[[0, 1, 9]].tolist() == pytest.approx([-0.375, -0.125, 1.875])


def test_aligned_grids_put_outermost_centres_on_the_edges():
    # 5 cells over 20 pixels: aligned, the edges -0.5 and 19.5 are cells 0 and 4, five pixels from cell to cell.
    edges = torch.tensor([[-0.5, -0.5], [19.5, 11.5], [4.5, 5.5]])
    assert grid_coordinates(edges, (12, 20), (3, 5), "aligned").tolist() == [[0.0, 0.0], [4.0, 2.0], [1.0, 1.0]]
    cells = torch.tensor([[0.0, 0.0], [4.0, 2.0], [1.0, 1.0]])
    assert grid_points(cells, (3, 5), (12, 20), "aligned").tolist() == edges.tolist()
    assert grid_points(cells, (3, 5), (12, 20), "centre").tolist() == [[1.5, 1.5], [17.5, 9.5], [5.5, 5.5]]
    assert grid_points(cells, (3, 5), (12, 20), "corner").tolist() == [[-0.5, -0.5], [15.5, 7.5], [3.5, 3.5]]


def test_canvas_length_is_that_of_the_longer_side_of_the_image_unless_there_is_padding_along_it():
    for mode in get_args(Mode):
        assert fit((375, 500), 840, mode, 14).canvas_length == pytest.approx(500)
    assert fit((100, 50), (32, 64), "pad", 4).canvas_length == pytest.approx(200)  # 64 pixels at a scale of 0.32


@pytest.mark.parametrize(
    ("arguments", "scaled", "canvas", "offset"),
    [
        (((375, 500), 64, "stretch", 4), (64, 64), (64, 64), (0, 0)),
        (((375, 500), (30, 66), "stretch", 4), (32, 68), (32, 68), (0, 0)),
        (((375, 500), 640, "keep_aspect", 16), (480, 640), (480, 640), (0, 0)),
        (((334, 500), 640, "keep_aspect", 16), (432, 640), (432, 640), (0, 0)),
        (((5, 500), 64, "keep_aspect", 16), (16, 64), (16, 64), (0, 0)),
        (((100, 50), (32, 64), "keep_aspect", 4), (32, 16), (32, 16), (0, 0)),
        (((375, 500), 64, "pad", 8), (48, 64), (64, 64), (8, 0)),
        (((50, 100), 56, "pad", 8), (32, 56), (56, 56), (8, 0)),
        (((100, 50), 64, "pad", 1), (64, 32), (64, 64), (0, 16)),
        (((37, 53), None, "stretch", 16), (32, 48), (32, 48), (0, 0)),
        (((375, 500), 64, "pad_end", 8), (48, 64), (64, 64), (0, 0)),
        (((50, 100), 56, "pad_end", 8), (32, 56), (56, 56), (0, 0)),
        # GeoAware-SC on 840 pixels: 105 rows of padding above, which is seven and a half patches of 14.
        (((375, 500), 840, "letterbox", 14), (630, 840), (840, 840), (105, 0)),
        (((500, 333), 840, "letterbox", 14), (840, 559), (840, 840), (0, 140)),
        (((375, 500), 800, "letterbox_end", 16), (600, 800), (800, 800), (0, 0)),
        (((375, 500), 800, "letterbox_end", 14), (599, 798), (798, 798), (0, 0)),
    ],
)
def test_fit(arguments, scaled, canvas, offset):
    assert fit(*arguments) == Transform(tuple(arguments[0]), scaled, canvas, offset)


def test_every_side_is_a_multiple_inside_the_canvas():
    sides = (1, 7, 64, 333, 1000)
    modes = ("stretch", "keep_aspect", "pad", "pad_end", "letterbox", "letterbox_end")
    for height, width, mode, multiple in itertools.product(sides, sides, modes, (1, 14, 16)):
        transform = fit((height, width), 100, mode, multiple)
        for axis in (0, 1):
            lengths = (transform.scaled[axis], transform.canvas[axis], transform.offset[axis])
            assert all(length % multiple == 0 for length in (lengths[1:2] if mode in WHOLE_CANVAS else lengths))
            assert lengths[0] > 0
            assert lengths[0] + lengths[2] <= lengths[1]
        assert max(transform.canvas) == fit((1, 1), 100, "stretch", multiple).canvas[0]


@pytest.mark.parametrize("mode", get_args(Mode))
def test_round_trip(mode):
    generator = torch.Generator().manual_seed(0)

    def draw(most):
        return int(torch.randint(1, most + 1, (), generator=generator))

    for _ in range(50):
        size = (draw(1200), draw(1200))
        transform = fit(size, draw(900), mode, draw(16))
        points = torch.rand(100, 2, generator=generator) * torch.tensor(size[::-1]) - 0.5
        prepared = transform.apply(points)
        assert prepared.dtype == torch.float32
        torch.testing.assert_close(transform.invert(prepared), points, atol=1e-3, rtol=1e-5)
        doubles = points.double()
        torch.testing.assert_close(transform.invert(transform.apply(doubles)), doubles, atol=1e-9, rtol=0)
        corners = torch.tensor([[-0.5, -0.5], [size[1] - 0.5, size[0] - 0.5]], dtype=torch.float64)
        (top, left), (height, width) = transform.offset, transform.scaled
        expected = torch.tensor([[left, top], [left + width, top + height]]).double() - 0.5
        torch.testing.assert_close(transform.apply(corners), expected)


def test_points_follow_the_pixels():
    """A bright spot in the image is found where `apply` says: pixels and points move together."""
    for mode, position in itertools.product(get_args(Mode), ((20, 30), (61, 99), (3, 80))):
        image = torch.zeros(3, 75, 110, dtype=torch.uint8)
        image[:, position[1] * 75 // 110 : position[1] * 75 // 110 + 1, position[0]] = 255
        transform = fit((75, 110), (211, 240), mode, 1)
        prepared = prepare_image(image, transform, "bilinear")[0].double()
        rows, columns = torch.meshgrid(torch.arange(prepared.shape[0]), torch.arange(prepared.shape[1]), indexing="ij")
        found = torch.stack([(prepared * columns).sum(), (prepared * rows).sum()]) / prepared.sum()
        spot = torch.tensor([position[0], position[1] * 75 // 110], dtype=torch.float64)
        torch.testing.assert_close(transform.apply(spot), found, atol=0.05, rtol=0)


def test_prepare_image_is_pil_and_pads_with_zeros():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 30, 60), dtype=torch.uint8, generator=generator)
    transform = fit((30, 60), 16, "pad", 4)
    assert transform == Transform((30, 60), (8, 16), (16, 16), (4, 0))
    prepared = prepare_image(image, transform, "lanczos")
    reference = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 8), Image.Resampling.LANCZOS)
    expected = np.asarray(reference, dtype=np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_array_equal(prepared[:, 4:12].numpy(), expected)
    assert prepared.dtype == torch.float32
    assert not prepared[:, :4].any()
    assert not prepared[:, 12:].any()
    same = prepare_image(image, fit((30, 60), None), "bicubic")
    assert torch.equal(same, image / 255)
    white = prepare_image(image, fit((30, 60), 16, "letterbox_end", 4), padding=1.0)
    assert (white[:, 8:] == 1).all()
    assert not (white[:, :8] == 1).all()
    with pytest.raises(InputError, match=r"`padding` is 255"):
        prepare_image(image, transform, padding=255)


def test_filters_antialias():
    stripes = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(3, 64, 64)
    for name in ("box", "bilinear", "bicubic", "lanczos", "hamming"):
        small = prepare_image(stripes, fit((64, 64), 16), name)
        assert (small[:, 2:-2, 2:-2] - 0.5).abs().max() < 0.02


def test_crop_features_leaves_the_cells_of_the_image():
    transform = fit((30, 60), 64, "pad", 8)
    canvas = prepare_image(torch.full((3, 30, 60), 255, dtype=torch.uint8), transform)
    cells = torch.nn.functional.avg_pool2d(canvas, 4)
    cropped = crop_features(cells, transform)
    assert cropped.shape == (3, 8, 16)
    assert (cropped == 1).all()
    assert cells.sum() == cropped.sum()
    # A point has the same place on the cropped grid as on the canvas grid, less the cut cells.
    point = torch.tensor([[40.0, 10.0]])
    on_canvas = grid_coordinates(transform.apply(point), transform.canvas, (16, 16))
    cut = torch.tensor([0.0, 4.0])
    torch.testing.assert_close(grid_coordinates(point, (30, 60), (8, 16)), on_canvas - cut)
    plain = fit((30, 60), 64, "keep_aspect", 8)
    assert crop_features(cells, plain) is cells


def test_errors_name_argument_and_value():
    with pytest.raises(InputError, match=r"`resize` is 'crop'"):
        fit((4, 4), 8, "crop")
    with pytest.raises(InputError, match=r"`image_size` is 0"):
        fit((4, 4), 0)
    with pytest.raises(InputError, match=r"`image_size` is nan"):
        fit((4, 4), float("nan"))
    with pytest.raises(InputError, match=r"`size` is \(4, 4, 3\)"):
        fit((4, 4, 3), 8)
    with pytest.raises(InputError, match=r"`multiple` is 0"):
        fit((4, 4), 8, "stretch", 0)
    with pytest.raises(InputError, match=r"`filter` is 'area'"):
        prepare_image(torch.zeros(3, 4, 4, dtype=torch.uint8), fit((4, 4), 8), "area")
    with pytest.raises(InputError, match=r"`image` is '\(3, 4, 4\) torch.float32'"):
        prepare_image(torch.zeros(3, 4, 4), fit((4, 4), 8))
    with pytest.raises(InputError, match=r"`image` is"):
        prepare_image(torch.zeros(3, 4, 5, dtype=torch.uint8), fit((4, 4), 8))
    with pytest.raises(InputError, match=r"`points` is"):
        resize_points(torch.zeros(4, 3), (4, 4), (8, 8))
    with pytest.raises(InputError, match=r"`points` is"):
        resize_points(torch.zeros(4, 2, dtype=torch.int64), (4, 4), (8, 8))
    with pytest.raises(InputError, match=r"`transform` is"):
        crop_features(torch.zeros(1, 7, 7), fit((30, 60), 64, "pad", 8))
