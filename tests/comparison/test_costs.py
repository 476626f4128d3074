"""Costs of learned rows in tables and files."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import ditf_probe
from ditf_probe.comparison import report, report_from_predictions, summarise
from ditf_probe.comparison.costs import cost_table, costs_to_csv, readable_flops
from ditf_probe.comparison.csv_files import to_csv
from ditf_probe.metrics.predictions import Predictions
from ditf_probe.tasks.records import DatasetResult, PairFacts, RowCost, RowResult, RunResult

SCHEMA = json.loads((Path(ditf_probe.__file__).parent / "comparison.schema.json").read_text())
COST = RowCost(12_345_678, (4, 6), 1.25, "cpu")


def run(cost: RowCost | None) -> RunResult:
    index, zeros = np.arange(2), np.zeros(2, dtype=np.float32)
    base, yes = np.full(2, 100, dtype=np.float32), np.ones(2, dtype=bool)
    far = np.full(2, np.nan, dtype=np.float32)
    found = Predictions(index, index * 0, zeros, zeros, zeros, zeros, zeros, base, yes, yes, index * 0, far)
    pairs = {i: PairFacts(f"u{i}", "cat", f"a{i}", f"b{i}") for i in range(2)}
    learned = RowResult("gate", "probe", found, 96, ("n",), cost)
    rows = [RowResult("adaln", "zero-shot", found), learned]
    return RunResult([DatasetResult("d", "pair", "per_point", "image", pairs, rows)], {})


def test_time_is_in_a_file_of_its_own_and_operations_are_where_the_scores_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {name: tmp_path / name for name in ("one", "other")}
    for name, milliseconds in (("one", 1.25), ("other", 2.5)):
        report(run(replace(COST, latency_ms=milliseconds)), folders[name])
    for file in ("comparison.json", "comparison.csv", "breakdowns.csv"):
        assert (folders["one"] / file).read_bytes() == (folders["other"] / file).read_bytes()
    lines = list(csv.DictReader(io.StringIO((folders["one"] / "costs.csv").read_text())))
    expected = {"dataset": "d", "row": "gate", "parameters": "96", "flops": "12345678", "grid_h": "4", "grid_w": "6"}
    assert lines == [expected | {"latency_ms": "1.25", "device": "cpu"}]
    document = json.loads((folders["one"] / "comparison.json").read_text())
    jsonschema.validate(document, SCHEMA)
    rows = {row["name"]: row for row in document["datasets"]["d"]["rows"]}
    assert "cost" not in rows["adaln"]
    assert rows["gate"]["cost"] == {"flops": 12_345_678, "grid": [4, 6]}
    capsys.readouterr()
    (folders["one"] / "costs.csv").unlink()
    assert report_from_predictions(folders["one"]) == document
    assert list(csv.DictReader(io.StringIO((folders["one"] / "costs.csv").read_text()))) == lines
    printed = capsys.readouterr().out
    for word in ("d: cost", "12.3 M", "4 x 6", "1.25", "median time on cpu", "backbones of all rows are frozen"):
        assert word in printed


def test_columns_appear_only_with_a_learned_row(tmp_path: Path) -> None:
    for cost, there in ((COST, True), (None, False)):
        lines = list(csv.DictReader(io.StringIO(to_csv(summarise(run(cost))))))
        assert ("flops" in lines[0]) == there
        assert (cost_table(run(cost).datasets[0]) is not None) == there
        assert bool(costs_to_csv(run(cost))) == there
        if there:
            assert {line["row"]: line["flops"] for line in lines} == {"adaln": "0", "gate": "12345678"}
        report(run(cost), tmp_path)
        assert (tmp_path / "costs.csv").exists() == there  # that of the first run is gone after the second


def test_numbers_of_operations_for_people() -> None:
    assert [readable_flops(n) for n in (0, 999, 1000, 12_345_678, 3 * 10**9, 2 * 10**12)] == [
        *("0", "999", "1 k", "12.3 M", "3 G", "2 T")
    ]
