"""Writes and prints a comparison."""

import json
from pathlib import Path
from typing import Any

from ditf_probe.comparison.ablation import ablation_tables, write_ablation
from ditf_probe.comparison.costs import cost_table, costs_to_csv
from ditf_probe.comparison.csv_files import breakdowns_to_csv, to_csv
from ditf_probe.comparison.predictions_files import FOLDER, read_predictions, write_predictions
from ditf_probe.comparison.summary import summarise
from ditf_probe.comparison.tables import tables
from ditf_probe.files import ensure_writable, write_text
from ditf_probe.printing import console
from ditf_probe.tasks.records import RunResult


def report(result: RunResult, run_dir: Path) -> dict[str, Any]:
    """Writes predictions, `comparison.json` and its CSV files of a finished test, and prints its tables.

    With learned rows `costs.csv` as well: it holds times, which no two tests share; all other files say the same of the
    same predictions.

    Args:
        result: What the test left behind.
        run_dir: Folder of the run.

    Returns:
        The comparison, as in `comparison.json`.
    """
    ensure_writable(run_dir, "run_dir")
    write_predictions(run_dir, result)
    return _conclude(result, run_dir)


def report_from_predictions(run_dir: Path) -> dict[str, Any]:
    """Computes the comparison of a finished run again from its predictions, and replaces its files.

    Raises:
        InputError: The predictions are missing or damaged.
    """
    return _conclude(read_predictions(run_dir), run_dir)


def _conclude(result: RunResult, run_dir: Path) -> dict[str, Any]:
    comparison = summarise(result)
    write_text(run_dir / "comparison.json", json.dumps(comparison, indent=2, allow_nan=False) + "\n")
    write_text(run_dir / "comparison.csv", to_csv(comparison))
    write_text(run_dir / "breakdowns.csv", breakdowns_to_csv(comparison))
    if costs := costs_to_csv(result):
        write_text(run_dir / "costs.csv", costs)
    else:
        (run_dir / "costs.csv").unlink(missing_ok=True)  # that of an earlier test
    shown_on = console()
    ablation = "ablation" in comparison["settings"]
    if ablation:
        write_ablation(comparison, run_dir)
    shown = ablation_tables(comparison, shown_on.width) if ablation else tables(comparison, shown_on.width)
    for table in (*shown, *filter(None, map(cost_table, result.datasets))):
        shown_on.print(table)
        shown_on.print()
    shown_on.print(f"comparison  {run_dir / 'comparison.json'}, {run_dir / 'comparison.csv'}", soft_wrap=True)
    if ablation:
        shown_on.print(f"ablation    {run_dir / 'ablation.csv'}", soft_wrap=True)
    shown_on.print(f"by category {run_dir / 'breakdowns.csv'}", soft_wrap=True)
    shown_on.print(f"predictions {run_dir / FOLDER}", soft_wrap=True)
    if (run_dir / "pictures").is_dir():
        shown_on.print(f"pictures    {run_dir / 'pictures'}", soft_wrap=True)
    shown_on.print(f"curves      tensorboard --logdir {run_dir}", soft_wrap=True)
    return comparison
