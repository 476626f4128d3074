"""A comparison as CSV: every score of every row, and the same by category and attribute."""

import csv
import io
from collections.abc import Iterator
from typing import Any

SCORES = ("pck", "pck_dagger", "geometry_aware", "ceiling")


def to_csv(comparison: dict[str, Any]) -> str:
    """One line per row, metric and average; intervals and differences stand on the lines they belong to.

    Copies of a probe from several seeds have a row each, and one of their means and standard deviations (`pck_std`).

    Args:
        comparison: As `summarise` returns it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    alphas = alphas_of(comparison)
    head = ("dataset", "row", "kind", "metric", "average", *(f"@{alpha}" for alpha in alphas))
    spreads = ("ci95_low", "ci95_high", "delta", "delta_low", "delta_high")
    costed = any("cost" in row for dataset in comparison["datasets"].values() for row in dataset["rows"])
    columns = ("parameters", *(["flops"] if costed else []), "backbone", "notes")
    writer.writerow((*head, *spreads, "accepted", "rejected_hidden", *columns))
    for name, dataset in with_subsets(comparison):
        for row in dataset["rows"]:
            for metric, average, scores in _scores(row):
                primary = (metric, average) == ("pck", dataset["statistic"])
                spread = _spread(row) if primary else ("",) * 5
                values = (scores[alpha] for alpha in alphas)
                place = (name, row["name"], row["kind"], metric, average)
                writer.writerow((*place, *values, *spread, *_facts(row, costed)))
        for entry in dataset.get("seeds", ()):
            for metric in ("pck", "pck_std"):
                for average, scores in entry[metric].items():
                    primary = (metric, average) == ("pck", dataset["statistic"])
                    spread = _spread(entry) if primary else ("",) * 5
                    place = (name, entry["name"], "probe", metric, average, *(scores[alpha] for alpha in alphas))
                    facts = (
                        entry["parameters"],
                        *([""] if costed else []),
                        entry["backbone"],
                        "; ".join(entry["notes"]),
                    )
                    writer.writerow((*place, *spread, "", "", *facts))
    return text.getvalue()


def breakdowns_to_csv(comparison: dict[str, Any]) -> str:
    """One line per row, average and level of each attribute, the category among them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    alphas = alphas_of(comparison)
    head = ("dataset", "attribute", "level", "pairs", "keypoints", "row", "average")
    writer.writerow((*head, *(f"@{alpha}" for alpha in alphas)))
    for name, dataset in with_subsets(comparison):
        for attribute, levels in dataset["breakdowns"].items():
            for level, entry in levels.items():
                place = (name, attribute, level, entry["pairs"], entry["keypoints"])
                for row, averages in entry["rows"].items():
                    for average, scores in averages.items():
                        writer.writerow((*place, row, average, *(scores[alpha] for alpha in alphas)))
    return text.getvalue()


def with_subsets(comparison: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The data sets by name, each followed by its subsets."""
    for name, dataset in comparison["datasets"].items():
        yield name, dataset
        for subset, values in dataset.get("subsets", {}).items():
            yield f"{name}, {subset} pairs", values


def alphas_of(comparison: dict[str, Any]) -> list[str]:
    """The thresholds, as they are called in scores."""
    dataset = next(iter(comparison["datasets"].values()))
    return list(dataset["rows"][0]["pck"]["per_point"])


def _scores(row: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, float]]]:
    for metric in SCORES:
        for average, scores in (row[metric] or {}).items():
            yield metric, average, scores
    for metric, scores in (("kap", row["kap"]), ("pck_accepted", row["coverage"]["pck_accepted"])):
        if scores is not None:
            yield metric, "per_point", scores


def _facts(row: dict[str, Any], costed: bool) -> tuple[Any, ...]:
    coverage = row["coverage"]
    flops = [row["cost"]["flops"] if "cost" in row else 0] if costed else []
    facts = (row["parameters"], *flops, row["backbone"], "; ".join(row["notes"]))
    return coverage["accepted"], coverage["rejected_hidden"], *facts


def _spread(row: dict[str, Any]) -> tuple[Any, ...]:
    delta: dict[str, Any] = row["delta"] or {"value": "", "ci95": None}
    return (*(row["ci95"] or ("", "")), delta["value"], *(delta["ci95"] or ("", "")))
