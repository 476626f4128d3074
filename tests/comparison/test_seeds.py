"""Copies of a probe from several seeds as one row: mean, deviation, and intervals of the mean."""

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import ditf_probe
from ditf_probe.comparison import report, report_from_predictions, summarise
from ditf_probe.comparison.csv_files import to_csv
from ditf_probe.comparison.summary import differences, scoring_of
from ditf_probe.comparison.tables import tables
from ditf_probe.errors import InputError
from ditf_probe.metrics.predictions import Predictions
from ditf_probe.tasks.records import DatasetResult, Kind, PairFacts, RowResult, RunResult

SCHEMA = json.loads((Path(ditf_probe.__file__).parent / "comparison.schema.json").read_text())
PAIRS = {index: PairFacts(f"u{index}", "cat", f"a{index}", f"b{index}") for index in range(8)}
ALPHAS = [0.05, 0.10]


def row(name: str, errors: list[float], kind: Kind = "probe", **facts: Any) -> RowResult:
    """One keypoint per pair, off by so many of 100 pixels."""
    pair, zeros = np.arange(len(errors)), np.zeros(len(errors), dtype=np.int64)
    truth = np.full(len(errors), 50, dtype=np.float32)
    base, off = np.full(len(errors), 100, dtype=np.float32), np.array(errors, dtype=np.float32)
    yes, far = np.ones(len(errors), dtype=bool), np.full(len(errors), np.nan, dtype=np.float32)
    found = Predictions(pair, zeros, truth + off, truth, truth, truth, off / 50, base, yes, yes, zeros, far)
    return RowResult(name, kind, found, **facts)


ERRORS: dict[str, list[float]] = {
    "linear/seed0": [0, 7, 7, 50, 50, 50, 0, 50],
    "linear/seed1": [0, 0, 7, 7, 50, 50, 0, 50],
    "linear/seed7": [0, 0, 0, 7, 7, 50, 0, 50],
}


def run(*more: RowResult) -> RunResult:
    rows = [
        row("adaln", [0, 50, 50, 50, 50, 50, 7, 0], "zero-shot"),
        *(row(name, errors, parameters=42) for name, errors in ERRORS.items()),
        *more,
        row("same_position", [50, 50, 50, 50, 50, 50, 50, 0], "control"),
    ]
    dataset = DatasetResult("synthetic", "instance pair", "per_point", "bbox", PAIRS, rows)
    return RunResult([dataset], {"scoring": {"alphas": ALPHAS, "strict": False}})


def entry_of(result: RunResult) -> dict[str, Any]:
    (entry,) = summarise(result)["datasets"]["synthetic"]["seeds"]
    found: dict[str, Any] = entry
    return found


def test_mean_and_deviation_by_hand() -> None:
    entry = entry_of(run())
    assert (entry["name"], entry["copies"], entry["parameters"]) == ("linear", list(ERRORS), 42)
    scores = [100 * sum(error <= 10 for error in errors) / 8 for errors in ERRORS.values()]
    assert scores == [50.0, 62.5, 75.0]
    for average in ("per_point", "per_image", "category_macro"):
        assert entry["pck"][average]["0.10"] == pytest.approx(62.5)
        assert entry["pck_std"][average]["0.10"] == pytest.approx(statistics.stdev(scores), abs=1e-4)
    assert entry["pck"]["per_point"]["0.05"] == pytest.approx(100 * (2 + 3 + 4) / 24, abs=1e-4)


def test_intervals_are_those_of_the_mean_over_the_same_resamples() -> None:
    """Against a bootstrap of its own, unit by unit, with another generator."""
    generator = np.random.default_rng(5)
    right = np.array([[error <= 10 for error in errors] for errors in ERRORS.values()], dtype=float)
    other = np.array([error <= 10 for error in (0, 50, 50, 50, 50, 50, 7, 0)], dtype=float)
    means, differences = [], []
    for _ in range(4000):
        drawn = generator.integers(0, 8, 8)
        means.append(100 * right[:, drawn].mean())
        differences.append(means[-1] - 100 * other[drawn].mean())
    entry = entry_of(run())
    step = 100 / 24 + 0.2  # scores lie so far apart, and either bootstrap may end on the next one
    assert entry["ci95"] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist(), abs=step)
    assert entry["delta"]["value"] == pytest.approx(62.5 - 37.5)
    assert entry["delta"]["ci95"] == pytest.approx(np.percentile(differences, [2.5, 97.5]).tolist(), abs=step)
    assert entry["delta_best_zero_shot"]["reference"] == "adaln"
    assert entry["delta_same_position"]["value"] == pytest.approx(62.5 - 12.5)
    assert entry["delta_best_control"]["reference"] == "same_position"


def test_differences_of_any_two_rows() -> None:
    """Means over copies against a row, and the other way round: the same resamples with another sign."""
    result = run()
    dataset, scoring = result.datasets[0], scoring_of(result)
    found, turned, own = differences(
        dataset, scoring, [("linear", "adaln"), ("adaln", "linear"), ("linear/seed7", "linear/seed7")]
    )
    assert found == entry_of(result)["delta"]
    assert turned == {"reference": "linear", "value": -found["value"], "ci95": [-end for end in found["ci95"][::-1]]}
    assert own == {"reference": "linear/seed7", "value": 0.0, "ci95": [0.0, 0.0]}
    with pytest.raises(InputError, match=r"other.*is no row"):
        differences(dataset, scoring, [("linear", "other")])


def test_one_copy_and_other_rows_are_no_group() -> None:
    result = run(row("mix/seed0", [0] * 8), row("other/seeds", [0] * 8))
    assert [entry["name"] for entry in summarise(result)["datasets"]["synthetic"]["seeds"]] == ["linear"]
    alone = run()
    del alone.datasets[0].rows[2:4]
    assert "seeds" not in summarise(alone)["datasets"]["synthetic"]


def test_the_table_has_one_row_for_all_copies() -> None:
    first, *_ = tables(summarise(run(row("mix", [0, 0, 0, 0, 0, 0, 50, 50]))))
    names = list(first.columns[0].cells)
    assert names == ["adaln", "linear (3 seeds)", "mix", "same_position"]
    at_ten = list(first.columns[2].cells)
    assert at_ten[1] == "62.5 ± 12.5"
    assert at_ten[2] == "[green]75.0[/]"
    assert "± standard deviation over seeds" in str(first.caption)
    (plain, *_) = tables(summarise(RunResult([_without_copies()], run().settings)))
    assert "seeds" not in str(plain.caption)


def _without_copies() -> DatasetResult:
    (dataset,) = run().datasets
    return DatasetResult(
        dataset.name,
        dataset.unit,
        dataset.statistic,
        dataset.threshold,
        dataset.pairs,
        [dataset.rows[0], dataset.rows[-1]],
    )


def test_csv_has_the_copies_and_their_mean() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(summarise(run())))))
    assert set(ERRORS) <= {line["row"] for line in lines}
    own = {(line["metric"], line["average"]): line for line in lines if line["row"] == "linear"}
    assert float(own["pck", "per_point"]["@0.10"]) == pytest.approx(62.5)
    assert float(own["pck_std", "per_point"]["@0.10"]) == pytest.approx(12.5)
    assert float(own["pck", "per_point"]["delta"]) == pytest.approx(25.0)
    assert own["pck", "per_image"]["ci95_low"] == ""
    assert own["pck", "per_point"]["parameters"] == "42"


def test_json_follows_the_published_schema_and_comes_back_from_predictions(tmp_path: Path) -> None:
    comparison = report(run(), tmp_path)
    jsonschema.validate(json.loads((tmp_path / "comparison.json").read_text()), SCHEMA)
    assert report_from_predictions(tmp_path) == comparison
    broken = json.loads(json.dumps(comparison))
    del broken["datasets"]["synthetic"]["seeds"][0]["pck_std"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)
