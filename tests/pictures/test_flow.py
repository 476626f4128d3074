"""Flow as colours, and images warped by it."""

import numpy as np
import torch

from ditf_probe.pictures import dense_picture
from ditf_probe.pictures.canvas import GAP
from ditf_probe.pictures.flow import flow_colours, warp

TITLE = 32


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_directions_have_their_colours() -> None:
    flow = torch.tensor([[[2.0, -2.0, 0.0, 1.0]], [[0.0, 0.0, 0.0, 0.0]]])
    colours = flow_colours(flow, 2.0).permute(1, 2, 0)[0].tolist()
    assert colours == [[255, 0, 0], [0, 255, 255], [255, 255, 255], [255, 128, 128]]


def test_a_shift_undoes_itself() -> None:
    target = noise(9, 11)
    flow = torch.tensor([3.0, -2.0])[:, None, None].expand(2, 9, 11)
    seen = warp(target, flow)
    assert torch.equal(seen[:, 2:, :-3], target[:, :-2, 3:])
    assert torch.equal(warp(target, torch.zeros(2, 9, 11)), target)


def test_half_a_pixel_is_the_mean_of_two() -> None:
    target = torch.tensor([[[0, 100]]], dtype=torch.uint8).expand(3, 1, 2).contiguous()
    assert warp(target, torch.tensor([[[0.5]], [[0.0]]])).flatten().tolist() == [50, 50, 50]


def test_picture_shows_the_warped_target_and_no_match_as_grey() -> None:
    image = noise(40, 50)
    matched = torch.ones(4, 5, dtype=torch.bool)
    matched[:, 3:] = False
    picture = dense_picture(image, image, torch.zeros(2, 4, 5), torch.rand(4, 5), matched, title="t", height=40)
    assert picture.shape == (TITLE + 40, 5 * 50 + 4 * GAP, 3)
    columns = [slice(k * (50 + GAP), k * (50 + GAP) + 50) for k in range(5)]
    source, flow, _, warped, target = (picture[TITLE:, span].astype(int) for span in columns)
    assert np.abs(source - target).max() == 0
    assert np.abs(warped[:, :24] - source[:, :24]).max() <= 2
    assert np.abs(warped[:, 36:] - 40).max() <= 2
    assert np.abs(flow[:, 36:] - 40).max() <= 2
    assert np.abs(flow[20:, :24] - 255).max() <= 2


def test_what_has_no_match_does_not_bend_its_neighbours() -> None:
    image = noise(40, 40)
    matched = torch.tensor([[True, False], [True, True]])
    flow = torch.zeros(2, 2, 2)
    flow[:, 0, 1] = 30
    picture = dense_picture(image, image, flow, torch.ones(2, 2), matched, height=40)
    warped = picture[TITLE:, 3 * (40 + GAP) : 3 * (40 + GAP) + 40].astype(int)
    source = picture[TITLE:, :40].astype(int)
    assert np.abs(warped[:, :19] - source[:, :19]).max() <= 2
    assert np.abs(warped[:19, 21:] - 40).max() <= 2


def test_nothing_matched_is_a_picture_too() -> None:
    image = noise(8, 8)
    picture = dense_picture(image, image, torch.ones(2, 2, 2), torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    assert picture.dtype == np.uint8
