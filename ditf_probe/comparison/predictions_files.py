"""Predictions as CSV files, and the manifest that says what they are: enough to compute a comparison again."""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditf_probe.comparison.attributes_files import attributes_from_csv, attributes_to_csv
from ditf_probe.errors import InputError
from ditf_probe.files import write_text
from ditf_probe.metrics.predictions import COLUMNS, KINDS, Predictions, unique_rows
from ditf_probe.tasks.records import FROZEN, DatasetResult, PairFacts, RowCost, RowResult, RunResult

FOLDER, MANIFEST = "predictions", "manifest.json"
FACTS = ("unit", "category", "source_id", "target_id")
HEADER = ("pair_index", *FACTS, "keypoint", "keypoint_name", "geometry_aware", *COLUMNS[2:])


def write_predictions(run_dir: Path, result: RunResult) -> list[Path]:
    """Writes `predictions/<data set>/<row>.csv` and the manifest, each atomically, the manifest last.

    What pairs are marked with beside their category stands in `predictions/<data set>.attributes.csv`.

    Returns:
        The CSV files of the rows.
    """
    files, manifest = [], {}
    for dataset in result.datasets:
        attributes, rows = f"{_file_name(dataset.name)}.attributes.csv", []
        write_text(run_dir / FOLDER / attributes, attributes_to_csv(dataset.pairs))
        for row in dataset.rows:
            name = f"{_file_name(dataset.name)}/{_file_name(row.name)}.csv"
            write_text(run_dir / FOLDER / name, _to_csv(row.predictions, dataset.pairs))
            files.append(run_dir / FOLDER / name)
            facts = {"name": row.name, "kind": row.kind, "parameters": row.parameters, "notes": list(row.notes)}
            rows.append({**facts, "cost": row.cost and asdict(row.cost), "backbone": row.backbone, "file": name})
        facts = {"unit": dataset.unit, "statistic": dataset.statistic, "threshold": dataset.threshold}
        manifest[dataset.name] = {**facts, "attributes": attributes, "rows": rows}
    text = json.dumps({"datasets": manifest, "settings": result.settings}, indent=2)
    write_text(run_dir / FOLDER / MANIFEST, text + "\n")
    return files


def read_predictions(run_dir: Path) -> RunResult:
    """Reads back what `write_predictions` wrote, bit by bit.

    Raises:
        InputError: The manifest or a file is missing or damaged.
    """
    path = run_dir / FOLDER / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        datasets = [_read_dataset(path.parent, name, facts) for name, facts in manifest["datasets"].items()]
        return RunResult(datasets, manifest["settings"])
    except OSError as error:
        missing = error.filename or str(path)
        raise InputError(
            "--from-predictions", str(missing), "is missing, name the run_dir of a finished test"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("--from-predictions", str(path), "is damaged, run the test again") from error


def _read_dataset(folder: Path, name: str, facts: dict[str, Any]) -> DatasetResult:
    pairs: dict[int, PairFacts] = {}
    rows = []
    for row in facts["rows"]:
        predictions, own = _from_csv(folder / row["file"])
        pairs |= own
        facts_of_row = row["name"], row["kind"], predictions, row["parameters"], tuple(row["notes"])
        rows.append(RowResult(*facts_of_row, _cost(row.get("cost")), row.get("backbone", FROZEN)))
    attributes = attributes_from_csv(folder / facts["attributes"])
    pairs = {index: replace(found, attributes=attributes.get(index, {})) for index, found in pairs.items()}
    return DatasetResult(name, facts["unit"], facts["statistic"], facts["threshold"], pairs, rows)


def _cost(cost: dict[str, Any] | None) -> RowCost | None:
    return None if cost is None else RowCost(**cost | {"grid": tuple(cost["grid"])})


def _to_csv(predictions: Predictions, pairs: dict[int, PairFacts]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    columns = [_cells(getattr(predictions, name)) for name in COLUMNS[2:]]
    known = {index: [getattr(facts, fact) for fact in FACTS] for index, facts in pairs.items()}
    places = zip(predictions.pair_index.tolist(), predictions.keypoint.tolist(), strict=True)
    for (pair_index, keypoint), *values in zip(places, *columns, strict=True):
        facts = pairs[pair_index]
        name = facts.keypoint_names[keypoint] if keypoint < len(facts.keypoint_names) else ""
        aware = int(keypoint in facts.geometry_aware)
        writer.writerow([pair_index, *known[pair_index], keypoint, name, aware, *values])
    return text.getvalue()


def _cells(column: NDArray[Any]) -> list[str]:
    """Numbers as text; nothing for NaN and for no keypoint."""
    if column.dtype == np.bool_:
        return [str(int(value)) for value in column.tolist()]
    if column.dtype == np.int64:
        return [str(value) if value >= 0 else "" for value in column.tolist()]
    # numpy prints the shortest text that reads back as the same float32.
    return ["" if text == "nan" else text for text in column.astype(str).tolist()]


def _from_csv(path: Path) -> tuple[Predictions, dict[int, PairFacts]]:
    lines = list(_lines(path))
    pairs: dict[int, PairFacts] = {}
    names: dict[int, dict[int, str]] = {}
    twins: dict[int, list[int]] = {}
    for number, line in enumerate(lines, start=2):
        try:
            index, keypoint = int(line["pair_index"]), int(line["keypoint"])
            names.setdefault(index, {})[keypoint] = line["keypoint_name"]
            twins.setdefault(index, []).extend([keypoint] * _flag(line["geometry_aware"]))
            pairs[index] = PairFacts(line["unit"], line["category"], line["source_id"], line["target_id"])
            bad = _bad_column(line)
        except (TypeError, ValueError) as error:
            raise InputError("--from-predictions", f"{path}:{number}", "is not a line of predictions") from error
        if bad:
            raise InputError("--from-predictions", f"{path}:{number}", f"{bad} must be a finite number")
    columns = {name: _column([line[name] for line in lines], kind) for name, kind in KINDS.items()}
    facts = {index: _named(found, names[index], twins[index]) for index, found in pairs.items()}
    return unique_rows(columns), facts


def _lines(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in HEADER if name not in (reader.fieldnames or ())]
        if missing:
            raise InputError(
                "--from-predictions", str(path), f"lacks the columns {', '.join(missing)}; run the test again"
            )
        yield from reader


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(text)
    return text == "1"


def _bad_column(line: dict[str, str]) -> str | None:
    """The first column that lacks a number it must have; of what the target does not show, no more than the match."""
    due = ["x", "y"]
    if _flag(line["present"]):
        due += ["true_x", "true_y", "threshold_base", "nearest"]
    _flag(line["accepted"])
    return next((name for name in due if not math.isfinite(float(line[name] or "nan"))), None)


def _column(cells: list[str], kind: type[Any]) -> NDArray[Any]:
    if kind is np.float32:
        return np.array([cell or "nan" for cell in cells], dtype=np.float32)
    return np.array([cell or "-1" for cell in cells], dtype=np.int64).astype(kind)


def _named(facts: PairFacts, names: dict[int, str], geometry_aware: list[int]) -> PairFacts:
    """Facts with what the file says of the keypoints; names of those that are not in it are empty."""
    known = tuple(names.get(row, "") for row in range(max(names) + 1)) if any(names.values()) else ()
    return replace(facts, keypoint_names=known, geometry_aware=tuple(sorted(geometry_aware)))


def _file_name(name: str) -> str:
    """A name as a file name: whatever a file system might refuse becomes a hyphen."""
    return "".join(letter if letter.isalnum() or letter in "._+-" else "-" for letter in name)
