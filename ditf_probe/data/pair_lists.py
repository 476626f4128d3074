"""Lists of pairs as files: what was compared can be kept, compared by its hash, and used again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ditf_probe.data.problems import Problems
from ditf_probe.data.text_files import read_json, read_table
from ditf_probe.errors import InputError
from ditf_probe.files import write_text

Keys = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class PairList:
    """A list of pairs and where it comes from.

    Attributes:
        dataset: Name of the data set.
        settings: What the list was formed with, such as split and kind.
        pairs: Keys of source and target, in order.
    """

    dataset: str
    settings: Mapping[str, str]
    pairs: Keys


def pairs_digest(pairs: Keys) -> str:
    """SHA-256, as hex digits, of a list of pairs in its order."""
    plain = [list(pair) for pair in pairs]
    return hashlib.sha256(json.dumps(plain, separators=(",", ":")).encode()).hexdigest()


def write_pair_list(path: Path, found: PairList) -> None:
    """Writes a list as JSON: data set, settings, SHA-256 and the pairs, one a line."""
    head = {"dataset": found.dataset, "settings": dict(found.settings), "sha256": pairs_digest(found.pairs)}
    lines = ",\n".join(json.dumps(list(pair)) for pair in found.pairs)
    write_text(path, json.dumps(head)[:-1] + f', "pairs": [\n{lines}\n]}}\n')


def read_pair_list(
    path: Path, dataset: str, settings: Mapping[str, str], problems: Problems | None = None
) -> list[tuple[str, str]]:
    """Reads a list that `write_pair_list` wrote, or a CSV file with the columns `source` and `target`.

    Args:
        path: The file; the ending .csv tells the two apart.
        dataset: Name of the data set that it must be of.
        settings: What it must have been formed with.
        problems: Collects damaged rows of a table; without it they raise.

    Raises:
        InputError: The file is missing or damaged, belongs to something else, or its pairs were changed.
    """
    if path.suffix.lower() == ".csv":
        rows = read_table(path, "pairs_file", ("source", "target"), problems=problems)
        return [(row["source"], row["target"]) for _, row in rows]
    found = _parse(path)
    for name, expected in {"dataset": dataset, **settings}.items():
        value = found.dataset if name == "dataset" else found.settings.get(name)
        if value != expected:
            raise InputError(
                "pairs_file", str(path), f"made for {name} {value!r}, not {expected!r}; use the list for that"
            )
    return list(found.pairs)


def _parse(path: Path) -> PairList:
    content = read_json(path, "pairs_file")
    try:
        pairs = [(str(source), str(target)) for source, target in content["pairs"]]
        found, digest = PairList(content["dataset"], dict(content["settings"]), pairs), content["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        remedy = "no pair list; it needs dataset, settings, sha256 and pairs, as write_pairs writes them"
        raise InputError("pairs_file", str(path), remedy) from error
    if digest != pairs_digest(pairs):
        raise InputError("pairs_file", str(path), f"its pairs do not have the SHA-256 {digest}; restore the file")
    return found
