"""What a row leaves behind, with what its heads cost, measured where they run."""

from collections.abc import Iterator, Mapping, Sequence

from ditf_probe.metrics.predictions import Predictions
from ditf_probe.probes import probe_cost, probe_latency
from ditf_probe.tasks.fused_matcher import FusedMatcher
from ditf_probe.tasks.matchers import FeatureMatcher, Matcher
from ditf_probe.tasks.records import RowCost, RowResult


def row_results(
    matchers: Sequence[Matcher], found: Mapping[str, Predictions], size: tuple[int, int]
) -> list[RowResult]:
    """What the rows leave behind of a data set.

    Args:
        matchers: The rows.
        found: Name of each row to where it put the keypoints.
        size: (height, width) of an image of the data set, for which costs are counted.
    """
    return [
        RowResult(x.row.name, x.row.kind, found[x.row.name], x.parameters, x.note(), row_cost(x, size), x.backbone)
        for x in matchers
    ]


def row_cost(matcher: Matcher, size: tuple[int, int]) -> RowCost | None:
    """What the heads of a row add to an image of (height, width); None where it has none.

    The sum over the parts of a fused row.
    """
    costs = [_cost(head, size) for head in _heads(matcher)]
    if not costs:
        return None
    flops, latency = sum(cost.flops for cost in costs), sum(cost.latency_ms for cost in costs)
    return RowCost(flops, costs[0].grid, latency, costs[0].device)


def _heads(matcher: Matcher) -> Iterator[FeatureMatcher]:
    """The parts of a row that have a head."""
    if isinstance(matcher, FusedMatcher):
        for part in matcher.parts:
            yield from _heads(part)
    elif isinstance(matcher, FeatureMatcher) and matcher.probe is not None:
        yield matcher


def _cost(matcher: FeatureMatcher, size: tuple[int, int]) -> RowCost:
    assert matcher.probe is not None
    extractor = matcher.stream.extractor
    backbone, (height, width) = extractor.backbone, extractor.transform(size).canvas
    strides = {block: backbone.stride_at(block) for block in matcher.blocks}
    grids = {block: (height // stride, width // stride) for block, stride in strides.items()}
    given = matcher.probe, backbone.common_channels(matcher.blocks), grids, len(extractor.timesteps)
    latency = probe_latency(*given)
    return RowCost(probe_cost(*given).flops, grids[matcher.blocks[0]], latency, str(backbone.device))
