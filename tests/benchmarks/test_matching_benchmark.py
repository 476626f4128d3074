import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def benchmarks(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_all_methods_match_alike(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.matching import METHODS, inputs, without_ties

    arguments = inputs(16, (5, 6), (41, 52), 7)
    predictions, similarity = METHODS["reference"](*arguments, (41, 52))
    for method in METHODS.values():
        found = method(*arguments, (41, 52))
        assert torch.equal(*(without_ties(points, (5, 6), (41, 52)) for points in (found[0], predictions)))
        torch.testing.assert_close(found[1], similarity, atol=1e-5, rtol=0)


def test_prints_a_table_and_writes_numbers(tmp_path):
    sizes = ["--channels", 64, "--grid", 8, 8, "--image", 64, 64, "--keypoints", 4]
    run = benchmarks("matching", *sizes, "--methods", "vectorised", "exact", "--json", tmp_path / "numbers.json")
    assert run.returncode == 0, run.stderr
    assert "vectorised" in run.stdout
    assert "4 of 4" in run.stdout
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["settings"]["channels"] == 64
    for result in numbers["results"].values():
        assert 0 < result["min"] <= result["median"] <= result["max"]
        assert len(result["seconds"]) == 5
        assert result["same_pixels"] == 4
    # The upsampled target alone takes 64 * 64 * 64 * 4 bytes.
    assert numbers["results"]["vectorised"]["peak_mb"] > 1


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["nothing"], 2)])
def test_usage(arguments, code):
    run = benchmarks(*arguments)
    assert run.returncode == code
    assert "usage: python -m benchmarks {matching," in run.stdout + run.stderr
