import json

import pytest
from PIL import Image

from ditf_probe.errors import InputError

TINY = ["--grid-sides", "2", "4", "--keypoints", "1", "8", "--pairs", "1", "3", "--sides", "8", "16", "--repeats", "1"]
TINY += ["--channels", "4", "--grid-side", "3", "--base-keypoints", "2", "--image", "12", "16", "--images", "1"]


def test_curves_and_chart(benchmark, parts_here, tiny_model, tmp_path, monkeypatch, capsys):
    curves, numbers, chart = benchmark("scaling_curves"), tmp_path / "numbers.json", tmp_path / "curves.png"
    parts_here(curves)
    times = {"seconds": [2.0], "min": 2.0, "median": 2.0, "max": 2.0}
    half = {name: [1.0] if name == "seconds" else 1.0 for name in times}
    found = {"loop": {"1": times, "2": half}}
    monkeypatch.setattr(benchmark("ranks"), "measure_extraction", lambda folder, options: found)
    curves.main([*TINY, *tiny_model, "--json", str(numbers), "--chart", str(chart)])
    results = json.loads(numbers.read_text())["results"]
    assert list(results) == list(curves.CURVES)
    assert results["tokens"]["values"] == [4, 16]
    assert results["extraction_tokens"]["values"] == [4, 16]
    assert results["blocks"]["values"] == [0, 1, 2, 3]
    assert [point["median"] for point in results["ranks"]["lines"]["ours"]] == [2.0, 1.0]
    for curve in results.values():
        for points in curve["lines"].values():
            assert len(points) == len(curve["values"])
            assert all(0 < point["min"] <= point["median"] <= point["max"] for point in points)
    with Image.open(chart) as picture:
        assert len(picture.convert("RGB").resize((200, 100)).getcolors(maxcolors=20_000)) > 50
    assert "exact, keypoints 8" in capsys.readouterr().out
    chart.unlink()
    curves.main(["--redraw", str(numbers), "--chart", str(chart)])
    assert chart.is_file()


def test_bad_files_are_refused(benchmark, tmp_path):
    curves, other = benchmark("scaling_curves"), tmp_path / "other.json"
    other.write_text(json.dumps({"results": {"reference": {}}}))
    for file, reason in ((tmp_path / "none.json", "is no file of"), (other, "is a file of another benchmark")):
        with pytest.raises(InputError, match=f"`--redraw` is .*: {reason}"):
            curves.main(["--redraw", str(file), "--chart", str(tmp_path / "x.png")])
    with pytest.raises(InputError, match="`--chart` is None: name the PNG"):
        curves.main(["--redraw", str(other)])
