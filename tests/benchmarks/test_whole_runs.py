"""Benchmarks of whole processes, `eval.py` being run in this one."""

import json

import pytest

from ditf_probe.errors import InputError


@pytest.fixture
def ranks_arguments(tiny_model):
    return ["--images", "3", "--side", "16", "--batch-size", "2", "--pairs", "4", "--repeats", "1", *tiny_model]


def test_ranks(benchmark, runs_here, ranks_arguments, tmp_path, capsys):
    ranks, numbers, folder = benchmark("ranks"), tmp_path / "numbers.json", tmp_path / "disk"
    folder.mkdir()
    ranks.main([*ranks_arguments, "--folder", str(folder), "--json", str(numbers)])
    found = json.loads(numbers.read_text())["results"]
    assert [words[1] for words in runs_here] == ["predict", "predict", "test", "test", "test"]
    for field in ("loop", "whole"):
        times = found["extraction"][field]
        assert all(times[count]["median"] > 0 for count in ("1", "2"))
        assert times["ratio"]["median"] == pytest.approx(times["1"]["median"] / times["2"]["median"])
    assert found["metrics"]["same_metrics"]
    assert found["metrics"]["predictions"] > 0
    assert found["metrics"]["differing_predictions"] == []
    assert "loop, one rank over two" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_ranks_that_repeat_an_image_are_refused(benchmark, runs_here, ranks_arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark("runs"), "entries", lambda root: {"store": (3, 4)})
    with pytest.raises(InputError, match="`ranks` is 1: the store has 3 of 3 images, written 4 times"):
        benchmark("ranks").main([*ranks_arguments, "--folder", str(tmp_path)])


def test_bits_that_differ_are_shown(benchmark, tmp_path):
    ranks = benchmark("ranks")
    for name, score in (("one", 1.0), ("two", 1.0 + 1e-15)):
        (tmp_path / name / "predictions").mkdir(parents=True)
        (tmp_path / name / "comparison.json").write_text(json.dumps({"datasets": {"pck": score}}))
        (tmp_path / name / "predictions" / "a.csv").write_text(f"{score!r}\n")
        (tmp_path / name / "predictions" / "b.csv").write_text("1\n")
    one, two = tmp_path / "one", tmp_path / "two"
    assert ranks.same_bits(one, one) == {"same_metrics": True, "predictions": 2, "differing_predictions": []}
    found = ranks.same_bits(one, two)
    assert found == {"same_metrics": False, "predictions": 2, "differing_predictions": ["predictions/a.csv"]}


def test_pf_willow(benchmark, runs_here, willow, tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    arguments = ["--root", str(willow), "--rows", "raw", "same_position", "--repeats", "1", "--json", str(numbers)]
    benchmark("pf_willow").main(arguments)
    found = json.loads(numbers.read_text())["results"]
    assert found["pairs"] == 4
    assert list(found["images"].values()) == [4]
    for phase in ("cold", "warm"):
        assert found[phase]["whole"]["seconds"] == [2.0]
        assert found[phase]["loop"]["median"] > 0
    assert "4 pairs, 4 images written once each, raw, same_position" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(InputError, match=r"`--root` is .*: is no folder"):
        benchmark("pf_willow").main(["--root", str(tmp_path / "none")])


def test_startup(benchmark, monkeypatch, capsys):
    startup, seen = benchmark("startup"), []
    times = {"import torch": 2.0, "import ditf_probe": 2.5, "ditf-probe --help": 1.0}
    times |= {"python": 0.1, "import lightning.pytorch.cli": 4.0, "train.py --help": 6.0}

    def run_apart(argument, value, words, threads):
        seen.append(value)
        return benchmark("measuring").Finished("", times[value] * (10 if len(seen) <= len(times) else 1), 7.0)

    monkeypatch.setattr(startup, "run_apart", run_apart)
    startup.main(["--repeats", "2", "--threads", "1"])
    assert seen == list(startup.COMMANDS) * 3, "in turns, with a warm-up"
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "1.25" in lines["import ditf_probe over import torch"]
    assert "yes" in lines["ditf-probe --help"] or "2.0" in lines["ditf-probe --help"]
    assert "1.50" in lines["train.py --help over import lightning.pytorch.cli"]
    assert "no" in lines["train.py --help over import lightning.pytorch.cli"].split("│")[-2]


def test_processes_are_measured_and_named_when_they_fail(benchmark):
    measuring = benchmark("measuring")
    done = measuring.run_apart("command", "x", ["-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], threads=3)
    assert done.output == "3\n"
    assert done.seconds > 0
    assert 1 < done.peak_mb < 100, "not that of the process which measures"
    with pytest.raises(InputError, match=r"`command` is 'x': ended with code 1; .* \(ValueError: no\)"):
        measuring.run_apart("command", "x", ["-c", "raise ValueError('no')"])


def test_turns_and_ratios(benchmark):
    measuring, calls = benchmark("measuring"), []
    taken = measuring.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert "".join(calls) == "ababab"
    assert {name: len(runs) for name, runs in taken.items()} == {"a": 2, "b": 2}
    assert measuring.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == {"min": 2.0, "median": 3.0, "max": 4.0}


@pytest.fixture
def kept_free():
    """Free memory that stays resident in the allocator, more than the test asks for, below a block that is in use."""
    import torch

    torch.ones(2**20 * 31 // 4).sum()  # freed: from now on glibc does not map such blocks one by one
    blocks = [torch.ones(2**20) for _ in range(40)]
    above = torch.ones(2**18)
    blocks.clear()
    return above


@pytest.mark.parametrize("resets", [True, False])
def test_peak_memory_sees_what_came_and_went(benchmark, kept_free, monkeypatch, tmp_path, resets):
    import torch

    measuring = benchmark("measuring")
    if not resets:
        monkeypatch.setattr(measuring, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    for megabytes in (68, 34, 68):
        peak = measuring.PeakMemory()
        torch.ones(megabytes * 10**6 // 4).sum()
        assert megabytes - 5 < peak() < megabytes + 15
