"""From geometry to pixels: supersampled polygons, reduced by a box filter."""

from collections.abc import Iterator
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ditf_probe.data.drawing.scene import Background, Scene, background
from ditf_probe.data.drawing.sketch import Shape


def rasterise(scene: Scene, image_size: int) -> NDArray[np.uint8]:
    """Draws a scene. Uses the scene up: a second call would continue its random numbers.

    Args:
        scene: The scene.
        image_size: Side of the picture in pixels.

    Returns:
        `(image_size, image_size, 3)` uint8 RGB.
    """
    behind = background(scene)
    factor = 2 if image_size >= 64 else 4
    side = image_size * factor
    shapes = behind.clutter + scene.shapes
    polygons = _pixels(shapes, side)
    canvas = _backdrop(behind, side)
    draw = ImageDraw.Draw(canvas)
    width = max(1, round(0.02 * scene.size * side))
    for shape in shapes:
        outline = next(polygons)
        draw.polygon(outline, fill=shape.colour)
        if shape.texture:
            _clip(canvas, shape, outline, polygons)
        if shape.contour and scene.outline is not None:
            draw.line(outline + outline[:4], fill=scene.outline, width=width)
    light = Image.fromarray(behind.light).resize((image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(canvas.reduce(factor), dtype=np.float32) * np.asarray(light)[:, :, None]
    lit: NDArray[np.uint8] = np.minimum(pixels, 255.0).astype(np.uint8)
    return lit


def _pixels(shapes: list[Shape], side: int) -> Iterator[list[float]]:
    """Every outline, each followed by those of its texture, as flat lists of canvas coordinates.

    (0, 0) is the centre of the canvas's first pixel. One conversion for all is much cheaper than one each.
    """
    arrays = [points for shape in shapes for points in (shape.points, *(patch for patch, _ in shape.texture))]
    flat = (np.concatenate(arrays) * side - 0.5).ravel().tolist()
    ends = accumulate(2 * len(points) for points in arrays)
    return (flat[start:end] for start, end in pairwise((0, *ends)))


def _backdrop(behind: Background, side: int) -> Image.Image:
    """Blend of the four corner colours."""
    corners = np.array(behind.corners, dtype=np.uint8).reshape(2, 2, 3)
    return Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)


def _clip(canvas: Image.Image, shape: Shape, outline: list[float], polygons: Iterator[list[float]]) -> None:
    """Draws the texture of a shape, the next polygons, inside its outline."""
    mask = Image.new("L", canvas.size)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    overlay = canvas.copy()
    draw = ImageDraw.Draw(overlay)
    for _, colour in shape.texture:
        draw.polygon(next(polygons), fill=colour)
    canvas.paste(overlay, mask=mask)


def rasterise_mask(scene: Scene, image_size: int) -> NDArray[np.bool_]:
    """Which pixels of the picture of a scene show its object: `(image_size, image_size)`, by their centres."""
    side = 3 * image_size  # so that a pixel centre falls on a pixel
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    last = len(scene.shapes) - scene.occluders
    for number, shape in enumerate(scene.shapes):
        draw.polygon((shape.points * side - 0.5).ravel().tolist(), fill=255 if number < last else 0)
    shown: NDArray[np.bool_] = np.asarray(mask)[1::3, 1::3] > 0
    return shown
