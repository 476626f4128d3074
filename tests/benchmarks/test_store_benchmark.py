import json

import pytest

TINY = ["--batches", "2", "--batch-size", "3", "--tokens", "5", "--channels", "4", "--entries", "7", "--repeats", "2"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_measures_and_leaves_nothing_behind(benchmark, tmp_path, capsys, dtype):
    numbers, folder = tmp_path / "numbers.json", tmp_path / "disk"
    benchmark("store").main([*TINY, "--dtype", dtype, "--folder", str(folder), "--json", str(numbers)])
    written = json.loads(numbers.read_text())
    results = written["results"]
    assert written["settings"]["channels"] == 4
    assert results["bytes"] == 2 * 3 * (5 * 4 * (4 if dtype == "float32" else 2) + 3 * 4 * 4)
    assert (results["entries"], results["shards"]) == (9, 3), "whole batches"
    for name in ("write_plain", "write_store", "read_plain", "read_store", "open"):
        assert len(results[name]["seconds"]) == 2
        assert 0 < results[name]["min"] <= results[name]["median"] <= results[name]["max"]
    assert "open 9 entries in 3 shards" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_ratios_are_those_of_paired_runs(benchmark):
    found = {"write_plain": [1.0, 2.0, 9.0], "write_store": [2.0, 1.0, 9.0], "read_plain": [4.0], "read_store": [1.0]}
    results = benchmark("store").summarise({**found, "open": [0.5, 0.25], "bytes": 8})
    assert results["write_ratio"] == {"min": 0.5, "median": 1.0, "max": 2.0}
    assert results["read_ratio"]["median"] == 4.0
    assert results["open"]["min"] == 0.25
    assert results["bytes"] == 8
