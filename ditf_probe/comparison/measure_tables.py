"""Tables of what stands beside PCK: other measures of the same matches, and PCK by what pairs are marked with."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from ditf_probe.comparison.breakdowns import CATEGORY
from ditf_probe.comparison.table_parts import STYLES, WORDS, number_text

MOST_COLUMNS, MOST_LEVELS = 9, 6
_TRAINED, _CLEAN = " in train", ("no", "0")


def measure_table(name: str, dataset: dict[str, Any], key: str) -> Table:
    """PCK-dagger, geometry-aware subset, KAP, ceiling and rejections of every row, as far as they apply.

    Pairs of which the training shows nothing, where a data set marks them ("pair in train", "images in train"), have
    columns of their own: a score of a probe that was trained on the same data set stands on those.

    Args:
        name: Name of the data set.
        dataset: Its entry in a comparison.
        key: The threshold, as in scores.
    """
    statistic = dataset["statistic"]
    columns = _columns(dataset, key)
    lines = [f"@{key}, {WORDS[statistic]}", *(remark for _, _, remark in columns if remark)]
    table = Table(title=f"{name}: beside PCK", caption="; ".join(lines), title_justify="left", caption_justify="left")
    table.add_column("row", no_wrap=True)
    for header, _, _ in columns:
        table.add_column(header, justify="right", no_wrap=True)
    for row in dataset["rows"]:
        table.add_row(
            row["name"], *(number_text(values[row["name"]]) for _, values, _ in columns), style=STYLES[row["kind"]]
        )
    return table


def breakdown_tables(name: str, dataset: dict[str, Any], key: str) -> Iterator[Table]:
    """PCK by the levels of attributes that have few of them; the rest, and categories, stand in `breakdowns.csv`.

    Args:
        name: Name of the data set.
        dataset: Its entry in a comparison.
        key: The threshold, as in scores.
    """
    levels: list[tuple[str, dict[str, Any]]] = []
    for attribute, found in dataset["breakdowns"].items():
        if attribute == CATEGORY or attribute.endswith(_TRAINED) or not 2 <= len(found) <= MOST_LEVELS:
            continue
        if len(levels) + len(found) > MOST_COLUMNS:
            yield _breakdown_table(name, dataset, key, levels)
            levels = []
        levels += [(f"{attribute} {level}", entry) for level, entry in found.items()]
    if levels:
        yield _breakdown_table(name, dataset, key, levels)


def _columns(dataset: dict[str, Any], key: str) -> list[tuple[str, dict[str, float | None], str]]:
    """Header, value per row and remark of each column that has anything to say."""
    statistic, rows = dataset["statistic"], dataset["rows"]
    least = min(rows[0]["pck"][statistic], key=float)  # where a grid is in the way first

    def scores(metric: str, key: str = key) -> dict[str, float | None]:
        return {row["name"]: row[metric] and row[metric][statistic][key] for row in rows}

    coverage = {row["name"]: row["coverage"] for row in rows}
    rejecting = any(found["accepted"] < 100 or found["rejected_hidden"] for found in coverage.values())
    own = {name: found["pck_accepted"] and found["pck_accepted"][key] for name, found in coverage.items()}
    twins, hidden = dataset["geometry_aware"], dataset["hidden_keypoints"]
    columns = [
        ("dagger", scores("pck_dagger"), "dagger: no other keypoint of the target is nearer"),
        ("geo-aware", scores("geometry_aware"), f"geo-aware: {twins['keypoints']} keypoints of {twins['pairs']} pairs"),
        ("KAP", {row["name"]: row["kap"] and row["kap"][key] for row in rows}, f"KAP: with {hidden} hidden keypoints"),
        (f"ceiling @{least}", scores("ceiling", least), "ceiling: what cell centres allow"),
        ("accepted", {name: found["accepted"] for name, found in coverage.items() if rejecting}, ""),
        ("of accepted", own if rejecting else {}, "of accepted: PCK over the matches that a rule accepts"),
        *_clean_columns(dataset, key),
    ]
    return [column for column in columns if any(value is not None for value in column[1].values())]


def _clean_columns(dataset: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, float | None], str]]:
    """PCK over the pairs of which nothing was in the training list."""
    for attribute, levels in dataset["breakdowns"].items():
        for level, entry in levels.items():
            if attribute.endswith(_TRAINED) and level in _CLEAN:
                header = f"unseen {attribute.removesuffix(_TRAINED)}"
                yield header, _values(dataset, entry, key), f"{header}: {_extent(entry)} not in the training list"


def _breakdown_table(name: str, dataset: dict[str, Any], key: str, levels: list[tuple[str, dict[str, Any]]]) -> Table:
    extents = "; ".join(f"{header}: {_extent(entry)}" for header, entry in levels)
    caption = f"PCK@{key}, {WORDS[dataset['statistic']]}; {extents}"
    table = Table(title=f"{name}: by attribute", caption=caption, title_justify="left", caption_justify="left")
    table.add_column("row", no_wrap=True)
    for header, _ in levels:
        table.add_column(header, justify="right")
    columns = [_values(dataset, entry, key) for _, entry in levels]
    for row in dataset["rows"]:
        cells = (number_text(values[row["name"]]) for values in columns)
        table.add_row(row["name"], *cells, style=STYLES[row["kind"]])
    return table


def _values(dataset: dict[str, Any], entry: dict[str, Any], key: str) -> dict[str, float | None]:
    return {name: scores[dataset["statistic"]][key] for name, scores in entry["rows"].items()}


def _extent(entry: dict[str, Any]) -> str:
    return f"{entry['pairs']} pairs, {entry['keypoints']} keypoints"
