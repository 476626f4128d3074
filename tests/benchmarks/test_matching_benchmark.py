import argparse
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch

from ditf_probe.errors import InputError
from ditf_probe.protocols import find_protocol

NAMES = sorted(  # written down apart, so that none gets lost
    [
        *("cache", "extraction", "matching", "model_card", "near_duplicates", "pf_willow", "ranks", "scaling_curves"),
        *("agreement", "large_models", "probe_training", "startup", "store"),
    ]
)
SIZES = ["--channels", "64", "--grid", "8", "8", "--image", "64", "64", "--keypoints", "4"]


def test_methods_of_a_rule_match_alike(benchmark):
    methods = benchmark("matching_methods")
    case = methods.one_case(16, (5, 6), (41, 52), 7)
    for method in methods.METHODS.values():
        found, expected = method.match(*case), methods.METHODS[method.ours].match(*case)
        points = [methods.settled(case, x[0]) for x in (found, expected)]
        torch.testing.assert_close(*points, atol=1e-3, rtol=0)
        torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=0)


def test_rules_are_those_of_the_protocols(benchmark):
    methods = benchmark("matching_methods")
    assert find_protocol("dift").rule() == methods.PIXELS
    geoaware = find_protocol("geoaware").rule()
    assert replace(geoaware, sigma=methods.CELLS.sigma) == methods.CELLS


def test_many_pairs_have_random_sizes_and_the_same_matches(benchmark):
    methods = benchmark("matching_methods")
    cases = methods.random_cases(8, (5, 6), (41, 52), 4, pairs=9, sizes=3)
    assert 1 < len({case.size for case in cases}) <= 3
    assert all(21 <= case.size[0] <= 41 and 26 <= case.size[1] <= 52 and len(case.keypoints) <= 4 for case in cases)
    for name, match in methods.PAIR_METHODS.items():
        expected = methods.PAIR_METHODS[methods.PAIR_OURS[name]](cases)
        for case, found, right in zip(cases, match(cases), expected, strict=True):
            torch.testing.assert_close(
                methods.settled(case, found[0]), methods.settled(case, right[0]), atol=1e-3, rtol=0
            )


def test_only_ties_of_the_border_count_as_the_same_pixel(benchmark):
    """Cells of 8 pixels: the first and the last 4 of each row repeat."""
    points = torch.tensor([[0.0, 63.0], [3.0, 60.0], [4.0, 59.0], [30.0, 31.0]])
    moved = benchmark("matching_methods").without_ties(points, (8, 8), (64, 64))
    assert moved.tolist() == [[3.5, 59.5], [3.5, 59.5], [4.0, 59.0], [30.0, 31.0]]


def test_disagreement_is_shown(benchmark):
    alike = {"seconds": [3.0, 1.0, 2.0], "cpu_seconds": [5.0], "peak_mb": 8.0, "similarity": [0.5, 0.5, 0.5, 0.5]}
    points = [[10.0, 10.0], [20.0, 20.0], [30.0, 30.0], [40.0, 40.0]]
    other = {**alike, "seconds": [0.5], "peak_mb": 2.0, "similarity": [0.5, 0.5, 0.25, 0.5]}
    results = benchmark("matching").summarise(
        {"reference": {**alike, "predictions": points}, "exact": {**other, "predictions": [[10.0, 11.0], *points[1:]]}}
    )
    assert [results["reference"][key] for key in ("min", "median", "max", "cpu")] == [1.0, 2.0, 3.0, 5.0]
    assert [results["reference"][key] for key in ("times_ours", "memory_ours")] == [4.0, 4.0]
    assert [result["same_pixels"] for result in results.values()] == [4, 3]
    assert [result["cosine_difference"] for result in results.values()] == [0.0, 0.25]


def test_prints_a_table_and_writes_numbers(benchmark, tmp_path, capsys):
    """Each method in a process of its own: `python -m benchmarks matching` for it alone."""
    numbers = tmp_path / "new" / "numbers.json"
    arguments = ["matching", *SIZES, "--methods", "vectorised", "exact", "--json", str(numbers)]
    assert benchmark("__main__").main(arguments) == 0
    printed = capsys.readouterr().out
    assert "vectorised" in printed
    assert "4 of 4" in printed
    written = json.loads(numbers.read_text())
    assert written["settings"]["channels"] == 64
    for result in written["results"].values():
        assert 0 < result["min"] <= result["median"] <= result["max"]
        assert len(result["seconds"]) == 5
        assert result["same_pixels"] == 4
    # The upsampled target alone takes 64 * 64 * 64 * 4 bytes.
    assert written["results"]["vectorised"]["peak_mb"] > 1


def test_agreement_counts_pixels_and_what_similarity_lacks(benchmark, monkeypatch):
    agreement = benchmark("matching_agreement")
    options = benchmark("matching").parse([*SIZES, "--channels", "8", "--agreement", "6"])
    found = agreement.measure_agreement(options)
    assert (found["pairs"], found["beyond_1e-5"]) == (6, 0)
    assert found["same"] <= found["same_beside_border_ties"] == found["keypoints"]
    assert found["largest_deficit"] <= 1e-7
    assert found["largest_grid_distance"] <= 1e-3
    wrong = benchmark("matching_methods").METHODS["exact"]._replace(match=lambda *case: (case[2].flip(1) * 0 + 1, None))
    monkeypatch.setitem(agreement.METHODS, "exact", wrong)
    found = agreement.measure_agreement(options)
    assert found["beyond_1e-5"] >= found["keypoints"] - 1
    assert found["largest_deficit"] > 0.1


def test_given_sizes_win_over_full(benchmark):
    options = benchmark("matching").parse(["--full", "--keypoints", "3"])
    assert (options.channels, options.grid, options.image, options.keypoints) == (3072, [30, 40], [375, 500], 3)


def test_a_method_that_fails_is_named(benchmark, monkeypatch):
    """Such as one that the kernel stops for its memory."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(InputError, match="`--methods` is 'exact': ended with code 1"):
        benchmark("measuring").measure_apart("--methods", "exact", SIZES)


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2), (["nothing"], 2)])
def test_usage(arguments, code, benchmark, capsys):
    assert benchmark("__main__").main(arguments) == code
    assert (
        "usage: python -m benchmarks {agreement,cache,extraction,large_models,matching,model_card,"
        in capsys.readouterr()[code // 2]
    )


@pytest.mark.parametrize("name", NAMES)
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
    assert len(explained) > 3
    assert all(explained.values()), explained


MEASURING = [name for name in NAMES if name not in ("model_card", "near_duplicates")]


@pytest.mark.parametrize("name", MEASURING)
def test_unwritable_figures_are_refused_before_anything_is_measured(name, benchmark, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    required = ["--root", str(tmp_path)] if name == "pf_willow" else []
    assert benchmark("__main__").main([name, *required, "--json", str(tmp_path / "file" / "x" / "numbers.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: `--json` is ")


def test_bad_input_is_one_line(benchmark, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    run = benchmark("__main__").main
    out = str(tmp_path / "file" / "x" / "numbers.json")
    missing = ["--weights", str(tmp_path / "none.safetensors"), "--block", "0", "--timestep", "60"]
    assert run(["model_card", *missing]) == 2
    assert run(["near_duplicates", "--cache", str(tmp_path), "--sheet", out]) == 2
    assert run(["near_duplicates", "--cache", str(tmp_path), "--willow", str(tmp_path / "none")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("` is ")[0] for line in lines] == [
        "error: `weights", "error: `--sheet", "error: `--willow",
    ]  # fmt: skip
