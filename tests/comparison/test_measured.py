"""Scores other than PCK: means, intervals, differences, files and the table."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ditf_probe.comparison import report_measured, summarise_measured
from ditf_probe.comparison.measured import measured_table
from ditf_probe.tasks.measured import MeasuredDataset, MeasuredRun, row_of_means


def run() -> MeasuredRun:
    rows = [
        row_of_means("adaln", "zero-shot", {"J&F": [50.0, 60.0, 70.0], "J": [40.0, 50.0, 60.0]}),
        row_of_means("linear", "probe", {"J&F": [55.0, 65.0, 75.0], "J": [40.0, 50.0, 63.0]}, parameters=1234),
    ]
    return MeasuredRun([MeasuredDataset("davis", "sequence", 3, "J&F", rows, {"frames": 75})], {"seed": 0})


def test_means_and_paired_differences() -> None:
    adaln, linear = summarise_measured(run())["datasets"]["davis"]["rows"]
    assert adaln["scores"]["J&F"]["value"] == 60.0
    assert linear["scores"]["J&F"]["delta"] == {"value": 5.0, "ci95": [5.0, 5.0]}
    assert linear["scores"]["J"]["delta"]["ci95"][0] == 0.0
    assert linear["scores"]["J"]["delta"]["value"] == 1.0


def test_interval_against_a_loop() -> None:
    scores = [3.0, 8.0, 1.0, 9.0]
    row = row_of_means("a", "zero-shot", {"m": scores}, resamples=50, seed=3)
    generator = np.random.default_rng(3)
    for found in row.resampled["m"]:
        times = generator.multinomial(4, [0.25] * 4)
        assert found == pytest.approx(sum(t * s for t, s in zip(times, scores, strict=True)) / 4)


def test_one_unit_has_no_interval() -> None:
    rows = [row_of_means("adaln", "zero-shot", {"J": [40.0]})]
    dataset = summarise_measured(MeasuredRun([MeasuredDataset("d", "sequence", 1, "J", rows)]))["datasets"]["d"]
    assert dataset["rows"][0]["scores"]["J"]["ci95"] is None
    assert "no interval" in str(measured_table("d", dataset).caption)


def test_files_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run()
    (dataset,) = found.datasets
    rows = [dataset.rows[0], replace(dataset.rows[1], backbone="LoRA rank 4 in block 3")]
    comparison = report_measured(replace(found, datasets=[replace(dataset, rows=rows)]), tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text()) == comparison
    lines = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text())))
    assert [(line["row"], line["metric"]) for line in lines] == [
        (row, metric) for row in ("adaln", "linear") for metric in ("J&F", "J")
    ]
    assert lines[2]["delta"] == "5.0"
    assert [line["backbone"] for line in lines[1:3]] == ["frozen", "LoRA rank 4 in block 3"]
    console = Console(width=150, record=True)
    console.print(measured_table("davis", comparison["datasets"]["davis"]))
    text = console.export_text()
    assert "75 frames" in text
    assert "backbones of all rows are frozen but for linear (LoRA rank 4 in block 3)" in " ".join(text.split())
    assert str(measured_table("davis", summarise_measured(run())["datasets"]["davis"]).caption).endswith("are frozen")
    assert "+5.0" in text
    assert "1,234" in text
    assert "davis" in capsys.readouterr().out


def test_what_could_not_be_measured_is_null() -> None:
    rows = [row_of_means("adaln", "zero-shot", {"J": [float("nan"), 1.0]})]
    dataset = summarise_measured(MeasuredRun([MeasuredDataset("d", "image", 2, "J", rows)]))["datasets"]["d"]
    assert dataset["rows"][0]["scores"]["J"] == {"value": None, "ci95": None, "delta": {"value": None, "ci95": None}}
