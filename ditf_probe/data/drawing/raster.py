"""From geometry to pixels: supersampled polygons, reduced by a box filter."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ditf_probe.data.drawing.scene import Background, Scene, background
from ditf_probe.data.drawing.sketch import Points, Shape


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
    canvas = _backdrop(behind, side)
    draw = ImageDraw.Draw(canvas)
    for shape in behind.clutter:
        draw.polygon(_pixels(shape.points, side), fill=shape.colour)
    width = max(1, round(0.02 * scene.size * side))
    for shape in scene.shapes:
        outline = _pixels(shape.points, side)
        draw.polygon(outline, fill=shape.colour)
        if shape.texture:
            _clip(canvas, shape, outline, side)
        if shape.contour and scene.outline is not None:
            draw.line(outline + outline[:4], fill=scene.outline, width=width)
    light = Image.fromarray(behind.light).resize((image_size, image_size), Image.Resampling.BILINEAR)
    pixels = np.asarray(canvas.reduce(factor), dtype=np.float32) * np.asarray(light)[:, :, None]
    lit: NDArray[np.uint8] = np.minimum(pixels, 255.0).astype(np.uint8)
    return lit


def _pixels(points: Points, side: int) -> list[float]:
    """Coordinates of the canvas, where (0, 0) is the centre of the first pixel, as one flat list."""
    flat: list[float] = (points * side - 0.5).ravel().tolist()
    return flat


def _backdrop(behind: Background, side: int) -> Image.Image:
    """Blend of the four corner colours."""
    corners = np.array(behind.corners, dtype=np.uint8).reshape(2, 2, 3)
    return Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)


def _clip(canvas: Image.Image, shape: Shape, outline: list[float], side: int) -> None:
    """Draws the texture of a shape inside its outline."""
    mask = Image.new("L", canvas.size)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    overlay = canvas.copy()
    draw = ImageDraw.Draw(overlay)
    for points, colour in shape.texture:
        draw.polygon(_pixels(points, side), fill=colour)
    canvas.paste(overlay, mask=mask)
