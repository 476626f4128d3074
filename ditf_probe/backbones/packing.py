"""Images as sequences of patches, and back; the same order as FLUX packs its latents."""

import torch
from torch import Tensor
from torch.nn import functional as F


def pack_patches(images: Tensor, patch: int) -> Tensor:
    """Cuts images into patches, row by row.

    Args:
        images: `(B, C, H, W)`, sides multiples of `patch`.
        patch: Side of a patch in pixels.

    Returns:
        `(B, N, C * patch**2)`, N = H/patch * W/patch; inside a token channel first, then row, then column.

    Raises:
        ValueError: A side is no multiple of `patch`.
    """
    batch, channels, height, width = images.shape
    if height % patch or width % patch:
        raise ValueError(f"`images` must have sides that are multiples of {patch} but got {height} x {width}")
    grid = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def unpack_patches(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Inverse of `pack_patches`.

    Args:
        tokens: `(B, h * w, C * patch**2)`.
        grid: (h, w) of the token grid.
        patch: Side of a patch in pixels.

    Returns:
        `(B, C, h * patch, w * patch)`.
    """
    rows, columns = grid
    patches = tokens.reshape(len(tokens), rows, columns, -1, patch, patch)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, rows * patch, columns * patch)


def fold_patches(images: Tensor, patch: int) -> Tensor:
    """Turns squares of pixels into channels.

    Args:
        images: `(B, C, H, W)`, sides multiples of `patch`.
        patch: Side of a square.

    Returns:
        `(B, C * patch**2, H/patch, W/patch)`; channel first, then row, then column, as in `pack_patches`.
    """
    return F.pixel_unshuffle(images, patch)


def position_ids(grid: tuple[int, int], device: torch.device | str | None = None) -> Tensor:
    """Rotary position ids of image tokens as FLUX expects them.

    Args:
        grid: (h, w) of the token grid.
        device: Where to build them.

    Returns:
        `(h * w, 3)` float32: 0, row, column, in row-major order.
    """
    rows, columns = grid
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float32, device=device),
        torch.arange(columns, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3)
