"""What is read from runs: rows over seeds, curves, sides, weights; and one small run of real heads."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.commands import main
from ditf_probe.comparison import report
from ditf_probe.errors import InputError
from ditf_probe.experiments.adapting import adapted_entries, adapters_csv, adapters_table
from ditf_probe.experiments.entries import entries
from ditf_probe.experiments.generalising import generalisation_csv, generalisation_table, side_by_side
from ditf_probe.experiments.layers import layers_csv, layers_table, weights_of, write_layers
from ditf_probe.experiments.learning import learning_curves, write_curves
from ditf_probe.metrics.predictions import Predictions
from ditf_probe.probes import LayerAggregation, LinearProbe, describe_probe, save_probe
from ditf_probe.tasks.records import DatasetResult, PairFacts, RowResult, RunResult


def row(name: str, score: float, kind: str = "probe", **more: Any) -> dict[str, Any]:
    gain = {"reference": "adaln", "value": score - 20.0, "ci95": [score - 21.0, score - 19.0]}
    return {
        "name": name,
        "kind": kind,
        "pck": {"per_point": {"0.05": 1.0, "0.10": score}, "per_image": {"0.05": 2.0, "0.10": score + 1}},
        "ci95": [score - 2, score + 2],
        "delta_best_zero_shot": gain if kind == "probe" else None,
        "delta_best_control": {"reference": "same_position", "value": score - 3.0, "ci95": None}
        if kind == "probe"
        else None,
        "parameters": 5 if kind == "probe" else 0,
        **more,
    }


def dataset(score: float) -> dict[str, Any]:
    copies = [row(f"linear/seed{seed}", score + seed - 0.5) for seed in (0, 1)]
    mean = row("linear", score, copies=[x["name"] for x in copies])
    mean["pck_std"] = {"per_point": {"0.05": 0.0, "0.10": 0.7}}
    rows = [row("adaln", 20.0, "zero-shot"), *copies, row("gate", 21.0), row("same_position", 3.0, "control")]
    return {"statistic": "per_point", "rows": rows, "seeds": [mean]}


def comparison(folder: Path, *scores: float, names: tuple[str, ...] = ("synthetic",), **facts: Any) -> dict[str, Any]:
    probes = {"linear/seed0": {"training": {"train": facts}}}
    found = {
        "datasets": {name: dataset(score) for name, score in zip(names, scores, strict=True)},
        "settings": {"scoring": {"alpha": 0.1}, "probes": probes},
    }
    folder.mkdir(parents=True)
    (folder / "comparison.json").write_text(json.dumps(found))
    return found


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_mean_over_seeds_stands_in_place_of_the_copies(tmp_path: Path) -> None:
    found = entries(comparison(tmp_path / "run", 24.0), "synthetic")
    assert [(x.row, x.kind, x.seeds) for x in found] == [
        ("adaln", "zero-shot", 1),
        ("linear", "probe", 2),
        ("gate", "probe", 1),
        ("same_position", "control", 1),
    ]
    linear = found[1]
    assert (linear.score, linear.deviation, linear.best, linear.gain) == (24.0, 0.7, "adaln", 4.0)
    assert (linear.control, linear.control_gain) == ("same_position", 21.0)
    assert linear.cells() == [24.0, 0.7, 22.0, 26.0, 4.0, 3.0, 5.0, 21.0, "", ""]
    assert found[0].cells() == [20.0, "", 18.0, 22.0, *[""] * 6]
    assert [x.words for x in found[:2]] == ["20.0", "24.0 ± 0.7"]


def test_learning_curves_in_order_of_their_pairs(tmp_path: Path) -> None:
    for fraction, pairs, score in ((1.0, 800, 30.0), (0.05, 40, 22.0), (0.25, 200, 26.0)):
        comparison(tmp_path / "runs" / f"fraction={fraction}", score, fraction=fraction, pairs=pairs)
    table, picture = write_curves(tmp_path)
    linear = [line for line in lines(table.read_text()) if line["row"] == "linear"]
    assert [(line["pairs"], line["score"]) for line in linear] == [("40", "22.0"), ("200", "26.0"), ("800", "30.0")]
    assert [line["gain_low"] for line in linear] == ["1.0", "5.0", "9.0"]
    assert Image.open(picture).size == (600, 310)  # two heads, a panel each
    with pytest.raises(InputError, match="experiment curves"):
        learning_curves(tmp_path / "nothing")


def test_a_run_without_its_test_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs" / "fraction=1").mkdir(parents=True)
    with pytest.raises(InputError, match=r"fraction=1.*no comparison"):
        learning_curves(tmp_path)


# Whether a row has found each of eight keypoints, a unit each.
PLAIN_0, PLAIN_1 = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 1]
DISTILLED_0, DISTILLED_1 = [1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0, 0]


def row_of(name: str, right: list[int], kind: Any = "probe") -> RowResult:
    pair, zeros, yes = np.arange(8), np.zeros(8, dtype=np.int64), np.ones(8, dtype=bool)
    truth, base = np.full(8, 50, dtype=np.float32), np.full(8, 100, dtype=np.float32)
    off = np.where(np.array(right) == 1, 0, 50).astype(np.float32)
    far = np.full(8, np.nan, dtype=np.float32)
    return RowResult(
        name, kind, Predictions(pair, zeros, truth + off, truth, truth, truth, off, base, yes, yes, zeros, far)
    )


def write_test(folder: Path) -> None:
    """A test whose unseen side both objectives get right alike, and whose seen side they do not."""
    facts = {index: PairFacts(f"u{index}", "cat", f"a{index}", f"b{index}") for index in range(8)}
    datasets = []
    for name in ("seen", "unseen"):
        rows = [
            row_of("adaln", [1, 0, 0, 0, 0, 0, 0, 0], "zero-shot"),
            row_of("plain/linear/seed0", PLAIN_0 if name == "seen" else DISTILLED_0),
            row_of("plain/linear/seed1", PLAIN_1 if name == "seen" else DISTILLED_1),
            row_of("distilled/linear/seed0", DISTILLED_0),
            row_of("distilled/linear/seed1", DISTILLED_1),
        ]
        datasets.append(DatasetResult(name, "pair", "per_point", "bbox", facts, rows))
    report(RunResult(datasets, {"scoring": {"alphas": [0.05, 0.10]}}), folder)


def test_seen_beside_unseen(tmp_path: Path) -> None:
    write_test(tmp_path / "run")
    rows = side_by_side(tmp_path / "run")
    by_row = {line["row"]: line for line in lines(generalisation_csv({"categories": rows}))}
    assert list(by_row) == ["adaln", "plain/linear", "distilled/linear"]
    line = by_row["distilled/linear"]
    assert (line["generalisation"], line["seen_score"], line["unseen_score"]) == ("categories", "62.5", "62.5")
    assert (line["seen_gain"], line["unseen_gain"]) == ("50.0", "50.0")
    assert (line["seen_to_plain"], line["unseen_to_plain"], line["unseen_to_plain_high"]) == ("25.0", "0.0", "0.0")
    assert by_row["plain/linear"]["seen_to_plain"] == by_row["adaln"]["unseen_to_plain"] == ""
    shown = generalisation_table("categories", rows)
    assert shown.row_count == 3
    assert list(shown.columns[1].cells)[2] == "62.5 ± 0.0"
    assert list(shown.columns[6].cells)[2] == "+0.0 (+0.0 to +0.0)"


def test_distilled_and_plain_are_resampled_together(tmp_path: Path) -> None:
    """Against a bootstrap of the differences unit by unit, with another generator."""
    write_test(tmp_path / "run")
    difference = np.mean([DISTILLED_0, DISTILLED_1], axis=0) - np.mean([PLAIN_0, PLAIN_1], axis=0)
    generator = np.random.default_rng(3)
    drawn = [100 * difference[generator.integers(0, 8, 8)].mean() for _ in range(4000)]
    to_plain = side_by_side(tmp_path / "run")["distilled/linear"][0].to_plain
    assert to_plain is not None
    assert to_plain["value"] == 100 * difference.mean() == 25.0
    step = 100 / 16 + 0.2  # means lie so far apart, and either bootstrap may end on the next one
    assert to_plain["ci95"] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist(), abs=step)


def test_adapted_beside_frozen(tmp_path: Path) -> None:
    inside = "LoRA rank 4 in block 3"
    rows = [row_of("adaln", [1, 0, 0, 0, 0, 0, 0, 0], "zero-shot")]
    for seed, right in enumerate((PLAIN_0, PLAIN_1)):
        rows.append(row_of(f"frozen/linear/seed{seed}", right))
    for seed, right in enumerate((DISTILLED_0, DISTILLED_1)):
        rows.append(replace(row_of(f"adapted/linear/seed{seed}", right), backbone=inside))
    facts = {index: PairFacts(f"u{index}", "cat", f"a{index}", f"b{index}") for index in range(8)}
    datasets = [DatasetResult("synthetic", "pair", "per_point", "bbox", facts, rows)]
    report(RunResult(datasets, {"scoring": {"alphas": [0.05, 0.10]}}), tmp_path)
    found = adapted_entries(tmp_path)
    frozen, adapted = lines(adapters_csv(found))[1:]
    keys = ("row", "backbone", "score", "gain", "to_frozen")
    assert [frozen[key] for key in keys] == ["frozen/linear", "frozen", "37.5", "25.0", ""]
    assert [adapted[key] for key in keys] == ["adapted/linear", inside, "62.5", "50.0", "25.0"]
    assert float(adapted["to_frozen_low"]) <= 25 <= float(adapted["to_frozen_high"])
    shown = adapters_table(found)
    assert [list(column.cells)[2] for column in shown.columns][:4] == ["adapted/linear", inside, "0", "62.5 ± 0.0"]


def test_weights_of_aggregations(tmp_path: Path) -> None:
    head = LayerAggregation(4, [1, 3], width=2, num_timesteps=2)
    with torch.no_grad():
        head.mixture.copy_(torch.tensor([[0.1, 0.2], [0.3, 0.4]]).log().flatten())  # timesteps down, blocks across
        head.mixture.div_(head.rate)
        head.projections["3"].weight.fill_(0.5)
    other = LinearProbe(4, [1], width=2)
    for name, probe in (("mixed/seed2", head), ("linear", other)):
        features = {"blocks": [1, 3], "timestep": [50, 200]}
        facts = describe_probe(probe, features=features, backbone={}, training={"seed": 2})
        save_probe(tmp_path / name, probe.state_dict(), facts)
    found = weights_of({"mixed": tmp_path / "mixed", "linear": tmp_path / "linear"})
    assert [(x.head, x.seed, x.axis, x.value) for x in found] == [
        ("mixed", 2, "block", 1),
        ("mixed", 2, "block", 3),
        ("mixed", 2, "timestep", 50),
        ("mixed", 2, "timestep", 200),
    ]
    np.testing.assert_allclose([x.weight for x in found], [0.4, 0.6, 0.3, 0.7], rtol=1e-6)
    first, second = found[0].norm, found[1].norm
    assert first is not None
    assert second == pytest.approx(2**0.5)  # eight weights of a half
    assert found[1].share == pytest.approx(0.6 * 2**0.5 / (0.4 * first + 0.6 * 2**0.5))
    assert found[2].share is None
    assert layers_table(found).row_count == 4
    assert [line["weight"] for line in lines(layers_csv(found))] == ["0.4", "0.6", "0.3", "0.7"]


def test_copies_are_listed_by_seed(tmp_path: Path) -> None:
    for seed in (10, 2):
        head = LayerAggregation(4, [1], width=2)
        features = {"blocks": [1], "timestep": 100}
        facts = describe_probe(head, features=features, backbone={}, training={"seed": seed})
        save_probe(tmp_path / "mixed" / f"seed{seed}", head.state_dict(), facts)
    found = weights_of({"mixed": tmp_path / "mixed"})
    assert [line["seed"] for line in lines(layers_csv(found))] == ["2", "10"]


def test_heads_and_then_their_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--smoke", "--run-dir", str(tmp_path / "runs"), "--store", str(tmp_path / "store")]
    main(["experiment", "heads", *words])
    folder = tmp_path / "runs" / "smoke"
    announced = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    assert [line.split()[:4] for line in announced] == [
        ["$", "python", *step.split()] for step in ("train.py fit", "train.py fit", "eval.py test")
    ]
    found = json.loads((folder / "heads" / "comparison.json").read_text())["datasets"]["synthetic"]
    heads = [mean["name"] for mean in found["seeds"]]
    assert heads == [
        *("gate", "gate_l1", "low_rank", "bottleneck", "linear", "linear_blocks", "aggregation"),
        *("aggregation_bottleneck", "convolution", "attention", "softmax", "aggregation_timesteps"),
    ]
    assert [x["name"] for x in found["rows"] if x["kind"] == "zero-shot"] == ["raw", "adaln", "three_timesteps"]
    main(["experiment", "layers", *words])
    sums: dict[tuple[str, str, str], float] = {}
    for line in lines((folder / "layers" / "layers.csv").read_text()):
        place = line["head"], line["seed"], line["axis"]
        sums[place] = sums.get(place, 0.0) + float(line["weight"])
    assert len(sums) == 2 * 4
    np.testing.assert_allclose(list(sums.values()), 1, atol=1e-5)
    assert (folder / "layers" / "layers.png").is_file()
    assert not list(tmp_path.glob("runs/heads*"))


def test_layers_are_drawn_in_panels(tmp_path: Path) -> None:
    head = LayerAggregation(4, [1, 3], width=2)
    facts = describe_probe(head, features={"blocks": [1, 3], "timestep": 100}, backbone={}, training={"seed": None})
    save_probe(tmp_path / "mixed", head.state_dict(), facts)
    _, picture = write_layers(tmp_path, weights_of({"mixed": tmp_path / "mixed"}))
    assert Image.open(picture).size == (300, 270)
