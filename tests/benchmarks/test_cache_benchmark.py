import json
from pathlib import Path

import pytest

TINY = ["--categories", "2", "--images", "5", "--pairs", "3", "--channels", "4", "--grid", "2", "3", "--repeats", "1"]
TINY += ["--batch-size", "2", "--threads", "1"]


def test_all_ways_read_the_same(benchmark, tmp_path):
    cache = benchmark("cache")
    options = cache.parser().parse_args(TINY)
    sizes = cache.write(tmp_path, options)
    found = {way: cache.measure(way, tmp_path, options) for way in cache.WAYS}
    assert found["features"]["sum"] == pytest.approx(found["cache"]["sum"], rel=1e-4)
    stream = sum(
        float(cache.stream_of(category, options).hidden_states[image].sum())
        for category in range(2)
        for pair in cache.pairs_of(category, options)
        for image in pair
    )
    assert found["stream"]["sum"] == pytest.approx(stream, rel=1e-4)
    assert all(0 < run["first"] <= run["all"] for run in found.values())
    assert sizes["store"] > 2 * 5 * (6 * 4 * 4 + 3 * 4 * 4)
    assert sizes["cache"] > 2 * 5 * 6 * 4 * 4


def test_ratios_are_those_of_paired_runs(benchmark):
    cache = benchmark("cache")
    runs = [{"first": 1.0, "all": 4.0, "peak_mb": 2.0}, {"first": 2.0, "all": 4.0, "peak_mb": 2.0}]
    half = [{name: value / 2 for name, value in run.items()} for run in runs]
    results = cache.summarise({"cache": runs, "stream": half, "features": runs}, {"cache": 1, "store": 1})
    assert results["stream"]["first_ratio"] == {"min": 2.0, "median": 2.0, "max": 2.0}
    assert results["features"]["all_ratio"]["median"] == 1.0
    assert results["stream"]["peak_mb"]["median"] == 1.0


def test_prints_a_table_and_leaves_nothing_behind(benchmark, tmp_path, capsys, monkeypatch):
    cache, numbers, disk = benchmark("cache"), tmp_path / "numbers.json", tmp_path / "disk"

    def here(argument: str, value: str, words: list[str]) -> dict[str, float]:
        way, folder = words[-2:]
        return cache.measure(way, Path(folder), cache.parser().parse_args(words[1:]))

    monkeypatch.setattr(cache, "measure_apart", here)  # processes are tested with `matching`
    cache.main([*TINY, "--folder", str(disk), "--json", str(numbers)])
    written = json.loads(numbers.read_text())
    assert written["settings"]["images"] == 5
    assert written["machine"]["torch"]
    assert set(written["results"]) == {"bytes", "cache", "stream", "features"}
    assert "all pairs, cache over features" in capsys.readouterr().out
    assert list(disk.iterdir()) == []
