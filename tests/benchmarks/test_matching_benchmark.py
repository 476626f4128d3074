import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ditf_probe.errors import InputError

ROOT = Path(__file__).parents[2]
SIZES = ["--channels", "64", "--grid", "8", "8", "--image", "64", "64", "--keypoints", "4"]


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_all_methods_match_alike(benchmark):
    matching = benchmark("matching")
    arguments = matching.inputs(16, (5, 6), (41, 52), 7)
    predictions, similarity = matching.METHODS["reference"](*arguments, (41, 52))
    for method in matching.METHODS.values():
        found = method(*arguments, (41, 52))
        assert torch.equal(*(matching.without_ties(points, (5, 6), (41, 52)) for points in (found[0], predictions)))
        torch.testing.assert_close(found[1], similarity, atol=1e-5, rtol=0)


def test_only_ties_of_the_border_count_as_the_same_pixel(benchmark):
    """Cells of 8 pixels: the first and the last 4 of each row repeat."""
    points = torch.tensor([[0.0, 63.0], [3.0, 60.0], [4.0, 59.0], [30.0, 31.0]])
    moved = benchmark("matching").without_ties(points, (8, 8), (64, 64))
    assert moved.tolist() == [[3.5, 59.5], [3.5, 59.5], [4.0, 59.0], [30.0, 31.0]]


def test_disagreement_is_shown(benchmark):
    matching = benchmark("matching")
    options = matching.parse(SIZES)
    alike = {"seconds": [3.0, 1.0, 2.0], "cpu_seconds": [5.0], "peak_mb": 8.0, "similarity": [0.5, 0.5, 0.5, 0.5]}
    points = [[10.0, 10.0], [20.0, 20.0], [30.0, 30.0], [40.0, 40.0]]
    other = {**alike, "seconds": [0.5], "peak_mb": 2.0, "similarity": [0.5, 0.5, 0.25, 0.5]}
    results = matching.summarise(
        {"reference": {**alike, "predictions": points}, "exact": {**other, "predictions": [[10.0, 11.0], *points[1:]]}},
        options,
    )
    assert [results["reference"][key] for key in ("min", "median", "max", "cpu")] == [1.0, 2.0, 3.0, 5.0]
    assert [results["reference"][key] for key in ("times_exact", "memory_exact")] == [4.0, 4.0]
    assert [result["same_pixels"] for result in results.values()] == [4, 3]
    assert [result["cosine_difference"] for result in results.values()] == [0.0, 0.25]


def test_prints_a_table_and_writes_numbers(tmp_path):
    numbers = tmp_path / "new" / "numbers.json"
    done = run("matching", *SIZES, "--methods", "vectorised", "exact", "--json", numbers)
    assert done.returncode == 0, done.stderr
    assert "vectorised" in done.stdout
    assert "4 of 4" in done.stdout
    written = json.loads(numbers.read_text())
    assert written["settings"]["channels"] == 64
    for result in written["results"].values():
        assert 0 < result["min"] <= result["median"] <= result["max"]
        assert len(result["seconds"]) == 5
        assert result["same_pixels"] == 4
    # The upsampled target alone takes 64 * 64 * 64 * 4 bytes.
    assert written["results"]["vectorised"]["peak_mb"] > 1


def test_given_sizes_win_over_full(benchmark):
    options = benchmark("matching").parse(["--full", "--keypoints", "3"])
    assert (options.channels, options.grid, options.image, options.keypoints) == (3072, [30, 40], [375, 500], 3)


def test_a_method_that_fails_is_named(benchmark, monkeypatch):
    """Such as one that the kernel stops for its memory."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(InputError, match="`--methods` is 'exact': ended with code 1"):
        benchmark("matching").measure_apart("exact", SIZES)


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["nothing"], 2)])
def test_usage(arguments, code, benchmark, capsys):
    assert benchmark("__main__").main(arguments) == code
    assert "usage: python -m benchmarks {matching,model_card,near_duplicates,store}" in capsys.readouterr()[code // 2]


@pytest.mark.parametrize("name", ["matching", "model_card", "near_duplicates", "store"])
def test_every_argument_is_explained(name, benchmark, monkeypatch, capsys):
    explained = {}
    original = argparse.ArgumentParser.add_argument

    def add_argument(self, *names, **options):
        if self.prog.startswith("python -m benchmarks"):  # packages that are imported now have parsers of their own
            explained[names[-1]] = options.get("help")
        return original(self, *names, **options)

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", add_argument)
    with pytest.raises(SystemExit) as exit:
        benchmark("__main__").main([name, "--help"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m benchmarks {name} ")
    assert len(explained) > 5
    assert all(explained.values()), explained


def test_bad_input_is_one_line(benchmark, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    run = benchmark("__main__").main
    out = str(tmp_path / "file" / "x" / "numbers.json")
    assert run(["matching", "--json", out]) == 2
    missing = ["--weights", str(tmp_path / "none.safetensors"), "--block", "0", "--timestep", "60"]
    assert run(["model_card", *missing]) == 2
    assert run(["near_duplicates", "--cache", str(tmp_path), "--sheet", out]) == 2
    assert run(["near_duplicates", "--cache", str(tmp_path), "--willow", str(tmp_path / "none")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("` is ")[0] for line in lines] == [
        "error: `--json", "error: `weights", "error: `--sheet", "error: `--willow",
    ]  # fmt: skip
