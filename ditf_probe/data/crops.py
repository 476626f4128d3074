"""Random crops of feature maps: the one augmentation that is exact on features that are kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ditf_probe.data.pairs import Pair, Side
from ditf_probe.geometry import Size, Transform, crop_features, grid_coordinates, resize_points


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a grid, in whole cells of it.

    Attributes:
        top: First row.
        left: First column.
        height: Number of rows.
        width: Number of columns.
    """

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class View:
    """An image as a training sees it: whole, or a part of its feature map.

    Attributes:
        side: What is annotated; in a part of the map, in pixels of that part.
        transform: How the whole image was prepared.
        window: Which part, in cells of `stride`; None is the whole.
        stride: Side of a cell in pixels of the prepared image.
    """

    side: Side
    transform: Transform
    window: Window | None = None
    stride: int = 1

    def tokens(self, grid: Size) -> Tensor:
        """Numbers of the tokens that show it.

        Args:
            grid: (height, width) of the map of the whole prepared image, in tokens; as many as `stride` says, or an
                integer multiple.

        Returns:
            `(h, w)` int64, in row-major order of the grid.
        """
        image = crop_features(torch.arange(grid[0] * grid[1]).reshape(grid), self.transform)
        if self.window is None:
            return image
        step = image.shape[0] * self.stride // self.transform.scaled[0]
        top, left = step * self.window.top, step * self.window.left
        return image[top : top + step * self.window.height, left : left + step * self.window.width]

    def crop(self, features: Tensor) -> Tensor:
        """Cuts padding off a map `(..., h, w)` of the whole prepared image; a map of a window has none."""
        return crop_features(features, self.transform) if self.window is None else features


def whole_views(pairs: Sequence[Pair], transform: Callable[[Size], Transform]) -> list[tuple[View, View]]:
    """The images of pairs as they are.

    Args:
        pairs: B pairs.
        transform: How an image of (height, width) is prepared.

    Returns:
        B times source and target.
    """
    return [
        (View(pair.source, transform(pair.source.size)), View(pair.target, transform(pair.target.size)))
        for pair in pairs
    ]


def cropped_views(
    pairs: Sequence[Pair],
    transform: Callable[[Size], Transform],
    stride: int,
    least: float,
    rng: np.random.Generator,
) -> list[tuple[View, View]]:
    """A random part of the map of each image, with the same share of its height and width in the whole batch.

    Both parts of a pair show one and the same keypoint, drawn from those that both images show.

    Args:
        pairs: B pairs.
        transform: How an image of (height, width) is prepared.
        stride: Side of a cell in pixels of the prepared image; the largest, where maps differ.
        least: Least share that is kept; the shares are drawn from there to 1.
        rng: Where everything is drawn from.

    Returns:
        B times source and target. Keypoints outside a part are not visible in it.
    """
    shares = rng.uniform(least, 1, size=2).tolist()
    found = []
    for pair in pairs:
        visible = pair.visible.nonzero()[:, 0].tolist()
        row = int(rng.choice(visible)) if visible else None
        views = []
        for whole in whole_views([pair], transform)[0]:
            grid = (whole.transform.scaled[0] // stride, whole.transform.scaled[1] // stride)
            window = _draw(whole.side, grid, shares, row, rng)
            views.append(View(cropped_side(whole.side, grid, window, stride), whole.transform, window, stride))
        found.append((views[0], views[1]))
    return found


def cropped_side(side: Side, grid: Size, window: Window, stride: int) -> Side:
    """What is annotated inside a window, as in an image of its own that the window covers.

    Args:
        side: What is annotated in the whole image.
        grid: (height, width) of the grid that covers it, in cells.
        window: Which part of the grid.
        stride: Side of a cell in pixels of the result.

    Returns:
        The same id; keypoints and box in pixels of the result, keypoints outside not visible, the box cut off.
    """
    size = (window.height * stride, window.width * stride)
    whole = (grid[0] * stride, grid[1] * stride)
    corner = torch.tensor([window.left * stride, window.top * stride], dtype=side.keypoints.dtype)
    low, high = torch.tensor(-0.5), torch.tensor([size[1] - 0.5, size[0] - 0.5])
    points = resize_points(side.keypoints, side.size, whole) - corner
    inside = ((points >= low) & (points <= high)).all(dim=1)
    corners = resize_points(side.bbox.reshape(2, 2), side.size, whole) - corner
    bbox = corners.maximum(low).minimum(high).flatten()
    return replace(side, size=size, keypoints=points, visible=side.visible & inside, bbox=bbox)


def _draw(side: Side, grid: Size, shares: Sequence[float], row: int | None, rng: np.random.Generator) -> Window:
    """A window of some shares of a grid, anywhere, or anywhere around a keypoint."""
    lengths, starts = [], []
    for axis, (share, cells) in enumerate(zip(shares, grid, strict=True)):
        length = max(1, round(share * cells))
        low, high = 0, cells - length
        if row is not None:
            place = float(grid_coordinates(side.keypoints[row], side.size, grid)[1 - axis])
            cell = min(max(round(place), 0), cells - 1)
            low, high = max(low, cell - length + 1), min(high, cell)
        lengths.append(length)
        starts.append(int(rng.integers(low, high + 1)))
    return Window(starts[0], starts[1], lengths[0], lengths[1])
