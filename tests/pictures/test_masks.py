"""Objects over frames: which pixels take which colour."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from ditf_probe.pictures import mask_overlay, mask_picture
from ditf_probe.pictures.canvas import GAP, distinct_colour


def test_inside_edge_and_outside() -> None:
    image = torch.randint(0, 256, (3, 12, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(12, 14, dtype=torch.uint8)
    mask[2:7, 3:9] = 1
    mask[8:12, 8:14] = 2
    shown = mask_overlay(image, mask, alpha=0.5)
    assert shown.dtype == torch.uint8
    assert (shown[:, mask == 0] == image[:, mask == 0]).all()
    colour = np.array(to_rgb(distinct_colour(0)))
    assert shown[:, 4, 5].tolist() == pytest.approx((0.5 * image[:, 4, 5].numpy() + 127.5 * colour).tolist(), abs=1)
    assert shown[:, 2, 5].tolist() == pytest.approx((255 * (0.4 + 0.6 * colour)).tolist(), abs=1)
    assert shown[:, 2, 5].tolist() == shown[:, 6, 8].tolist() != shown[:, 8, 8].tolist()
    # The border of the frame is no edge of an object.
    assert shown[:, 11, 13].tolist() != shown[:, 8, 8].tolist()


def test_frames_in_columns_and_masks_in_rows() -> None:
    frames = [torch.zeros(3, 20, 30, dtype=torch.uint8)] * 3
    masks = [torch.zeros(20, 30, dtype=torch.uint8)] * 3
    picture = mask_picture(frames, [masks, masks], height=40)
    assert picture.shape == (2 * 40 + GAP, 3 * 60 + 2 * GAP, 3)
    assert mask_picture(frames, [masks], title="swan", height=40).shape[0] > 40
