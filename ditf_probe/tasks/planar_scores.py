"""Scores of the rows of a planar comparison on one data set, accumulated over pairs and ranks."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ditf_probe.data.planar import PlanarDataset
from ditf_probe.metrics.intervals import resampled_scores
from ditf_probe.metrics.planar import (
    ACCURACY_THRESHOLDS,
    MATCHING_THRESHOLDS,
    Accuracies,
    HomographyAccuracy,
    MeanMatchingAccuracy,
    matching_column,
    pixel_key,
)
from ditf_probe.metrics.states import Floats
from ditf_probe.tasks.measured import MeasuredDataset, MeasuredRow
from ditf_probe.tasks.records import FROZEN, Kind

PRIMARY = "acc@3"
SHOWN = (1.0, 3.0, 5.0, 10.0)
"""Thresholds of the matching accuracy that stand in tables; the whole curve has a file of its own."""


@dataclass(frozen=True)
class PlanarRow:
    """What a table says of a row beside its scores, as in `MeasuredRow`."""

    name: str
    kind: Kind
    parameters: int = 0
    notes: tuple[str, ...] = ()
    backbone: str = FROZEN


class PlanarScores:
    """Two metrics per row.

    Args:
        dataset: The data set that is scored.
        rows: The rows, in order of the table.
        device: Where states live; that of the process group on several ranks.
    """

    def __init__(self, dataset: PlanarDataset, rows: Sequence[PlanarRow], device: torch.device) -> None:
        self.dataset = dataset
        self.rows = tuple(rows)
        self.accuracy = {row.name: HomographyAccuracy().to(device) for row in rows}
        self.matching = {row.name: MeanMatchingAccuracy().to(device) for row in rows}

    def update(self, row: str, index: int, viewpoint: bool, corner_error: float, errors: Tensor) -> None:
        """Adds one pair.

        Args:
            row: Name of the row.
            index: Index of the pair.
            viewpoint: Whether the viewpoint changes, or the illumination.
            corner_error: Pixels of the target, infinite for a failure.
            errors: `(M,)` of its matches, in pixels of the target.
        """
        facts = torch.tensor([viewpoint]), torch.tensor([index])
        self.accuracy[row].update(torch.tensor([corner_error]), *facts)
        self.matching[row].update([errors], *facts)

    def curves(self) -> dict[str, Accuracies]:
        """Row name to mean matching accuracy by change and threshold; a collective operation."""
        return {name: metric.compute() for name, metric in self.matching.items()}

    def measured(self, name: str, curves: Mapping[str, Accuracies]) -> list[MeasuredDataset]:
        """All pairs as one data set, and those of each change as further ones; a collective operation.

        Args:
            name: What the data set is called.
            curves: From `curves`.
        """
        columns = {row.name: self.matching[row.name].pairs() | self.accuracy[row.name].pairs() for row in self.rows}
        scores = {row.name: self.accuracy[row.name].compute() for row in self.rows}
        found = []
        for change in ("all", "viewpoint", "illumination"):
            rows = []
            for row in self.rows:
                own = _of_change(columns[row.name], change)
                values = {f"acc@{key}": float(value) for key, value in scores[row.name][change].items()}
                values |= {f"mma@{pixel_key(t)}": float(curves[row.name][change][pixel_key(t)]) for t in SHOWN}
                rows.append(self._row(row, own, values))
            pairs = len(own["pair_index"])
            units = len(set(self._units(own)))
            if pairs:
                title = name if change == "all" else f"{name}/{change}"
                facts = {"sequences": units, "pairs": pairs}
                found.append(MeasuredDataset(title, self.dataset.unit, units, PRIMARY, rows, facts))
        return found

    def _row(self, row: PlanarRow, columns: Mapping[str, Floats], values: dict[str, float]) -> MeasuredRow:
        """Resamples sequences; a score is the mean over the pairs of all of them."""
        counts = np.ones(len(columns["pair_index"]))
        hits = [columns["corner_error"] <= t for t in ACCURACY_THRESHOLDS]
        matches = np.maximum(columns["num_matches"], 1)
        shares = np.stack([*hits, *(columns[matching_column(t)] / matches for t in SHOWN)], axis=1)
        resampled = resampled_scores(self._units(columns), counts, shares)
        drawn = {} if resampled is None else dict(zip(values, resampled.T, strict=True))
        number = float(columns["num_matches"].mean()) if len(counts) else float("nan")
        facts = row.parameters, row.notes, row.backbone
        return MeasuredRow(row.name, row.kind, values | {"matches": number}, drawn, *facts)

    def _units(self, columns: Mapping[str, Floats]) -> list[str]:
        """The sequence of each pair."""
        sequences = (self.dataset[index] for index in range(len(self.dataset)))
        names = {pair.index: sequence.name for sequence in sequences for pair in sequence.pairs}
        return [names[int(index)] for index in columns["pair_index"]]


def curves_csv(curves: Mapping[str, Mapping[str, Accuracies]]) -> str:
    """The curves of mean matching accuracy of all data sets, one line per data set, change, row and threshold."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("dataset", "change", "row", "threshold_px", "mma"))
    for dataset, rows in curves.items():
        for row, changes in rows.items():
            for change, curve in changes.items():
                for key, value in curve.items():
                    writer.writerow((dataset, change, row, key, "" if value.isnan() else f"{float(value):.4f}"))
    return text.getvalue()


def curve_points(curves: Mapping[str, Accuracies], dataset: str) -> Iterator[tuple[int, dict[str, float]]]:
    """The curves over all pairs for loggers: threshold in pixels, and the accuracy of every row there."""
    for t in MATCHING_THRESHOLDS:
        yield int(t), {f"{dataset}/mma_curve/{row}": float(found["all"][pixel_key(t)]) for row, found in curves.items()}


def _of_change(columns: Mapping[str, Floats], change: str) -> dict[str, Floats]:
    own = (columns["viewpoint"] > 0) == (change == "viewpoint") if change != "all" else columns["viewpoint"] >= 0
    return {name: values[own] for name, values in columns.items()}
