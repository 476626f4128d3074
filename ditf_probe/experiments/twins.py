"""The same heads trained in two ways, compared head by head."""

from collections.abc import Iterable
from typing import Any

from ditf_probe.comparison.summary import differences, scoring_of
from ditf_probe.tasks.records import RunResult


def to_twins(
    result: RunResult, dataset: str, rows: Iterable[str], changed: str, plain: str
) -> dict[str, dict[str, Any]]:
    """Differences of heads to the same heads of another training, both resampled together.

    Args:
        result: Predictions of both.
        dataset: Name of the data set.
        rows: Names of rows, `<training>/<head>`; those of other trainings are left out.
        changed: Training of the heads in question.
        plain: Training that they are compared with.

    Returns:
        Row to its difference, as `comparison.summary.differences` returns it.
    """
    twins = [(row, f"{plain}{row.removeprefix(changed)}") for row in rows if row.startswith(f"{changed}/")]
    (found,) = (one for one in result.datasets if one.name == dataset)
    return dict(zip((row for row, _ in twins), differences(found, scoring_of(result), twins), strict=True))
