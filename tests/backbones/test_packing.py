"""Patches of images, against a loop."""

import pytest
import torch

from ditf_probe.backbones.packing import pack_patches, position_ids, unpack_patches


def test_round_trip_is_exact() -> None:
    images = torch.randn(2, 3, 8, 12)
    assert torch.equal(unpack_patches(pack_patches(images, 4), (2, 3), 4), images)


def test_order_of_tokens_and_channels() -> None:
    images = torch.randn(1, 3, 4, 6)
    tokens = pack_patches(images, 2)
    for row in range(2):
        for column in range(3):
            expected = images[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
            assert torch.equal(tokens[0, 3 * row + column], expected)


def test_sides_must_fit() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        pack_patches(torch.zeros(1, 3, 6, 8), 4)


def test_position_ids() -> None:
    assert position_ids((2, 3)).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
