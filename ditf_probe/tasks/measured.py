"""What a task other than keypoint matching leaves behind: named scores of every row, with paired resamples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditf_probe.metrics.intervals import resample_counts
from ditf_probe.tasks.records import FROZEN, Kind

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MeasuredRow:
    """One row of a comparison on one data set.

    Attributes:
        name: Name of the row.
        kind: Training-free features, a trained probe, or a control.
        values: Metric name to score; percentages where a metric is a share.
        resampled: Metric name to `(R,)` scores on resampled units, the same resamples in all rows of a data set; empty
            with fewer than two units.
        parameters: Number of trained parameters.
        notes: Remarks for the table.
        backbone: As in `RowResult`.
    """

    name: str
    kind: Kind
    values: Mapping[str, float]
    resampled: Mapping[str, Floats] = field(default_factory=dict, repr=False)
    parameters: int = 0
    notes: tuple[str, ...] = ()
    backbone: str = FROZEN


@dataclass(frozen=True, eq=False)
class MeasuredDataset:
    """All rows on one data set.

    Attributes:
        name: Name of the data set.
        unit: What its sampling units are, in words ("sequence", "image").
        n: Number of units.
        primary: Metric that intervals and differences in the table refer to; files have those of every metric.
        rows: The rows, in order of the table.
        facts: Counts for the title, such as {"frames": 75}.
    """

    name: str
    unit: str
    n: int
    primary: str
    rows: Sequence[MeasuredRow]
    facts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MeasuredRun:
    """Everything that a comparison of scores is computed from.

    Attributes:
        datasets: Results per data set.
        settings: Every setting that changes a number, as plain JSON values.
    """

    datasets: Sequence[MeasuredDataset]
    settings: Mapping[str, Any] = field(default_factory=dict)


def row_of_means(
    name: str,
    kind: Kind,
    scores: Mapping[str, Sequence[float]],
    *,
    parameters: int = 0,
    notes: tuple[str, ...] = (),
    resamples: int = 2000,
    seed: int = 0,
) -> MeasuredRow:
    """A row whose scores are means over units, such as sequences.

    Args:
        name: Name of the row.
        kind: Kind of the row.
        scores: Metric name to one score per unit, the units in the same order in all rows.
        parameters: Number of trained parameters.
        notes: Remarks for the table.
        resamples: R, number of bootstrap resamples of the units.
        seed: Of the bootstrap; the same for all rows.
    """
    values = {metric: float(np.mean(per_unit)) for metric, per_unit in scores.items()}
    count = min((len(per_unit) for per_unit in scores.values()), default=0)
    resampled = {}
    if count > 1:
        times = resample_counts(count, resamples, seed)
        resampled = {metric: times @ np.asarray(per_unit, np.float64) / count for metric, per_unit in scores.items()}
    return MeasuredRow(name, kind, values, resampled, parameters, notes)
