import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import ditf_probe
from ditf_probe.comparison import report, report_from_predictions, summarise
from ditf_probe.comparison.csv_files import breakdowns_to_csv, to_csv
from ditf_probe.comparison.predictions_files import read_predictions, write_predictions
from ditf_probe.comparison.summary import distinct_pairs
from ditf_probe.comparison.tables import tables
from ditf_probe.errors import InputError
from ditf_probe.metrics.predictions import COLUMNS, Predictions
from ditf_probe.tasks.records import DatasetResult, Kind, PairFacts, RowResult, RunResult

SCHEMA = json.loads((Path(ditf_probe.__file__).parent / "comparison.schema.json").read_text())
SCORING = {"alphas": [0.05, 0.10], "strict": False}
# Pair, keypoint and true place; base 100, so that 0.10 allows 10 pixels.
POINTS = [(0, 0), (0, 1), (0, 3), (2, 0), (3, 0), (3, 1)]
PAIRS = {
    0: PairFacts("u0", "cat", "a", "b", ("eye", "ear", "nose", "tail")),
    2: PairFacts("u1", "cat", "c", "d", ("eye",)),
    3: PairFacts("u2", "dog", "e", "f", ("eye", "ear")),
}


def predictions(errors: list[float], points: list[tuple[int, int]] = POINTS) -> Predictions:
    pair, keypoint = np.array(points, dtype=np.int64).T
    truth = np.linspace(3, 80, len(points), dtype=np.float32)
    base = np.full(len(points), 100, dtype=np.float32)
    off = np.array(errors, dtype=np.float32)
    yes, far = np.ones(len(points), dtype=bool), np.full(len(points), np.nan, dtype=np.float32)
    return Predictions(pair, keypoint, truth + off, truth, truth, truth, off / 50, base, yes, yes, keypoint, far)


def row(name: str, errors: list[float], kind: Kind = "zero-shot", **facts: Any) -> RowResult:
    return RowResult(name, kind, predictions(errors), **facts)


def run(**changes: Any) -> RunResult:
    rows = [
        row("raw", [50, 50, 50, 50, 50, 0]),
        row("adaln", [0, 7, 50, 50, 10, 50], notes=("0 channels",)),
        row("linear", [0, 0, 0, 7, 0, 50], "probe", parameters=42),
        row("same_position", [0, 50, 50, 50, 50, 0], "control"),
    ]
    dataset = DatasetResult("synthetic", "instance pair", "per_point", "bbox", PAIRS, rows)
    return RunResult([replace(dataset, **changes)], {"scoring": SCORING, "device": "cpu"})


def rows_of(result: RunResult) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in summarise(result)["datasets"]["synthetic"]["rows"]}


def test_scores_by_hand() -> None:
    adaln = rows_of(run())["adaln"]["pck"]
    # Correct at 0.05: pair 0 1 of 3; at 0.10: pair 0 2 of 3 and pair 3 1 of 2 (10 pixels count).
    assert adaln["per_point"] == pytest.approx({"0.05": 100 / 6, "0.10": 50.0}, abs=1e-4)
    assert adaln["per_image"] == pytest.approx({"0.05": 100 / 9, "0.10": 100 * (2 / 3 + 0 + 1 / 2) / 3}, abs=1e-4)
    assert adaln["category_macro"]["0.10"] == pytest.approx(100 * (2 / 4 + 1 / 2) / 2, abs=1e-4)
    assert adaln["category_macro_per_image"]["0.10"] == pytest.approx(100 * ((2 / 3 + 0) / 2 + 1 / 2) / 2, abs=1e-4)


def test_block_facts() -> None:
    block = summarise(run())["datasets"]["synthetic"]
    assert {key: block[key] for key in ("unit", "n", "pairs", "keypoints", "statistic", "threshold")} == {
        "unit": "instance pair",
        "n": 3,
        "pairs": 3,
        "keypoints": 6,
        "statistic": "per_point",
        "threshold": "bbox",
    }
    assert "subsets" not in block


def slow_bootstrap(errors: list[float], other: list[float]) -> tuple[float, float]:
    """Resamples units one by one, as lists of pairs, with another generator."""
    units = {0: [0, 1, 2], 2: [3], 3: [4, 5]}
    generator = np.random.default_rng(99)
    differences = []
    for _ in range(4000):
        drawn = [k for unit in generator.choice([0, 2, 3], size=3) for k in units[int(unit)]]
        differences.append(100 * np.mean([(errors[k] <= 10) - (other[k] <= 10) for k in drawn]))
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def test_differences_are_paired_over_units() -> None:
    rows = rows_of(run())
    linear, adaln = [0.0, 0, 0, 7, 0, 50], [0.0, 7, 50, 50, 10, 50]
    delta = rows["linear"]["delta"]
    assert delta["reference"] == "adaln"
    assert delta["value"] == pytest.approx(100 * (5 - 3) / 6, abs=1e-4)
    assert delta["ci95"] == pytest.approx(slow_bootstrap(linear, adaln), abs=3)
    assert rows["adaln"]["delta"]["value"] == 0
    assert rows["linear"]["delta_best_zero_shot"]["reference"] == "adaln"
    assert rows["adaln"]["delta_best_zero_shot"] is None
    control = rows["linear"]["delta_best_control"]
    assert (control["reference"], control["value"]) == ("same_position", pytest.approx(100 * (5 - 2) / 6, abs=1e-4))
    assert control["ci95"] == pytest.approx(slow_bootstrap(linear, [0.0, 50, 50, 50, 50, 0]), abs=3)
    assert rows["adaln"]["delta_best_control"] is None
    assert rows["linear"]["parameters"] == 42


def test_rows_that_do_not_beat_same_position_are_told() -> None:
    rows = rows_of(run())
    assert rows["raw"]["notes"] == ["does not beat same position"]
    assert rows["adaln"]["notes"] == ["0 channels", "not clearly above same position"]
    assert rows["same_position"]["notes"] == []
    assert rows["same_position"]["delta_same_position"] is None


def test_statistic_of_intervals_and_differences_is_that_of_the_data_set() -> None:
    row = rows_of(run(statistic="per_image"))["linear"]
    assert row["delta"]["value"] == pytest.approx(row["pck"]["per_image"]["0.10"] - 100 * (2 / 3 + 1 / 2) / 3, abs=1e-3)


def test_one_unit_has_no_interval_and_the_table_says_so() -> None:
    pairs = {index: replace(facts, unit="the scene") for index, facts in PAIRS.items()}
    result = run(pairs=pairs, unit="scene")
    assert all(row["ci95"] is None and row["delta"]["ci95"] is None for row in rows_of(result).values())
    first, *_ = tables(summarise(result))
    assert "one scene: no interval" in str(first.caption)


def test_without_adaln_there_is_no_difference() -> None:
    rows = [row for row in run().datasets[0].rows if row.name in ("raw", "linear")]
    assert all(row["delta"] is None for row in rows_of(run(rows=rows)).values())


def test_repeated_photos_are_reported_apart() -> None:
    pairs = PAIRS | {
        2: replace(PAIRS[2], source_id="a", target_id="b"),
        3: replace(PAIRS[3], source_id="b", target_id="a"),
    }
    assert distinct_pairs(pairs) == [0, 3]
    block = summarise(run(pairs=pairs))["datasets"]["synthetic"]
    distinct = block["subsets"]["distinct"]
    assert (block["pairs"], distinct["pairs"], distinct["n"], distinct["keypoints"]) == (3, 2, 2, 5)
    assert next(r for r in distinct["rows"] if r["name"] == "adaln")["pck"]["per_point"]["0.10"] == pytest.approx(60.0)
    jsonschema.validate(summarise(run(pairs=pairs)), SCHEMA)


def test_json_follows_the_published_schema() -> None:
    document = json.loads(json.dumps(summarise(run()), allow_nan=False))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA)
    document["datasets"]["synthetic"]["rows"][0]["ci95"] = [1.0]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def test_rows_over_other_keypoints_are_refused() -> None:
    stranger = RowResult("layer_norm", "zero-shot", predictions([0.0] * 5, POINTS[:5]))
    with pytest.raises(InputError, match="layer_norm"):
        summarise(run(rows=[*run().datasets[0].rows, stranger]))


def test_no_keypoint_at_all_is_named() -> None:
    empty = Predictions(*(getattr(predictions([0.0] * 6), name)[:0] for name in COLUMNS))
    with pytest.raises(InputError, match=r"test\.synthetic"):
        summarise(run(rows=[RowResult("adaln", "zero-shot", empty)], pairs={}))


def test_alphas_must_hold_the_one_of_the_intervals() -> None:
    with pytest.raises(InputError, match="alphas"):
        summarise(replace(run(), settings={"scoring": {"alphas": [0.05], "strict": False}}))


def test_predictions_survive_the_file_bit_by_bit(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    count = 500
    x, y, true_x, true_y, similarity, base, ceiling = generator.normal(0, 300, (7, count)).astype(np.float32)
    present, accepted = generator.random((2, count)) < 0.7
    similarity[::7] = ceiling[::5] = true_x[~present] = true_y[~present] = base[~present] = np.nan
    nearest = np.where(present, generator.integers(0, 9, count), -1)
    pair, keypoint = np.arange(count) // 4, np.arange(count) % 4
    numbers = (x, y, true_x, true_y, similarity, base)
    wild = Predictions(pair, keypoint, *numbers, present, accepted, nearest, ceiling)
    marks = [{}, {"viewpoint": "2"}, {"über, all": 'x "y"', "viewpoint": "0"}]
    names = ("p", "q", "r", "s")
    pairs = {
        i: PairFacts(f"u,{i}", 'a "b"\nc', f"x/{i}", f"ü/{i}", names, (1, 3)[: i % 3], marks[i % 3]) for i in range(125)
    }
    dataset = DatasetResult("d", "unit", "per_point", "image", pairs, [RowResult("a/b+c", "probe", wild, 7, ("n",))])
    write_predictions(tmp_path, RunResult([dataset], {"x": [1, None]}))
    again = read_predictions(tmp_path)
    assert again.settings == {"x": [1, None]}
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(again.datasets[0].rows[0].predictions, name), getattr(wild, name))
    assert again.datasets[0].pairs == pairs
    assert replace(again.datasets[0], rows=[]) == replace(dataset, rows=[])


def test_recomputed_comparison_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = report(run(), tmp_path)
    names = ("comparison.json", "comparison.csv", "breakdowns.csv")
    files = {name: (tmp_path / name).read_text() for name in names}
    printed = capsys.readouterr().out
    for name in files:
        (tmp_path / name).unlink()
    assert report_from_predictions(tmp_path) == first
    assert {name: (tmp_path / name).read_text() for name in files} == files
    assert capsys.readouterr().out == printed
    assert json.loads(files["comparison.json"]) == first
    for word in ("synthetic: 3 pairs, 6 keypoints", "linear", "0 channels", "comparison.json", "tensorboard --logdir"):
        assert word in printed


def test_csv_has_a_line_per_row_and_average() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(summarise(run())))))
    assert len(lines) == 4 * (4 + 4 + 1 + 1)  # PCK, PCK-dagger, KAP, PCK of what is accepted
    of = {(line["row"], line["metric"], line["average"]): line for line in lines}
    assert float(of["linear", "pck", "per_point"]["@0.10"]) == pytest.approx(100 * 5 / 6, abs=1e-4)
    assert float(of["linear", "pck", "per_point"]["delta"]) == pytest.approx(100 / 3, abs=1e-4)
    assert of["linear", "pck", "per_image"]["ci95_low"] == of["linear", "pck_dagger", "per_point"]["ci95_low"] == ""
    assert of["adaln", "kap", "per_point"]["notes"] == "0 channels; not clearly above same position"
    assert of["linear", "kap", "per_point"]["parameters"] == "42"


def test_breakdowns_have_a_file_of_their_own() -> None:
    lines = list(csv.DictReader(io.StringIO(breakdowns_to_csv(summarise(run())))))
    assert len(lines) == 2 * 4 * 2  # categories, rows, averages
    of = {(line["level"], line["row"], line["average"]): line for line in lines}
    cats = of["cat", "adaln", "per_image"]
    assert (cats["attribute"], cats["pairs"], cats["keypoints"]) == ("category", "2", "4")
    assert float(cats["@0.10"]) == pytest.approx(100 * (2 / 3 + 0) / 2, abs=1e-4)


def test_damaged_predictions_end_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing, name the run_dir"):
        read_predictions(tmp_path)
    write_predictions(tmp_path, run())
    path = tmp_path / "predictions" / "synthetic" / "adaln.csv"
    good = path.read_text()
    path.write_text(good.replace(",present,", ",there,"))
    with pytest.raises(InputError, match=r"adaln\.csv': lacks the columns present; run the test again"):
        read_predictions(tmp_path)
    for column, cell, message in (
        ("x", "nan", "x must be a finite number"),
        ("true_y", "", "true_y must be a finite number"),
        ("present", "2", "is not a line of predictions"),
    ):
        lines = list(csv.DictReader(io.StringIO(good)))
        lines[1][column] = cell
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)
        with pytest.raises(InputError, match=rf"adaln\.csv:3.*{message}"):
            read_predictions(tmp_path)
    path.write_text(good)
    attributes = tmp_path / "predictions" / "synthetic.attributes.csv"
    for text, message in (("pair,viewpoint\n", "must begin with the column pair_index"),
                          ("pair_index,viewpoint\n0,1\n0\n", r"csv:3.*is not a line of attributes")):  # fmt: skip
        attributes.write_text(text)
        with pytest.raises(InputError, match=message):
            read_predictions(tmp_path)
    attributes.write_text("pair_index\n")
    read_predictions(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"adaln\.csv.*is missing"):
        read_predictions(tmp_path)
    (tmp_path / "predictions" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_predictions(tmp_path)


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="run_dir"):
        report(run(), tmp_path / "file" / "run")
