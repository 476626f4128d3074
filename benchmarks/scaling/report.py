"""The scaling model as text: assumptions, and tables under headings, in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.scaling.machines import Machine
from benchmarks.scaling.pairs import METHODS
from benchmarks.scaling.results import Row, Settings
from benchmarks.scaling.tables import (
    markdown,
    option_of,
    readable_bytes,
    readable_gpus,
    readable_operations,
    readable_time,
)


def report(results: Mapping[str, Sequence[Row]], machine: Machine, settings: Settings) -> str:
    """Everything that was computed.

    Args:
        results: From `compute`.
        machine: What was assumed.
        settings: What was asked for.
    """
    assumed = [[f"`{option_of(name)}`", f"{value:g} {unit}", why] for name, value, unit, why in machine.assumptions()]
    height, width = settings.image
    estimates = list(group(results["estimates"], "work"))
    parts = [
        ("Assumptions", markdown(["argument", "value", "meaning"], assumed)),
        ("Per image", image_table(results["images"])),
        (f"Per pair, {width}x{height} pixels, {settings.keypoints} keypoints", pair_table(results["pairs"])),
        ("How operations and bytes grow", growth_table(results["growth"])),
        ("Images per second that each resource allows", rate_table(estimates[0][1])),
    ]
    for (work,), rows in estimates:
        counts = f"{rows[0]['images']:,} images"
        parts.append((f"{work}: extraction of {counts}", extraction_table(rows, settings.gpus)))
        if rows[0]["pairs"]:
            counts = f"{rows[0]['pairs']:,} pairs of {counts}"
            parts.append((f"{work}: matching of {counts}", matching_table(rows, settings.gpus)))
    return "\n\n".join(f"### {heading}\n\n{table}" for heading, table in parts)


def group(rows: Sequence[Row], *keys: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """Rows with the same values under some keys, in order of appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    yield from found.items()


def image_table(rows: Sequence[Row]) -> str:
    """What an image costs: operations of one pass by kind, of the autoencoder, and of both together."""
    header = ["backbone", "size", "block, tap", "tokens + text", "parameters", "weights", "linear", "attention"]
    header += ["whole model", "autoencoder", *(f"all, {draws} x" for draws in rows[0]["operations"])]
    shown = []
    for row in rows:
        (height, width), one_pass = row["size"], row["one_pass"]
        cells = [row["name"], f"{width}x{height}", f"{row['block']}, {row['tap']}", f"{row['tokens']} + {row['text']}"]
        cells += [f"{row['parameters'] / 1e9:.2f} B", readable_bytes(row["weights"])]
        counts = [one_pass["linear"], one_pass["attention"], sum(row["whole_pass"].values()), row["vae"]]
        cells += [readable_operations(count) for count in (*counts, *row["operations"].values())]
        shown.append([*cells, *(readable_bytes(row["stored"][dtype]) for dtype in ("bfloat16", "float32"))])
    return markdown([*header, "entry, bf16", "entry, fp32"], shown)


def pair_table(rows: Sequence[Row]) -> str:
    """What a pair costs, each way beside the exact matcher."""
    shown = []
    for _, found in group(rows, "name"):
        exact = next(row for row in found if row["method"] == "exact")
        for row in found:
            cells = [row["name"], row["method"], readable_operations(row["operations"])]
            cells += [f"{row['operations'] / exact['operations']:.0f}", readable_bytes(row["traffic"])]
            shown.append([*cells, f"{row['traffic'] / exact['traffic']:.0f}", readable_bytes(row["peak"])])
    return markdown(["backbone", "method", "operations", "x exact", "traffic", "x exact", "peak"], shown)


def growth_table(rows: Sequence[Row]) -> str:
    """Factors of operations, and of the bytes of an entry."""
    changes = list(rows[0]["pairs"]["exact"])
    header = ["backbone", "tokens x 4: one pass", "autoencoder", "entry"]
    header += [f"{change}: {method}" for change in changes for method in METHODS]
    shown = []
    for row in rows:
        factors = [*row["tokens x 4"].values()]
        factors += [row["pairs"][method][change] for change in changes for method in METHODS]
        shown.append([row["name"], *(f"{factor:.2f}" for factor in factors)])
    return markdown(header, shown)


def rate_table(rows: Sequence[Row]) -> str:
    """How many images a second each resource allows; it depends on no work."""
    shown = []
    others = [stage for stage in rows[0]["extraction"]["stages"] if stage != "compute"]
    for (gpus, name), found in group(sorted(rows, key=lambda row: row["gpus"]), "gpus", "name"):
        first = found[0]["extraction"]["stages"]
        taken = [first[stage] for stage in others] + [row["extraction"]["stages"]["compute"] for row in found]
        shown.append([str(gpus), name, *(f"{found[0]['images'] / seconds:,.0f}" for seconds in taken)])
    draws = [row["ensemble"] for row in next(group(rows, "gpus", "name"))[1]]
    return markdown(["GPUs", "backbone", *others, *(f"compute, {count} x" for count in draws)], shown)


def extraction_table(rows: Sequence[Row], gpus: Sequence[int]) -> str:
    """Time to fill a store, and what sets it."""
    shown = []
    for (name, draws), found in group(rows, "name", "ensemble"):
        store = [readable_bytes(found[0]["store"][dtype]) for dtype in ("bfloat16", "float32")]
        shown.append([name, str(draws), *store, *(time_cell(row["extraction"]) for row in found)])
    return markdown(["backbone", "draws", "store, bf16", "store, fp32", *map(readable_gpus, gpus)], shown)


def matching_table(rows: Sequence[Row], gpus: Sequence[int]) -> str:
    """Time to match out of a store, and what sets it; it does not depend on the draws."""
    shown = []
    for (name,), found in group([row for row in rows if row["ensemble"] == rows[0]["ensemble"]], "name"):
        fits = [str(row["gpus"]) for row in found if row["fits_memory"]]
        shown.append([name, ", ".join(fits) or "none", *(time_cell(row["matching"]) for row in found)])
    return markdown(["backbone", "in memory with GPUs", *map(readable_gpus, gpus)], shown)


def check_table(points: Sequence[Row]) -> str:
    """What was predicted beside what was measured."""
    shown = []
    for point in points:
        times = [readable_time(point[key]) for key in ("predicted", "measured")]
        shown.append([point["resource"], point["size"], point["rate"], *times, f"{point['ratio']:.2f}"])
    return markdown(["resource", "size", "from", "predicted", "measured", "measured / predicted"], shown)


def time_cell(estimate: Row) -> str:
    """A time, and what sets it."""
    return f"{readable_time(estimate['seconds'])}, {estimate['limit']}"
