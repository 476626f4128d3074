"""Maps that are kept, and rows that are matched together."""

from collections.abc import Callable

import pytest
import torch

from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.matching import PreparedMap
from ditf_probe.tasks import matchers as module
from ditf_probe.tasks.map_cache import MapCache
from ditf_probe.tasks.matchers import FeatureMatcher, match_all
from ditf_probe.tasks.models import Models
from ditf_probe.tasks.planning import plan, streams_of
from ditf_probe.tasks.rows import chosen_rows
from ditf_probe.tasks.settings import BackboneFeatures


def made(name: str, log: list[str]) -> Callable[[], PreparedMap]:
    def make() -> PreparedMap:
        log.append(name)
        return PreparedMap.of(torch.zeros(2, 3, 3), (6, 6))

    return make


def test_maps_leave_that_were_asked_for_longest_ago() -> None:
    log: list[str] = []
    each = PreparedMap.of(torch.zeros(2, 3, 3), (6, 6)).nbytes
    cache = MapCache(budget=2 * each)
    for name in "abacab":
        cache.get(name, made(name, log))
    assert "".join(log) == "abcb"  # c took the place of b
    assert len(cache) == 2
    cache.clear()
    cache.get("a", made("a", log))
    assert "".join(log) == "abcba"


def test_the_last_map_stays_even_where_it_is_too_large() -> None:
    log: list[str] = []
    cache = MapCache(budget=1)
    for name in "aab":
        cache.get(name, made(name, log))
    assert log == ["a", "b"]
    assert len(cache) == 1


@pytest.mark.parametrize("together", [0, module.TOGETHER])
def test_rows_that_are_matched_together_equal_each_alone(
    features: BackboneFeatures, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOGETHER", together)
    dataset = SyntheticPairs("test", 5, 32)
    rows = chosen_rows(["raw", "layer_norm", "adaln", "same_position", "rgb", "untrained"])
    matchers = plan(Models("cpu"), features, rows)
    for stream in streams_of(matchers):
        stream.open(dataset)
    pairs = [dataset[index] for index in range(4)]
    found = match_all(matchers, pairs)
    for matcher in matchers:
        matcher.forget()
    for matcher, matches in zip(matchers, found, strict=True):
        for pair, match in zip(pairs, matches, strict=True):
            alone = matcher.match(pair)
            assert torch.equal(match.points, alone.points)
            torch.testing.assert_close(match.similarity, alone.similarity, rtol=0, atol=1e-6, equal_nan=True)
            assert (match.grid, match.canvas) == (alone.grid, alone.canvas)


def test_a_map_is_made_once_per_stay(features: BackboneFeatures, monkeypatch: pytest.MonkeyPatch) -> None:
    made_of: list[str] = []
    dataset = SyntheticPairs("test", 5, 32)
    original = FeatureMatcher._map
    monkeypatch.setattr(
        FeatureMatcher, "_map", lambda self, side: made_of.append(side.image_id) or original(self, side)
    )
    matchers = plan(Models("cpu"), features, chosen_rows(["adaln"]))
    streams_of(matchers)[0].open(dataset)
    pairs = [dataset[index] for index in (0, 1, 0)]
    match_all(matchers, pairs)
    images = {side.image_id for pair in pairs for side in (pair.source, pair.target)}
    assert sorted(made_of) == sorted(images)
    matchers[0].forget()
    match_all(matchers, pairs[:1])
    assert len(made_of) == len(images) + len({pairs[0].source.image_id, pairs[0].target.image_id})
