"""What a comparison says beside PCK, against plain loops over the CSV files that it was written to; and its tables."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from rich.console import Console

import ditf_probe
from ditf_probe.comparison import report, report_from_predictions, summarise
from ditf_probe.comparison.csv_files import breakdowns_to_csv
from ditf_probe.comparison.tables import tables
from ditf_probe.metrics.predictions import Predictions
from ditf_probe.tasks.records import DatasetResult, Kind, PairFacts, RowResult, RunResult

SCHEMA = json.loads((Path(ditf_probe.__file__).parent / "comparison.schema.json").read_text())
ALPHAS = ("0.05", "0.10", "0.20")
AVERAGES = ("per_point", "per_image", "category_macro", "category_macro_per_image")
PAIRS = 200
Line = dict[str, str]


def facts(index: int) -> PairFacts:
    seen = (
        {} if index % 10 == 9 else {"pair in train": ("no", "yes")[index % 3 == 0], "images in train": str(index % 3)}
    )
    attributes = {"viewpoint": str(index % 3), "species": f"species {index % 8}", **seen}
    category = ("cat", "dog", "räder")[index % 7 % 3]
    return PairFacts(f"unit {index // 3}", category, f"{index}/a", f"{index}/b", (), (0, 2)[: index % 3], attributes)


def keypoints() -> tuple[np.ndarray[Any, Any], ...]:
    """Pair, keypoint, place and presence of what the sources show; every eleventh pair has nothing in common."""
    generator = np.random.default_rng(0)
    pair = np.repeat(np.arange(PAIRS), 1 + np.arange(PAIRS) % 5)
    keypoint = np.concatenate([np.arange(1 + index % 5) for index in range(PAIRS)])
    present = (generator.random(len(pair)) < 0.8) & (pair % 11 != 10)
    truth = np.where(present[:, None], generator.integers(0, 50, (len(pair), 2)), np.nan).astype(np.float32)
    return pair, keypoint, truth, present


def random_row(
    name: str, kind: Kind, seed: int, error: float, *, rejecting: bool, cells: bool, compares: bool
) -> RowResult:
    generator = np.random.default_rng(seed)
    pair, keypoint, truth, present = keypoints()
    count = len(pair)
    found = (np.nan_to_num(truth) + generator.normal(0, error, (count, 2))).astype(np.float32)
    similarity = (generator.integers(-10, 11, count) / 10 if compares else np.full(count, np.nan)).astype(np.float32)
    ceiling = np.where(present & cells, generator.random(count) * 6, np.nan).astype(np.float32)
    accepted = generator.random(count) < (0.7 if rejecting else 1.1)
    nearest = np.where(generator.random(count) < 0.8, keypoint, 7)
    base = np.full(count, 40, dtype=np.float32)
    columns = (*found.T, *truth.T, similarity, base, present, accepted, np.where(present, nearest, -1), ceiling)
    return RowResult(name, kind, Predictions(pair, keypoint, *columns), parameters=9 if kind == "probe" else 0)


@pytest.fixture(scope="module")
def result() -> RunResult:
    rows = [
        random_row("adaln", "zero-shot", 1, 4, rejecting=False, cells=True, compares=True),
        random_row("mutual", "zero-shot", 2, 4, rejecting=True, cells=True, compares=True),
        random_row("linear", "probe", 3, 3, rejecting=False, cells=True, compares=True),
        random_row("same_position", "control", 4, 9, rejecting=False, cells=False, compares=False),
    ]
    pairs = {index: facts(index) for index in range(PAIRS)}
    dataset = DatasetResult("pf-pascal", "image", "per_point", "image", pairs, rows)
    return RunResult([dataset], {"scoring": {"alphas": [float(alpha) for alpha in ALPHAS], "strict": False}})


@pytest.fixture(scope="module")
def written(result: RunResult, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("run")
    return run_dir, report(result, run_dir)


def lines_of(run_dir: Path, row: str) -> list[Line]:
    with (run_dir / "predictions" / "pf-pascal" / f"{row}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def within(line: Line, alpha: str) -> bool:
    place, truth = ([float(line[x]), float(line[y])] for x, y in (("x", "y"), ("true_x", "true_y")))
    return math.dist(place, truth) <= float(alpha) * float(line["threshold_base"])


def averages(lines: Iterable[Line], right: Callable[[Line], bool]) -> dict[str, float]:
    """All four averages over the lines of keypoints that count."""
    pairs: dict[str, list[bool]] = {}
    category: dict[str, str] = {}
    for line in lines:
        pairs.setdefault(line["pair_index"], []).append(right(line))
        category[line["pair_index"]] = line["category"]

    def point(chosen: list[list[bool]]) -> float:
        return 100 * sum(map(sum, chosen)) / sum(map(len, chosen))

    def image(chosen: list[list[bool]]) -> float:
        return 100 * sum(sum(hits) / len(hits) for hits in chosen) / len(chosen)

    groups = [[hits for pair, hits in pairs.items() if category[pair] == name] for name in set(category.values())]
    everything = list(pairs.values())
    scores = (point(everything), image(everything), *(sum(map(f, groups)) / len(groups) for f in (point, image)))
    return dict(zip(AVERAGES, scores, strict=True))


def assert_averages(found: dict[str, dict[str, float]], lines: list[Line], right: Callable[[Line, str], bool]) -> None:
    for alpha in ALPHAS:
        slow = averages(lines, lambda line, alpha=alpha: right(line, alpha))
        for average, scores in found.items():
            assert scores[alpha] == pytest.approx(slow[average], abs=1e-4), (average, alpha)


def slow_kap(lines: list[Line], alpha: str) -> float:
    """Precision at every place of the ranking at which a right match may stand, equal similarities together."""
    ranks = [float(line["similarity"]) if line["accepted"] == "1" else -9.0 for line in lines]
    right = [line["present"] == "1" and within(line, alpha) for line in lines]
    area = 0.0
    for mine, hit in zip(ranks, right, strict=True):
        if hit:
            above = [other for rank, other in zip(ranks, right, strict=True) if rank >= mine]
            area += sum(above) / len(above)
    return 100 * area / sum(right)


@pytest.mark.parametrize("name", ["adaln", "mutual", "linear", "same_position"])
def test_every_measure_equals_slow_loops_over_the_files(written: tuple[Path, dict[str, Any]], name: str) -> None:
    run_dir, comparison = written
    (row,) = (row for row in comparison["datasets"]["pf-pascal"]["rows"] if row["name"] == name)
    lines = lines_of(run_dir, name)
    present = [line for line in lines if line["present"] == "1"]

    def accepted(line: Line, alpha: str) -> bool:
        return line["accepted"] == "1" and within(line, alpha)

    assert_averages(row["pck"], present, accepted)
    assert_averages(
        row["pck_dagger"], present, lambda line, alpha: accepted(line, alpha) and line["nearest"] == line["keypoint"]
    )
    assert_averages(row["geometry_aware"], [line for line in present if line["geometry_aware"] == "1"], accepted)
    if name == "same_position":
        assert row["ceiling"] is row["kap"] is None
    else:
        assert_averages(
            row["ceiling"],
            present,
            lambda line, alpha: float(line["ceiling"]) <= float(alpha) * float(line["threshold_base"]),
        )
        assert row["kap"] == pytest.approx({alpha: slow_kap(lines, alpha) for alpha in ALPHAS}, abs=1e-4)
    kept = [line for line in present if line["accepted"] == "1"]
    hidden = [line for line in lines if line["present"] == "0"]
    coverage = row["coverage"]
    assert coverage["accepted"] == pytest.approx(100 * len(kept) / len(present), abs=1e-4)
    rejected = sum(line["accepted"] == "0" for line in hidden)
    assert coverage["rejected_hidden"] == pytest.approx(100 * rejected / len(hidden), abs=1e-4)
    precision = {alpha: 100 * sum(within(line, alpha) for line in kept) / len(kept) for alpha in ALPHAS}
    assert coverage["pck_accepted"] == pytest.approx(precision, abs=1e-4)


def test_sizes_of_the_block(written: tuple[Path, dict[str, Any]]) -> None:
    run_dir, comparison = written
    block, lines = comparison["datasets"]["pf-pascal"], lines_of(run_dir, "adaln")
    present = [line for line in lines if line["present"] == "1"]
    twins = [line for line in present if line["geometry_aware"] == "1"]
    assert block["keypoints"] == len(present)
    assert block["hidden_keypoints"] == len(lines) - len(present)
    assert block["pairs"] == len({line["pair_index"] for line in present}) < PAIRS
    assert block["geometry_aware"] == {"pairs": len({line["pair_index"] for line in twins}), "keypoints": len(twins)}
    assert block["n"] == len({line["unit"] for line in present})


def test_breakdowns_equal_slow_loops(written: tuple[Path, dict[str, Any]]) -> None:
    run_dir, comparison = written
    found = comparison["datasets"]["pf-pascal"]["breakdowns"]
    assert list(found) == ["category", "viewpoint", "species", "pair in train", "images in train"]
    assert list(found["viewpoint"]) == ["0", "1", "2"]
    assert list(found["pair in train"]) == ["no", "yes"]
    for name in ("adaln", "mutual"):
        present = [line for line in lines_of(run_dir, name) if line["present"] == "1"]
        for attribute, levels in found.items():
            for level, entry in levels.items():
                own = [
                    line
                    for line in present
                    if {"category": line["category"], **facts(int(line["pair_index"])).attributes}.get(attribute)
                    == level
                ]
                assert entry["keypoints"] == len(own)
                assert entry["pairs"] == len({line["pair_index"] for line in own})
                assert_averages(
                    entry["rows"][name], own, lambda line, alpha: line["accepted"] == "1" and within(line, alpha)
                )


def test_files_are_whole_and_follow_the_schema(written: tuple[Path, dict[str, Any]]) -> None:
    run_dir, comparison = written
    jsonschema.validate(json.loads(json.dumps(comparison, allow_nan=False)), SCHEMA)
    files = {name: (run_dir / name).read_text() for name in ("comparison.json", "comparison.csv", "breakdowns.csv")}
    assert report_from_predictions(run_dir) == comparison
    assert {name: (run_dir / name).read_text() for name in files} == files
    lines = list(csv.DictReader(io.StringIO(breakdowns_to_csv(comparison))))
    levels = sum(map(len, comparison["datasets"]["pf-pascal"]["breakdowns"].values()))
    assert len(lines) == levels * 4 * 2


def test_bases_of_a_canvas_may_differ_between_rows(result: RunResult) -> None:
    dataset = result.datasets[0]
    wider = replace(dataset.rows[1].predictions, threshold_base=dataset.rows[1].predictions.threshold_base * 2)
    rows = [dataset.rows[0], replace(dataset.rows[1], predictions=wider)]
    with pytest.raises(ValueError, match="threshold_base"):
        summarise(replace(result, datasets=[replace(dataset, rows=rows)]))
    canvas = summarise(replace(result, datasets=[replace(dataset, rows=rows, threshold="canvas")]))
    image = summarise(result)
    scores = [c["datasets"]["pf-pascal"]["rows"][1]["pck"]["per_point"] for c in (canvas, image)]
    assert scores[0]["0.05"] == scores[1]["0.10"]


def text_of(comparison: dict[str, Any]) -> str:
    console = Console(width=150, file=io.StringIO(), force_terminal=False)
    for table in tables(comparison):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def cells_of(text: str, title: str) -> dict[str, dict[str, str]]:
    """The cells of the first table under a title, by row and column."""
    lines = text[text.index(title) :].splitlines()[1:]
    table = [
        line
        for line in lines[: next(i for i, line in enumerate(lines) if line.startswith("└"))]
        if "│" in line or "┃" in line
    ]
    header, *rows = ([cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in table)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_tables_read_well(written: tuple[Path, dict[str, Any]]) -> None:
    _, comparison = written
    block = comparison["datasets"]["pf-pascal"]
    text = text_of(comparison)
    assert max(map(len, text.splitlines())) <= 150
    beside = cells_of(text, "pf-pascal: beside PCK")
    assert list(beside["adaln"]) == [
        "row", "dagger", "geo-aware", "KAP", "ceiling @0.05", "accepted", "of accepted", "unseen pair", "unseen images",
    ]  # fmt: skip
    clean = block["breakdowns"]["pair in train"]["no"]
    assert beside["linear"]["unseen pair"] == f"{clean['rows']['linear']['per_point']['0.10']:.1f}"
    assert f"unseen pair: {clean['pairs']} pairs, {clean['keypoints']} keypoints not in the training list" in " ".join(
        text.split()
    )
    assert (beside["same_position"]["KAP"], beside["same_position"]["ceiling @0.05"]) == ("", "")
    (mutual,) = (row for row in block["rows"] if row["name"] == "mutual")
    assert beside["mutual"]["ceiling @0.05"] == f"{mutual['ceiling']['per_point']['0.05']:.1f}"
    assert beside["mutual"]["accepted"] == f"{mutual['coverage']['accepted']:.1f}"
    assert beside["adaln"]["accepted"] == "100.0"
    by_level = cells_of(text, "pf-pascal: by attribute")
    assert list(by_level["linear"]) == [
        "row",
        "viewpoint 0",
        "viewpoint 1",
        "viewpoint 2",
    ]  # eight species are in the file
    level = block["breakdowns"]["viewpoint"]["2"]
    assert by_level["linear"]["viewpoint 2"] == f"{level['rows']['linear']['per_point']['0.10']:.1f}"


def test_columns_that_say_nothing_are_left_out(result: RunResult) -> None:
    dataset = result.datasets[0]
    plain = {index: PairFacts(f.unit, f.category, f.source_id, f.target_id) for index, f in dataset.pairs.items()}
    rows = [row for row in dataset.rows if row.name != "mutual"]
    comparison = summarise(replace(result, datasets=[replace(dataset, rows=rows, pairs=plain)]))
    jsonschema.validate(comparison, SCHEMA)
    text = text_of(comparison)
    assert list(cells_of(text, "pf-pascal: beside PCK")["adaln"]) == ["row", "dagger", "KAP", "ceiling @0.05"]
    assert "by attribute" not in text
    assert comparison["datasets"]["pf-pascal"]["geometry_aware"] == {"pairs": 0, "keypoints": 0}
    assert comparison["datasets"]["pf-pascal"]["rows"][0]["geometry_aware"] is None


def test_a_rule_that_rejects_everything_scores_zero(result: RunResult) -> None:
    dataset = result.datasets[0]
    nothing = replace(dataset.rows[0].predictions, accepted=np.zeros(len(dataset.rows[0].predictions), dtype=bool))
    rows = [replace(dataset.rows[0], predictions=nothing), *dataset.rows[1:]]
    comparison = summarise(replace(result, datasets=[replace(dataset, rows=rows)]))
    jsonschema.validate(comparison, SCHEMA)
    row = comparison["datasets"]["pf-pascal"]["rows"][0]
    assert row["pck"]["per_point"]["0.20"] == 0
    assert row["coverage"] == {"accepted": 0.0, "pck_accepted": None, "rejected_hidden": 100.0}
    assert cells_of(text_of(comparison), "beside PCK")["adaln"]["of accepted"] == ""


def test_repeated_pairs_are_looked_for_among_those_that_count(result: RunResult) -> None:
    dataset = result.datasets[0]
    pairs = dict(dataset.pairs)
    pairs[11] = replace(pairs[11], source_id=pairs[10].source_id, target_id=pairs[10].target_id)  # 10 shows nothing
    assert (
        "subsets" not in summarise(replace(result, datasets=[replace(dataset, pairs=pairs)]))["datasets"]["pf-pascal"]
    )
    pairs[13] = replace(pairs[13], source_id=pairs[12].source_id, target_id=pairs[12].target_id)
    block = summarise(replace(result, datasets=[replace(dataset, pairs=pairs)]))["datasets"]["pf-pascal"]
    assert block["subsets"]["distinct"]["pairs"] == block["pairs"] - 1
