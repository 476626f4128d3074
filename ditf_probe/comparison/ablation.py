"""An ablation in a comparison: its rows by normalisation, discard and number of channels, as CSV, table and picture."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ditf_probe.comparison.csv_files import alphas_of
from ditf_probe.comparison.table_parts import WORDS, fitted, interval_text
from ditf_probe.files import write_text
from ditf_probe.metrics.pck import alpha_key
from ditf_probe.pictures import Curve, Picture, curve_panels, save_picture
from ditf_probe.printing import WIDEST

_DISCARDS = {"none": "", "pre_norm": "before", "post_adaln": "after"}
_COLOURS = {"pre_norm": "#2f6fb0", "post_adaln": "#c4432b"}


@dataclass(frozen=True)
class Cell:
    """One row of an ablation on one data set.

    Attributes:
        row: Its name in the comparison.
        modulation: As in `FeatureSettings`, AdaLN with its condition where that is not the one of the features.
        discard: "none", "pre_norm" or "post_adaln".
        choice: "massive" or "random"; nothing without discard.
        seed: Of the random channels.
        count: Number of channels that are discarded.
        channels: Which.
        scores: PCK of the average that intervals refer to, by threshold.
        ci95: Interval of the primary threshold, or None.
        delta: Difference to `adaln` at the primary threshold, or None without that row.
        delta_ci95: Its paired interval, or None.
    """

    row: str
    modulation: str
    discard: str
    choice: str
    seed: int
    count: int
    channels: list[int]
    scores: dict[str, float]
    ci95: list[float] | None
    delta: float | None
    delta_ci95: list[float] | None

    @property
    def line(self) -> tuple[str, str, str, int]:
        """What cells of one line share; they differ in the number of channels."""
        return self.modulation, self.discard, self.choice, self.seed


def ablation_cells(comparison: dict[str, Any], dataset: str) -> list[Cell]:
    """The cells of a data set.

    Args:
        comparison: As `summarise` returns it, of a run of `AblationTask`.
        dataset: Name of the data set.
    """
    found = comparison["datasets"][dataset]
    rows = {row["name"]: row for row in found["rows"]}
    return [
        _cell(rows[name], comparison["settings"]["rows"][name], found["statistic"])
        for name in comparison["settings"]["ablation"]
    ]


def _cell(row: dict[str, Any], how: dict[str, Any], statistic: str) -> Cell:
    pick = how["pick"] or {"kind": "", "seed": 0}
    channels = [channel for found in how.get("discarded", {}).values() for channel in found]
    condition = f"({how['condition']})" if how["condition"] else ""
    delta = row["delta"] or {"value": None, "ci95": None}
    return Cell(
        row["name"],
        how["modulation"] + condition,
        how["discard"],
        pick["kind"],
        pick["seed"],
        len(channels),
        channels,
        row["pck"][statistic],
        row["ci95"],
        delta["value"],
        delta["ci95"],
    )


def ablation_csv(comparison: dict[str, Any]) -> str:
    """One line per cell and data set."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    alphas = alphas_of(comparison)
    spreads = ("ci95_low", "ci95_high", "delta", "delta_low", "delta_high")
    head = ("dataset", "row", "modulation", "discard", "choice", "seed", "count", "channels")
    writer.writerow((*head, *(f"@{alpha}" for alpha in alphas), *spreads))
    for dataset in comparison["datasets"]:
        for cell in ablation_cells(comparison, dataset):
            seed = cell.seed if cell.choice == "random" else ""
            place = (dataset, cell.row, cell.modulation, cell.discard, cell.choice, seed, cell.count)
            scores = (cell.scores[alpha] for alpha in alphas)
            delta = "" if cell.delta is None else cell.delta
            spread = (*(cell.ci95 or ("", "")), delta, *(cell.delta_ci95 or ("", "")))
            writer.writerow((*place, " ".join(map(str, cell.channels)), *scores, *spread))
    return text.getvalue()


def ablation_tables(comparison: dict[str, Any], width: int = WIDEST) -> Iterator[Table]:
    """A table per data set: normalisation and discard down, numbers of channels across.

    Args:
        comparison: As `summarise` returns it.
        width: Characters in a line of the terminal; in a narrow one some numbers of channels are left out.
    """
    key = _primary(comparison)
    for name, dataset in comparison["datasets"].items():
        cells = ablation_cells(comparison, name)
        title = (
            f"{name}: PCK@{key} {WORDS[dataset['statistic']]} by number of discarded channels, {dataset['pairs']} pairs"
        )
        caption = "under each score the paired 95% interval of its difference to adaln; green above, red below"
        table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
        for column in ("normalisation", "discard", "channels"):
            table.add_column(column, no_wrap=True)
        counts = sorted({cell.count for cell in cells})
        for count in counts:
            table.add_column(str(count), justify="right", no_wrap=True)
        for line in dict.fromkeys(cell.line for cell in cells):
            here = {cell.count: cell for cell in cells if cell.line == line}
            modulation, discard, choice, seed = line
            table.add_row(
                "" if discard != "none" else modulation,
                _DISCARDS[discard],
                _channels(choice, seed),
                *(_text(here[count], key) if count in here else "" for count in counts),
                end_section=line == [cell.line for cell in cells if cell.modulation == modulation][-1],
            )
        yield fitted(table, width, [str(count) for count in counts[1:-1]])


def _channels(choice: str, seed: int) -> str:
    """Which channels go; of so many the strongest may be massive or not."""
    return {"massive": "strongest", "random": f"random, seed {seed}"}.get(choice, "")


def _text(cell: Cell, key: str) -> str:
    score, interval = f"{cell.scores[key]:.1f}", cell.delta_ci95
    if interval is None or cell.row == "adaln":
        return score
    colour = "green" if interval[0] > 0 else "red" if interval[1] < 0 else ""
    text = f"{score}\n{interval_text(interval, '+')}"
    return f"[{colour}]{text}[/]" if colour else text


def ablation_pictures(comparison: dict[str, Any]) -> dict[str, Picture]:
    """The picture of every data set, by its name; empty where the comparison is no ablation."""
    names = comparison["datasets"] if "ablation" in comparison["settings"] else ()
    return {name: ablation_picture(comparison, name) for name in names}


def ablation_picture(comparison: dict[str, Any], dataset: str) -> Picture:
    """A panel per normalisation: the difference to `adaln`, or PCK without that row, over the number of channels."""
    cells = ablation_cells(comparison, dataset)
    key, relative = _primary(comparison), all(cell.delta is not None for cell in cells)
    base = {cell.modulation: cell for cell in cells if cell.discard == "none"}
    panels: dict[str, list[Curve]] = {modulation: [] for modulation in base}
    for line in dict.fromkeys(cell.line for cell in cells):
        modulation, discard, choice, seed = line
        if discard == "none":
            continue
        points = [base[modulation], *sorted((c for c in cells if c.line == line), key=lambda c: c.count)]
        spans = [point.delta_ci95 if relative else point.ci95 for point in points]
        panels[modulation].append(
            Curve(
                f"{_DISCARDS[discard]}, {_channels(choice, seed)}",
                [float(point.count) for point in points],
                [float(point.delta or 0.0) if relative else point.scores[key] for point in points],
                None if None in spans else [(span[0], span[1]) for span in spans if span is not None],
                _COLOURS[discard],
                dashed=choice == "random",
            )
        )
    label = f"PCK@{key} - adaln" if relative else f"PCK@{key}"
    return curve_panels(panels, title=dataset, x_label="discarded channels", y_label=label, zero=relative)


def write_ablation(comparison: dict[str, Any], run_dir: Path) -> None:
    """Writes `ablation.csv` and `pictures/<data set>-ablation.png`."""
    write_text(run_dir / "ablation.csv", ablation_csv(comparison))
    for dataset, picture in ablation_pictures(comparison).items():
        save_picture(run_dir / "pictures" / f"{dataset.replace('/', '-')}-ablation.png", picture)


def _primary(comparison: dict[str, Any]) -> str:
    return alpha_key(float(comparison["settings"]["scoring"]["alpha"]))
