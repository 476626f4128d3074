"""Curves of cost: matching over tokens, keypoints and pairs, extraction over tokens and blocks, ranks 1 and 2.

This project stands beside the fair vectorised loop in matching, and beside the loop of published codes in extraction;
both are those of `matching` and `extraction`. What does not vary has the sizes of the base. Lines are medians, bands
reach from min to max; memory is the peak above the inputs or the loaded model. Writes a chart and the figures:

    python -m benchmarks scaling_curves --chart docs/images/scaling_curves.png --json scaling_curves.json
    python -m benchmarks scaling_curves --redraw scaling_curves.json --chart docs/images/scaling_curves.png
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.arguments import add_sizes, checked, measuring_parser, positive
from benchmarks.measuring import console, in_turns, measure_apart, report, table, three, timed
from ditf_probe.errors import InputError
from ditf_probe.files import ensure_writable, replacing

Curve = dict[str, Any]
"""`axis`: what varies; `values`; `lines`: name to a list of figures, one per value."""

MATCHING = ("vectorised", "exact")
CURVES = ("tokens", "keypoints", "pairs", "extraction_tokens", "blocks", "ranks")
PANELS = (
    ("tokens", "seconds", "matching: time of a pair"),
    ("keypoints", "seconds", "matching: time of a pair"),
    ("pairs", "seconds", "matching: time of all pairs"),
    ("tokens", "peak_mb", "matching: peak memory"),
    ("extraction_tokens", "seconds", "extraction: time of all images"),
    ("blocks", "seconds", "extraction: time up to a block"),
    ("extraction_tokens", "peak_mb", "extraction: peak memory"),
    ("ranks", "seconds", "extraction: time on ranks of one core"),
)
COLOURS = {"exact": "#1f5fa8", "ours": "#1f5fa8", "vectorised": "#d2691e", "reference": "#d2691e"}
LABELS = {"exact": "ours", "ours": "ours", "vectorised": "vectorised loop", "reference": "published loop"}


def matching_curve(axis: str, values: Sequence[int], options: argparse.Namespace) -> Curve:
    """Both methods at every value, each in a process of its own."""
    lines: dict[str, list[Any]] = {name: [] for name in MATCHING}
    for value in values:
        varied = {"side": options.grid_side, "keypoints": options.base_keypoints, "pairs": None, axis: value}
        words = ["--channels", options.channels, "--image", *options.image, "--keypoints", varied["keypoints"]]
        words += ["--grid", varied["side"], varied["side"], "--repeats", options.repeats, "--threads", options.threads]
        words += ["--pairs", varied["pairs"]] if varied["pairs"] else []
        for name, points in lines.items():
            command = ["matching", *map(str, words), "--in-this-process", name]
            with console().status(f"{axis} {value}, {name} ..."):
                found = measure_apart(axis, str(value), command)
            points.append(timed(found["seconds"]) | {"peak_mb": found["peak_mb"]})
    squared = axis == "side"
    return {"axis": "tokens" if squared else axis, "values": [v * v if squared else v for v in values], "lines": lines}


def extraction_point(folder: Path, options: argparse.Namespace, block: int | None = None) -> dict[str, Any]:
    """Both loops over the same images."""
    from benchmarks.extraction import loop_works

    taken = in_turns(loop_works(folder, options, block), options.repeats)
    return {name: timed(runs) for name, runs in taken.items()}


def extraction_tokens(folder: Path, options: argparse.Namespace) -> Curve:
    """Square images of all sides, with the memory of a process of its own."""
    from benchmarks.models import stride_of

    lines: dict[str, list[Any]] = {"reference": [], "ours": []}
    for side in options.sides:
        varied = argparse.Namespace(**{**vars(options), "sides": [side]})
        with console().status(f"extraction of {side} pixels ..."):
            found = extraction_point(folder, varied)
            for name, points in lines.items():
                command = ["extraction", *extraction_words(varied), "--in-this-process", f"loop-{name}", str(folder)]
                points.append(found[name] | measure_apart("--sides", str(side), command))
    return {"axis": "tokens", "values": [(side // stride_of(options)) ** 2 for side in options.sides], "lines": lines}


def extraction_words(options: argparse.Namespace) -> list[str]:
    """The sizes of an extraction, for a process of its own."""
    names = ("images", "batch_size", "ensemble", "blocks", "width", "head_dim", "threads")
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    lists = [("--sides", options.sides), ("--vae-channels", options.vae_channels)]
    return words + [word for name, values in lists for word in (name, *map(str, values))]


def extraction_blocks(folder: Path, options: argparse.Namespace) -> Curve:
    """Features of early and late blocks of one model."""
    blocks = sorted({round(part * (options.blocks - 1) / 4) for part in range(5)})
    varied = argparse.Namespace(**{**vars(options), "sides": options.sides[:1]})
    lines: dict[str, list[Any]] = {"reference": [], "ours": []}
    for block in blocks:
        with console().status(f"block {block} ..."):
            for name, found in extraction_point(folder, varied, block).items():
                lines[name].append(found)
    return {"axis": "block", "values": blocks, "lines": lines}


def ranks_curve(folder: Path, options: argparse.Namespace) -> Curve:
    """The loop of an extraction, as in `ranks`."""
    from benchmarks.ranks import RANKS, measure_extraction

    sizes = {"images": options.rank_images, "side": options.sides[0]}
    found = measure_extraction(folder, argparse.Namespace(**{**vars(options), **sizes}))["loop"]
    return {"axis": "ranks", "values": list(RANKS), "lines": {"ours": [found[str(ranks)] for ranks in RANKS]}}


def measure(options: argparse.Namespace) -> dict[str, Curve]:
    """The curves that are asked for."""
    from benchmarks.models import save_pipeline

    with tempfile.TemporaryDirectory(dir=options.folder, prefix="scaling-curves-") as name:
        folder = Path(name)
        if {"extraction_tokens", "blocks"} & set(options.curves):
            save_pipeline(folder / "latents", options)
        works = {
            "tokens": partial(matching_curve, "side", options.grid_sides, options),
            "keypoints": partial(matching_curve, "keypoints", options.keypoints, options),
            "pairs": partial(matching_curve, "pairs", options.pairs, options),
            "extraction_tokens": partial(extraction_tokens, folder / "latents", options),
            "blocks": partial(extraction_blocks, folder / "latents", options),
            "ranks": partial(ranks_curve, folder, options),
        }
        return {curve: works[curve]() for curve in options.curves}


def draw(curves: Mapping[str, Curve], chart: Path) -> None:
    """One panel per curve and figure, those that were not measured left out."""
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if panel[0] in curves]
    rows = 1 if len(panels) < 4 else 2
    columns = -(-len(panels) // rows)
    figure = Figure(figsize=(3.6 * columns, 3.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax, (name, figure_name, title) in zip(axes, panels, strict=False):
        panel(ax, curves[name], figure_name, title)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    with replacing(chart) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def panel(ax: Any, curve: Curve, figure_name: str, title: str) -> None:
    """The lines of a curve, on logarithmic axes where the values spread far."""
    from matplotlib.ticker import LogLocator, NullFormatter

    values = curve["values"]
    for name, points in curve["lines"].items():
        colour = COLOURS[name]
        if figure_name == "seconds":
            ax.plot(values, [point["median"] for point in points], "o-", color=colour, label=LABELS[name], ms=4)
            low, high = ([point[end] for point in points] for end in ("min", "max"))
            ax.fill_between(values, low, high, color=colour, alpha=0.2, linewidth=0)
        else:
            peaks = [max(point["peak_mb"], 0.1) for point in points]  # a page or none is below what is measured
            ax.plot(values, peaks, "o-", color=colour, label=LABELS[name], ms=4)
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(curve["axis"])
    ax.set_ylabel("seconds" if figure_name == "seconds" else "MB")
    if min(values) > 0 and max(values) >= 8 * min(values):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_ylim(bottom=0)
    ax.set_xticks(values, [f"{value:,}" for value in values], fontsize=8)
    ax.tick_params(axis="y", labelsize=8)
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, frameon=False)


def results_table(name: str, curve: Curve) -> Table:
    rows = []
    for line, points in curve["lines"].items():
        for value, point in zip(curve["values"], points, strict=True):
            peak = f"{point['peak_mb']:.1f}" if "peak_mb" in point else ""
            rows.append([f"{line}, {curve['axis']} {value}", *three(point, ".4f"), peak])
    return table(name.replace("_", " "), ("", "min s", "median s", "max s", "peak MB"), rows)


def parser() -> argparse.ArgumentParser:
    from benchmarks.models import add_model

    made = measuring_parser("scaling_curves", __doc__, repeats=3)
    made.add_argument("--curves", nargs="+", choices=CURVES, default=CURVES, help="which (default all)")
    lists = [("grid-sides", [10, 20, 30, 40, 60], "cells per side"), ("keypoints", [1, 4, 16, 64], "of a pair")]
    lists += [("pairs", [10, 30, 100, 300], "matched"), ("sides", [128, 192, 256, 384], "of images in pixels")]
    for name, values, meaning in lists:
        text = f"{meaning} (default {' '.join(map(str, values))})"
        made.add_argument(f"--{name}", type=positive, nargs="+", default=values, help=text)
    size = ("HEIGHT", "WIDTH")
    made.add_argument(
        "--image", type=positive, nargs=2, default=[240, 320], metavar=size, help="to match (default 240 320)"
    )
    sizes = [("channels", 512, "to match"), ("grid-side", 20, "of the base"), ("base-keypoints", 10, "of the base")]
    sizes += [("images", 4, "per extraction"), ("batch-size", 4, "images per call"), ("ensemble", 2, "noise draws")]
    add_sizes(made, [*sizes, ("rank-images", 48, "extracted by the ranks")])
    add_model(made)
    made.add_argument("--chart", type=Path, help="PNG to draw")
    made.add_argument("--redraw", type=Path, metavar="JSON", help="draw the figures of an earlier run, measure nothing")
    made.add_argument("--folder", type=Path, help="for models and stores (default: that of temporary files)")
    return made


def read(file: Path) -> dict[str, Curve]:
    """The curves of an earlier run.

    Raises:
        InputError: There are none.
    """
    try:
        found: dict[str, Curve] = json.loads(file.read_text())["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("--redraw", str(file), "is no file of `scaling_curves --json`") from error
    if not set(found) <= set(CURVES):
        raise InputError("--redraw", str(file), "is a file of another benchmark")
    return found


def main(arguments: list[str]) -> None:
    from benchmarks.models import check_side

    options = checked(parser().parse_args(arguments))
    if options.chart:
        ensure_writable(options.chart.parent, "--chart")
    if options.redraw:
        if not options.chart:
            raise InputError("--chart", None, "name the PNG to draw")
        draw(read(options.redraw), options.chart)
        return
    for side in options.sides:
        check_side("--sides", side, options)
    curves = measure(options)
    report([results_table(name, curve) for name, curve in curves.items()], options, curves)
    if options.chart:
        draw(curves, options.chart)
