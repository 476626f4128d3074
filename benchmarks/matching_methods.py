"""Ways to match keypoints: the loops of published codes, and this project's own, over the same features.

Each takes the feature maps `(C, h, w)` of source and target, keypoints `(K, 2)` (x, y) in pixels and the size of both
images, and returns predictions `(K, 2)` in pixels of the target and similarities `(K,)`. Maps may lie on any device.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.matching import MatchingRule, PreparedMap, match_by_rule, match_prepared

SAME = 0.01  # pixels; grids give fractions
Size = tuple[int, int]
Match = tuple[Tensor, Tensor]

# Those of the protocols "dift" and "geoaware", whose module is slow to import.
PIXELS = MatchingRule(kind="argmax_pixel", rounding="integer")
CELLS = MatchingRule(
    kind="window_softargmax", rounding="patch", window=11, temperature=0.02, mask="zero", origin="corner"
)


def upsample(features: Tensor, size: Size) -> Tensor:
    return F.interpolate(features[None], size, mode="bilinear", align_corners=False)[0]


def reference(source: Tensor, target: Tensor, keypoints: Tensor, size: Size) -> Match:
    source, target = upsample(source, size), upsample(target, size)
    predictions, similarity = [], []
    for x, y in keypoints.long().tolist():
        pixels = target.flatten(1).T  # frees the normalised map of the last keypoint
        pixels = F.normalize(pixels, dim=1)
        cosines = pixels @ F.normalize(source[:, y, x], dim=0)
        best = int(cosines.argmax())
        predictions.append([best % size[1], best // size[1]])
        similarity.append(float(cosines[best]))
    return torch.tensor(predictions).float(), torch.tensor(similarity)


def vectorised(source: Tensor, target: Tensor, keypoints: Tensor, size: Size) -> Match:
    relative = (keypoints + 0.5) / torch.tensor([size[1], size[0]]) * 2 - 1
    places = relative[None, None].to(source)
    samples = F.grid_sample(source[None], places, padding_mode="border", align_corners=False)
    target = upsample(target, size).flatten(1)
    # In pieces of channels: vector_norm over the first axis takes ten times as long, one large square twice the memory.
    squares = sum((piece.square().sum(0) for piece in torch.split(target, 64)), target.new_zeros(()))
    target /= squares.sqrt().clamp_min(1e-8)
    similarity, best = (F.normalize(samples[0, :, 0].T, dim=1) @ target).max(dim=1)
    return torch.stack([best % size[1], best // size[1]], dim=1).float(), similarity


def grid_loop(source: Tensor, target: Tensor, keypoints: Tensor, size: Size) -> Match:
    rows, columns = target.shape[1:]
    # Two backbones meet on one grid there; here both maps have it already.
    cells = [F.normalize(upsample(x, (rows, columns)).flatten(1).T, dim=1) for x in (source, target)]
    cosines = cells[0] @ cells[1].T  # of every cell with every cell
    stride_x, stride_y = size[1] / columns, size[0] / rows
    x = torch.arange(columns, device=cosines.device)
    y = torch.arange(rows, device=cosines.device)[:, None]
    predictions, similarity = [], []
    for point_x, point_y in keypoints.tolist():
        column, row = min(int(point_x / stride_x), columns - 1), min(int(point_y / stride_y), rows - 1)
        found = cosines[row * columns + column].reshape(rows, columns)
        best = int(found.argmax())
        similarity.append(float(found.flatten()[best]))
        near = ((x - best % columns).abs() <= CELLS.window // 2) & ((y - best // columns).abs() <= CELLS.window // 2)
        weights = (found * near / CELLS.temperature).flatten().softmax(0).reshape(rows, columns)
        places = float((weights * x).sum()), float((weights * y).sum())
        predictions.append([(places[0] + 0.5) * stride_x, (places[1] + 0.5) * stride_y])
    return torch.tensor(predictions), torch.tensor(similarity)


def exact(source: Tensor, target: Tensor, keypoints: Tensor, size: Size) -> Match:
    return match_by_rule(source, target, keypoints, size, size, PIXELS)[:2]


def grid_exact(source: Tensor, target: Tensor, keypoints: Tensor, size: Size) -> Match:
    return match_by_rule(source, target, keypoints, size, size, CELLS)[:2]


class Method(NamedTuple):
    """A way to match one pair.

    Attributes:
        match: The way.
        ours: Name of this project's method of the same rule, with which it is compared.
    """

    match: Callable[[Tensor, Tensor, Tensor, Size], Match]
    ours: str


METHODS = {
    "reference": Method(reference, "exact"),
    "vectorised": Method(vectorised, "exact"),
    "exact": Method(exact, "exact"),
    "grid_loop": Method(grid_loop, "grid_exact"),
    "grid_exact": Method(grid_exact, "grid_exact"),
}


class Case(NamedTuple):
    """A pair to match: the arguments of a method."""

    source: Tensor
    target: Tensor
    keypoints: Tensor
    size: Size

    def to(self, device: torch.device, dtype: torch.dtype) -> "Case":
        """The same with its maps on a device; keypoints stay where annotations are, on the CPU."""
        return self._replace(source=self.source.to(device, dtype), target=self.target.to(device, dtype))


def one_by_one(method: Method, cases: Sequence[Case]) -> list[Match]:
    return [method.match(*case) for case in cases]


ManyPairs = Callable[[Sequence[Case]], list[Match]]
PAIR_METHODS: dict[str, ManyPairs] = {name: partial(one_by_one, method) for name, method in METHODS.items()}
"""Ways to match many pairs of any sizes; one that takes them together goes here, and its rule below."""
PAIR_OURS = {name: method.ours for name, method in METHODS.items()}


def together(cases: Sequence[Case]) -> list[Match]:
    """All pairs in one call of this project."""
    prepared = [
        (PreparedMap.of(case.source, case.size, PIXELS), PreparedMap.of(case.target, case.size, PIXELS), case.keypoints)
        for case in cases
    ]
    return [found[:2] for found in match_prepared(prepared)]


def one_case(channels: int, grid: Size, image: Size, keypoints: int) -> Case:
    """Seeded noise: neither time nor memory depends on the values."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(channels, *grid, generator=generator)
    target = torch.randn(channels, *grid, generator=generator)
    points = torch.rand(keypoints, 2, generator=generator) * torch.tensor([image[1], image[0]])
    return Case(source, target, points.floor(), image)


def random_cases(
    channels: int, grid: Size, image: Size, keypoints: int, *, pairs: int, sizes: int, seed: int = 0
) -> list[Case]:
    """Pairs of random sizes, drawn from one set of images.

    Args:
        channels: Of all features.
        grid: Cells of the largest images.
        image: Pixels of the largest images; sides are drawn between half of it and all of it.
        keypoints: Of a pair, at most.
        pairs: How many.
        sizes: Number of sizes that images have; two images of each.
        seed: Of everything.
    """
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    images = []
    for _ in range(sizes):
        size = (number(-(-image[0] // 2), image[0]), number(-(-image[1] // 2), image[1]))
        cells = [max(2, round(grid[axis] * size[axis] / image[axis])) for axis in (0, 1)]
        images.append((torch.randn(2, channels, *cells, generator=generator), size))
    cases = []
    for _ in range(pairs):
        (source, target), size = images[number(0, sizes - 1)]
        points = torch.rand(number(1, keypoints), 2, generator=generator) * torch.tensor([size[1], size[0]])
        cases.append(Case(source, target, points.floor(), size))
    return cases


def without_ties(predictions: Tensor, grid: Sequence[int], size: Sequence[int]) -> Tensor:
    """Moves what lies within half a stride of the border, where interpolation repeats, to its inner edge."""
    border = torch.tensor([size[1] / grid[1], size[0] / grid[0]]) / 2 - 0.5
    last = torch.tensor([size[1], size[0]]) - 1
    return predictions.maximum(border).minimum(last - border)


def settled(case: Case, predictions: Tensor) -> Tensor:
    """Predictions of a case without ties of the border."""
    return without_ties(predictions, case.target.shape[1:], case.size)
