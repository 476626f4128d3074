"""Measured and predicted matching of random features."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.matching_methods import METHODS as MATCHERS
from benchmarks.scaling.pairs import Method, PairSize, pair_cost
from benchmarks.scaling.tables import readable_bytes, readable_operations, readable_time
from benchmarks.scaling.timing import HEAD, Place, Point, Sizes

SMALLEST_TIME = 1e-13  # seconds per operation: where noise makes a difference of two times negative


def exact_matching(sizes: Sizes, place: Place) -> list[Point]:
    """A very small pair gives the time of a call, two others those of an operation on channels and on pixels."""
    channels, side, image, keypoints = sizes.heads * HEAD, sizes.side, sizes.image, sizes.keypoints
    known = (square_pair(channels, 2 * side, image // 4, keypoints), square_pair(HEAD, side, image, keypoints))
    asked = (
        square_pair(channels, side * 3 // 2, image, 2 * keypoints),
        square_pair(channels // 2, 2 * side, image * 3 // 2, keypoints),
    )
    works = [matching("exact", size, place) for size in (square_pair(1, 2, 4, 1), *known, *asked)]
    call, wide, high, *measured = place.medians(works)
    costs = [pair_cost("exact", size) for size in known]
    equations = torch.tensor([[c.channel_operations, c.pixel_operations] for c in costs], dtype=torch.float64)
    times = torch.tensor([[wide - call], [high - call]], dtype=torch.float64)
    channel, pixel = torch.linalg.solve(equations, times).clamp_min(SMALLEST_TIME).flatten().tolist()
    rates = (
        f"{readable_operations(1 / channel)}FLOP/s on channels",
        f"{readable_operations(1 / pixel)}FLOP/s on pixels",
    )
    words, points = ", ".join((f"{readable_time(call)} per call", *rates)), []
    for size, taken in zip(asked, measured, strict=True):
        cost = pair_cost("exact", size)
        predicted = call + channel * cost.channel_operations + pixel * cost.pixel_operations
        points.append(Point("matching, exact", words_of(size), words, predicted, taken))
    return points


def upsampled_matching(sizes: Sizes, place: Place) -> list[Point]:
    """The methods that upsample features, from the bytes per second at an image of three quarters of the side."""
    points = []
    methods: tuple[Method, ...] = ("vectorised", "reference")
    for method in methods:
        slow = method == "reference"
        keypoints = -(-sizes.keypoints // 3) if slow else sizes.keypoints
        known, asked = (
            square_pair(sizes.heads * HEAD // 4, sizes.side, image, keypoints)
            for image in (sizes.image * 3 // 4, sizes.image)
        )
        works = [matching(method, size, place) for size in (known, asked)]
        first, measured = place.medians(works, 1 if slow else None)
        rate = pair_cost(method, known).traffic / first
        words = f"{readable_bytes(rate)}/s at {known.image[1]}x{known.image[0]} pixels"
        predicted = pair_cost(method, asked).traffic / rate
        points.append(Point(f"matching, {method}", words_of(asked), words, predicted, measured))
    return points


def matching(method: Method, size: PairSize, place: Place) -> Callable[[], object]:
    """Matches a pair of maps with a clear best match when it is called."""
    source, target = torch.randn(2, size.channels, *size.grid, device=place.device)
    target += source  # where nothing stands out, the exact matcher looks at more pixels
    keypoints = (torch.rand(size.keypoints, 2) * torch.tensor([size.image[1], size.image[0]])).floor()
    return partial(MATCHERS[method].match, source, target, keypoints, size.image)


def square_pair(channels: int, side: int, image: int, keypoints: int) -> PairSize:
    """A pair of square maps and images."""
    return PairSize(channels, (side, side), (image, image), keypoints)


def words_of(size: PairSize) -> str:
    """A size for a table."""
    (rows, columns), (height, width) = size.grid, size.image
    return f"{size.channels} channels, {columns}x{rows} grid, {width}x{height} pixels, {size.keypoints} keypoints"
