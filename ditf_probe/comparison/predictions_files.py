"""Predictions as CSV files, and the manifest that says what they are: enough to compute a comparison again."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ditf_probe.errors import InputError
from ditf_probe.files import write_text
from ditf_probe.metrics.predictions import COLUMNS, Predictions, unique_rows
from ditf_probe.tasks.records import DatasetResult, PairFacts, RowResult, RunResult

FOLDER, MANIFEST = "predictions", "manifest.json"
FACTS = ("unit", "category", "source_id", "target_id")
HEADER = ("pair_index", *FACTS, "keypoint", "keypoint_name", *COLUMNS[2:])


def write_predictions(run_dir: Path, result: RunResult) -> list[Path]:
    """Writes `predictions/<data set>/<row>.csv` and the manifest, each atomically, the manifest last.

    Returns:
        The CSV files.
    """
    files, manifest = [], {}
    for dataset in result.datasets:
        rows = []
        for row in dataset.rows:
            name = f"{_file_name(dataset.name)}/{_file_name(row.name)}.csv"
            write_text(run_dir / FOLDER / name, _to_csv(row.predictions, dataset.pairs))
            files.append(run_dir / FOLDER / name)
            facts = {"name": row.name, "kind": row.kind, "parameters": row.parameters, "notes": list(row.notes)}
            rows.append({**facts, "file": name})
        facts = {"unit": dataset.unit, "statistic": dataset.statistic, "threshold": dataset.threshold}
        manifest[dataset.name] = {**facts, "rows": rows}
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
        rows.append(RowResult(row["name"], row["kind"], predictions, row["parameters"], tuple(row["notes"])))
    return DatasetResult(name, facts["unit"], facts["statistic"], facts["threshold"], pairs, rows)


def _to_csv(predictions: Predictions, pairs: dict[int, PairFacts]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    numbers = [getattr(predictions, name) for name in COLUMNS[2:]]
    for i, (pair_index, keypoint) in enumerate(zip(predictions.pair_index, predictions.keypoint, strict=True)):
        facts = pairs[int(pair_index)]
        name = facts.keypoint_names[keypoint] if keypoint < len(facts.keypoint_names) else ""
        # numpy prints the shortest text that reads back as the same float32.
        values = ["" if math.isnan(column[i]) else str(column[i]) for column in numbers]
        writer.writerow([pair_index, *(getattr(facts, fact) for fact in FACTS), keypoint, name, *values])
    return text.getvalue()


def _from_csv(path: Path) -> tuple[Predictions, dict[int, PairFacts]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != HEADER:
            raise InputError("--from-predictions", str(path), f"must have the columns {', '.join(HEADER)}")
        lines = list(reader)
    pairs: dict[int, PairFacts] = {}
    names: dict[int, dict[int, str]] = {}
    for number, line in enumerate(lines, start=2):
        try:
            index, keypoint = int(line["pair_index"]), int(line["keypoint"])
            names.setdefault(index, {})[keypoint] = line["keypoint_name"]
            pairs[index] = PairFacts(line["unit"], line["category"], line["source_id"], line["target_id"])
            bad = [c for c in COLUMNS[2:] if c != "similarity" and not math.isfinite(float(line[c]))]
        except (TypeError, ValueError) as error:
            raise InputError("--from-predictions", f"{path}:{number}", "is not a line of predictions") from error
        if bad:
            raise InputError("--from-predictions", f"{path}:{number}", f"{bad[0]} must be a finite number")
    columns = {c: np.array([line[c] or "nan" for line in lines], dtype=np.float32) for c in COLUMNS[2:]}
    integers = {c: np.array([line[c] for line in lines], dtype=np.int64) for c in COLUMNS[:2]}
    return unique_rows(integers | columns), {index: _named(facts, names[index]) for index, facts in pairs.items()}


def _named(facts: PairFacts, names: dict[int, str]) -> PairFacts:
    """Facts with the names of the keypoints that are in the file; others are empty."""
    known = tuple(names.get(row, "") for row in range(max(names) + 1)) if any(names.values()) else ()
    return PairFacts(facts.unit, facts.category, facts.source_id, facts.target_id, known)


def _file_name(name: str) -> str:
    """A name as a file name: whatever a file system might refuse becomes a hyphen."""
    return "".join(letter if letter.isalnum() or letter in "._+-" else "-" for letter in name)
