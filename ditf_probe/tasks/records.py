"""What a test leaves behind: predictions per row and data set, with what a reader needs to interpret them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ditf_probe.data.pairs import PairDataset
from ditf_probe.metrics.intervals import Statistic
from ditf_probe.metrics.subsets import geometry_aware

if TYPE_CHECKING:  # torchmetrics is slow to import, and a trained probe needs no metric
    from ditf_probe.metrics.predictions import Predictions

Kind = Literal["zero-shot", "probe", "control"]
FROZEN, NO_BACKBONE = "frozen", "none"
"""What a row says of its backbone where nothing in it was trained, and where there is none."""


@dataclass(frozen=True)
class PairFacts:
    """What is known about a pair beside its keypoints; see `data.pairs.Pair`.

    Attributes:
        unit: The independent sampling unit.
        category: Name of the category.
        source_id: Image id of the source.
        target_id: Image id of the target.
        keypoint_names: Names in row order; empty where the data set has none.
        geometry_aware: Rows of the keypoints in the geometry-aware subset; see `metrics.subsets`.
        attributes: What else the annotations say of the pair: name to level.
    """

    unit: str
    category: str
    source_id: str
    target_id: str
    keypoint_names: tuple[str, ...] = ()
    geometry_aware: tuple[int, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RowCost:
    """What the heads of a row add to every image of a data set.

    Attributes:
        flops: Floating-point operations, as `probes.cost.probe_cost` counts them.
        grid: (h, w) of the first block of the first head, of the first source image of the data set.
        latency_ms: Median time on that grid, in milliseconds; measured, so that no two runs agree.
        device: Where it was measured.
    """

    flops: int
    grid: tuple[int, int]
    latency_ms: float
    device: str


@dataclass(frozen=True)
class RowResult:
    """One row of a comparison on one data set.

    Attributes:
        name: Name of the row.
        kind: Training-free features, a trained probe, or a control.
        predictions: Where it put each keypoint that the source shows.
        parameters: Number of trained parameters.
        notes: Remarks for the table.
        cost: What its heads cost; None for a row without.
        backbone: "frozen", "none", or in words what was trained inside the backbone.
    """

    name: str
    kind: Kind
    predictions: "Predictions"
    parameters: int = 0
    notes: tuple[str, ...] = ()
    cost: RowCost | None = None
    backbone: str = FROZEN


@dataclass(frozen=True)
class DatasetResult:
    """All rows on one data set, over the same pairs.

    Attributes:
        name: Name of the data set.
        unit: What its sampling units are, in words.
        statistic: Which average intervals and differences refer to.
        threshold: What thresholds are relative to, in words.
        pairs: Facts of every pair, by pair index.
        rows: The rows, in order of the table.
    """

    name: str
    unit: str
    statistic: Statistic
    threshold: str
    pairs: dict[int, PairFacts]
    rows: list[RowResult]


@dataclass(frozen=True)
class RunResult:
    """Everything that a comparison is computed from.

    Attributes:
        datasets: Results per data set.
        settings: Every setting that changes a number, as plain JSON values.
    """

    datasets: list[DatasetResult]
    settings: dict[str, Any] = field(default_factory=dict)


def pair_facts(dataset: PairDataset, indices: Sequence[int]) -> dict[int, PairFacts]:
    """The facts of some pairs of a data set, by pair index."""
    facts = {}
    for index in indices:
        pair = dataset[index]
        chosen = geometry_aware(dataset.keypoint_groups(pair.category), pair.visible, pair.target.visible)
        facts[index] = PairFacts(
            pair.unit,
            pair.category,
            pair.source.image_id,
            pair.target.image_id,
            tuple(dataset.keypoint_names(pair.category)),
            tuple(chosen.nonzero()[:, 0].tolist()),
            {name: level for name, level in pair.attributes.items() if level},
        )
    return facts


def frozen_words(backbones: Mapping[str, str]) -> str:
    """Which rows have a frozen backbone, in words.

    Args:
        backbones: Name of each row to its `backbone`, as in `RowResult`.
    """
    trained = [f"{row} ({words})" for row, words in backbones.items() if words not in (FROZEN, NO_BACKBONE)]
    return "backbones of all rows are frozen" + (f" but for {', '.join(trained)}" if trained else "")
