import json

import pytest
import torch

from ditf_probe.errors import InputError

SIZES = ["--sides", "16", "8", "--images", "2", "--batch-size", "2", "--ensemble", "2", "--repeats", "2"]


@pytest.fixture
def arguments(tiny_model):
    return [*SIZES, *tiny_model]


def test_three_comparisons(benchmark, parts_here, arguments, tmp_path, capsys):
    extraction, numbers, folder = benchmark("extraction"), tmp_path / "numbers.json", tmp_path / "disk"
    parts_here(extraction)
    folder.mkdir()
    extraction.main([*arguments, "--draws", "3", "--folder", str(folder), "--json", str(numbers)])
    written = json.loads(numbers.read_text())
    loop, ensemble, depth = (written["results"][part] for part in ("loop", "ensemble", "depth"))
    assert loop["images"] == 4
    assert loop["largest_difference"] < 1e-4
    assert ensemble["draws"] == 3
    assert depth["block"] == 1
    assert depth["same_features"]
    assert depth["weight_mb_ratio"] > 1.7
    for found, names in ((loop, ("reference", "ours")), (ensemble, ("passes", "encode", "ensemble"))):
        assert all(0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"] for name in names)
        assert len(found[names[0]]["seconds"]) == 2
        assert found["ratio"]["median"] > 0
    assert loop["ours"]["peak_mb"] >= 0
    assert {"early_exit_ratio", "truncated_ratio", "resident_mb_ratio"} <= set(depth)
    assert written["settings"]["vae_channels"] == [8, 8]
    assert "whole over truncated" in capsys.readouterr().out
    assert list(folder.iterdir()) == []


def test_the_published_loop_finds_the_same_features(benchmark, arguments, tmp_path):
    """Of two sizes, an ensemble and an early block; its hooks are gone afterwards."""
    extraction = benchmark("extraction")
    options = extraction.parser().parse_args(arguments)
    benchmark("models").save_pipeline(tmp_path, options)
    works = extraction.loop_works(tmp_path, options, block=0)
    expected, found = works["reference"](), works["ours"]()
    assert sorted(expected) == sorted(found) == ["16/0", "16/1", "8/0", "8/1"]
    assert expected["16/0"].shape == (32, 4, 4)
    for name, feature in expected.items():
        torch.testing.assert_close(found[name], feature, atol=1e-4, rtol=0)
    assert not torch.allclose(expected["16/0"], expected["16/1"], atol=0.1)


def test_impossible_sizes_are_refused(benchmark, arguments, tmp_path):
    extraction = benchmark("extraction")
    with pytest.raises(InputError, match="`--sides` is 18: use a multiple of 4"):
        extraction.main([*arguments, "--sides", "18"])
    with pytest.raises(InputError, match="`--width` is 33: use a multiple of the head, 16"):
        extraction.main([*arguments, "--width", "33"])
    with pytest.raises(InputError, match=r"`--folder` is .*: is no folder"):
        extraction.main([*arguments, "--folder", str(tmp_path / "none")])
