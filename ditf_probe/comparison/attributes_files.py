"""What pairs are marked with beside their category, as a CSV file: one line per pair, one column per attribute."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from ditf_probe.errors import InputError
from ditf_probe.tasks.records import PairFacts

KEY = "pair_index"


def attributes_to_csv(pairs: Mapping[int, PairFacts]) -> str:
    """The attributes of pairs; an empty cell where a pair lacks one."""
    names = list(dict.fromkeys(name for facts in pairs.values() for name in facts.attributes))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((KEY, *names))
    for index, facts in pairs.items():
        if facts.attributes:
            writer.writerow((index, *(facts.attributes.get(name, "") for name in names)))
    return text.getvalue()


def attributes_from_csv(path: Path) -> dict[int, dict[str, str]]:
    """Reads back what `attributes_to_csv` wrote.

    Raises:
        InputError: The first column is not the pair index, or a line does not fit.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if header[:1] != [KEY]:
            raise InputError("--from-predictions", str(path), f"must begin with the column {KEY}")
        found = {}
        for line in reader:
            try:
                levels = dict(zip(header[1:], line[1:], strict=True))
                found[int(line[0])] = {name: level for name, level in levels.items() if level}
            except (IndexError, ValueError) as error:
                place = f"{path}:{reader.line_num}"
                raise InputError("--from-predictions", place, "is not a line of attributes") from error
    return found
