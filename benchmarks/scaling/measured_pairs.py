"""Measured and predicted matching of random features."""

import torch

from benchmarks.matching import METHODS as MATCHERS
from benchmarks.scaling.pairs import Method, PairSize, pair_cost
from benchmarks.scaling.tables import readable_bytes, readable_operations
from benchmarks.scaling.timing import HEAD, Place, Point, Sizes

SMALLEST_TIME = 1e-13  # seconds per operation: where noise makes a difference of two times negative


def exact_matching(sizes: Sizes, place: Place) -> list[Point]:
    """A very small pair gives the time of a call, two others those of an operation on channels and on pixels."""
    channels, side, image, keypoints = sizes.heads * HEAD, sizes.side, sizes.image, sizes.keypoints
    call = matching_time("exact", square_pair(1, 2, 4, 1), place)
    known = (square_pair(channels, 2 * side, image // 4, keypoints), square_pair(HEAD, side, image, keypoints))
    costs = [pair_cost("exact", size) for size in known]
    equations = torch.tensor([[c.channel_operations, c.pixel_operations] for c in costs], dtype=torch.float64)
    times = [[matching_time("exact", size, place) - call] for size in known]
    solved = torch.linalg.solve(equations, torch.tensor(times, dtype=torch.float64)).clamp_min(SMALLEST_TIME)
    channel, pixel = solved.flatten().tolist()
    rates = [
        f"{readable_operations(1 / each)}FLOP/s on {what}" for each, what in ((channel, "channels"), (pixel, "pixels"))
    ]
    points = []
    for size in (
        square_pair(channels, side * 3 // 2, image, 2 * keypoints),
        square_pair(channels // 2, 2 * side, image * 3 // 2, keypoints),
    ):
        cost = pair_cost("exact", size)
        predicted = call + channel * cost.channel_operations + pixel * cost.pixel_operations
        words = f"{call * 1e3:.2f} ms per call, {rates[0]}, {rates[1]}"
        points.append(Point("matching, exact", words_of(size), words, predicted, matching_time("exact", size, place)))
    return points


def upsampled_matching(sizes: Sizes, place: Place) -> list[Point]:
    """The methods that upsample features, from the bytes per second at an image of half the side."""
    known, asked = (
        square_pair(sizes.heads * HEAD // 4, sizes.side, image, sizes.keypoints)
        for image in (sizes.image // 2, sizes.image)
    )
    points = []
    methods: tuple[Method, ...] = ("vectorised", "reference")
    for method in methods:
        rate = pair_cost(method, known).traffic / matching_time(method, known, place)
        words = f"{readable_bytes(rate)}/s at {known.image[1]}x{known.image[0]} pixels"
        predicted, measured = pair_cost(method, asked).traffic / rate, matching_time(method, asked, place)
        points.append(Point(f"matching, {method}", words_of(asked), words, predicted, measured))
    return points


def matching_time(method: Method, size: PairSize, place: Place) -> float:
    """Median time to match a pair of random maps; of the slow reference, the time of one run."""
    source, target = torch.randn(2, size.channels, *size.grid, device=place.device)
    keypoints = (torch.rand(size.keypoints, 2) * torch.tensor([size.image[1], size.image[0]])).floor()
    repeats = 1 if method == "reference" else None
    return place.seconds(lambda: MATCHERS[method](source, target, keypoints, size.image), repeats)


def square_pair(channels: int, side: int, image: int, keypoints: int) -> PairSize:
    """A pair of square maps and images."""
    return PairSize(channels, (side, side), (image, image), keypoints)


def words_of(size: PairSize) -> str:
    """A size for a table."""
    (rows, columns), (height, width) = size.grid, size.image
    return f"{size.channels} channels, {columns}x{rows} grid, {width}x{height} pixels, {size.keypoints} keypoints"
