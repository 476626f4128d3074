"""Dense matches as a picture: flow in the colours of a wheel, confidence, and the target warped to the source."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.geometry import grid_coordinates
from ditf_probe.pictures.canvas import Picture, Strip
from ditf_probe.pictures.maps import overlay

_NOTHING = 40  # grey of places without a match
_WHEEL = 5  # the wheel is a fifth of the image


def dense_picture(
    source: Tensor,
    target: Tensor,
    flow: Tensor,
    confidence: Tensor,
    matched: Tensor,
    *,
    title: str = "",
    height: int = 300,
) -> Picture:
    """Source, flow, confidence, target warped to the source, and target, side by side; no match is dark grey.

    Args:
        source: `(3, H, W)` uint8.
        target: `(3, H', W')` uint8.
        flow: `(2, h, w)` as from `match_dense`, on a grid that covers the source.
        confidence: `(h, w)`.
        matched: `(h, w)` bool.
        title: Stands above, before the share of matches and the scale of the colours.
        height: Of the images in the picture, in pixels.

    Returns:
        The picture, `(height + title, W, 3)` uint8.
    """
    size = (source.shape[1], source.shape[2])
    # Places without a match have no say in what stands between them and a match.
    weights = matched.float()[None]
    dense = _to_pixels(flow * weights, size) / _to_pixels(weights, size).clamp_min(1e-6)
    known = F.interpolate(weights[None], size=size, mode="nearest-exact")[0, 0] > 0
    longest = float(flow.square().sum(0).sqrt()[matched].max()) if matched.any() else 0.0
    coloured = torch.where(known, flow_colours(dense, longest), _NOTHING).to(torch.uint8)
    _draw_wheel(coloured)
    warped = torch.where(known, warp(target, dense), _NOTHING).to(torch.uint8)
    images = [source, coloured, overlay(source, confidence), warped, target]
    low, high = float(confidence.min()), float(confidence.max())
    facts = f"{float(matched.float().mean()):.0%} matched, flow up to {longest:.0f} px, cosine {low:.2f} to {high:.2f}"
    return Strip([images], height, f"{title}   {facts}" if title else facts).picture()


def flow_colours(flow: Tensor, longest: float) -> Tensor:
    """Direction as hue and length as saturation: `(3, H, W)` uint8.

    Args:
        flow: `(2, H, W)` x before y. To the right is red; green, then blue follow clockwise on the screen.
        longest: Length of full colour; zero is white.
    """
    from matplotlib.colors import hsv_to_rgb

    hue = torch.atan2(flow[1], flow[0]) / (2 * math.pi) % 1.0
    strength = (flow.square().sum(0).sqrt() / max(longest, 1e-12)).clamp(0, 1)
    colours = hsv_to_rgb(torch.stack([hue, strength, torch.ones_like(hue)], dim=-1).numpy())
    return (torch.from_numpy(colours).permute(2, 0, 1) * 255).round().to(torch.uint8)


def warp(target: Tensor, flow: Tensor) -> Tensor:
    """The target as the source sees it: `(3, H, W)` uint8.

    Args:
        target: `(3, H', W')` uint8.
        flow: `(2, H, W)` in target pixels minus source pixels, for every pixel of the source.
    """
    rows, columns = torch.meshgrid(torch.arange(flow.shape[1]), torch.arange(flow.shape[2]), indexing="ij")
    points = (flow + torch.stack([columns, rows])).permute(1, 2, 0).double()
    # `grid_sample` without aligned corners spans the image from -1 to 1: a grid of two cells, shifted by half.
    unit = grid_coordinates(points, target.shape[1:], (2, 2)) - 0.5
    seen = F.grid_sample(target[None].double(), unit[None], mode="bilinear", padding_mode="border", align_corners=False)
    return seen[0].round().clamp(0, 255).to(torch.uint8)


def _to_pixels(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `(D, h, w)` interpolated to every pixel of the image that they cover."""
    return F.interpolate(values[None].float(), size=size, mode="bilinear", align_corners=False)[0]


def _draw_wheel(image: Tensor) -> None:
    """Puts the wheel of colours into the top left corner of an image, in place."""
    side = min(image.shape[1], image.shape[2]) // _WHEEL
    along = torch.linspace(-1, 1, side) if side > 1 else torch.zeros(side)
    places = torch.stack([along.expand(side, side), along[:, None].expand(side, side)])
    inside = places.square().sum(0) <= 1
    corner = image[:, :side, :side]
    corner[:] = torch.where(inside, flow_colours(places, 1.0), corner)
