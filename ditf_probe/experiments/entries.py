"""The rows of a comparison as the tables show them: the mean over seeds in place of the copies of a head."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditf_probe.errors import InputError
from ditf_probe.metrics.pck import alpha_key
from ditf_probe.sweeping.records import read_comparison


@dataclass(frozen=True)
class Entry:
    """The primary score of one row on one data set.

    Attributes:
        row: Its name; of a head with copies from several seeds, that of the head.
        kind: "zero-shot", "probe" or "control".
        seeds: How many copies the score is the mean of.
        score: PCK at the primary threshold.
        deviation: Standard deviation over seeds, of several.
        ci95: 95% interval over units.
        best: The best zero-shot row, which a probe is compared with.
        gain: Difference of a probe to it.
        gain_ci95: The paired 95% interval of that.
        control: The best control, which a probe is compared with apart.
        control_gain: Difference of a probe to it.
        control_gain_ci95: The paired 95% interval of that.
        parameters: Trained parameters of the row.
    """

    row: str
    kind: str
    seeds: int
    score: float
    deviation: float | None
    ci95: list[float] | None
    best: str | None
    gain: float | None
    gain_ci95: list[float] | None
    control: str | None
    control_gain: float | None
    control_gain_ci95: list[float] | None
    parameters: int

    @property
    def words(self) -> str:
        """Its score for people, with the deviation over seeds where there are several."""
        return f"{self.score:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")

    def cells(self) -> list[Any]:
        """Score, deviation, interval, and both gains with theirs, blank where there is none."""
        own = (self.score, self.deviation, *(self.ci95 or (None, None)))
        gain = (self.gain, *(self.gain_ci95 or (None, None)))
        found = (*own, *gain, self.control_gain, *(self.control_gain_ci95 or (None, None)))
        return ["" if value is None else value for value in found]


_GAINS = ("gain", "gain_low", "gain_high", "control_gain", "control_gain_low", "control_gain_high")
CELLS = ("score", "deviation", "ci95_low", "ci95_high", *_GAINS)
"""What `Entry.cells` are."""


def comparison_of(run_dir: Path) -> dict[str, Any]:
    """The comparison of a run.

    Raises:
        InputError: There is none.
    """
    found = read_comparison(run_dir)
    if found is None:
        raise InputError("--run-dir", str(run_dir), "holds no comparison, run the experiment again")
    return found


def entries(comparison: dict[str, Any], dataset: str) -> list[Entry]:
    """The rows of one data set, in order of the table.

    Args:
        comparison: As `comparison.summarise` returns it.
        dataset: Name of the data set.
    """
    key = alpha_key(float(comparison["settings"]["scoring"]["alpha"]))
    return list(_entries(comparison["datasets"][dataset], key))


def _entries(dataset: dict[str, Any], key: str) -> Iterator[Entry]:
    copies = {copy: mean for mean in dataset.get("seeds", ()) for copy in mean["copies"]}
    for row in dataset["rows"]:
        mean = copies.get(row["name"])
        if mean is None:
            yield _entry(row, row["kind"], dataset["statistic"], key)
        elif row["name"] == mean["copies"][0]:
            yield _entry(mean, "probe", dataset["statistic"], key)


def _entry(row: dict[str, Any], kind: str, statistic: str, key: str) -> Entry:
    none = {"reference": None, "value": None, "ci95": None}
    gain, control = row["delta_best_zero_shot"] or none, row["delta_best_control"] or none
    return Entry(
        row["name"],
        kind,
        len(row.get("copies", (None,))),
        row["pck"][statistic][key],
        row["pck_std"][statistic][key] if "pck_std" in row else None,
        row["ci95"],
        gain["reference"],
        gain["value"],
        gain["ci95"],
        control["reference"],
        control["value"],
        control["ci95"],
        row["parameters"],
    )
