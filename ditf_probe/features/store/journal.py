"""Where entries are, without opening every shard: one journal per writer, a line per shard."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

SUFFIX = ".jsonl"


@dataclass(frozen=True, slots=True)
class Line:
    """One shard in a journal.

    Attributes:
        file: Name of the shard.
        bytes: Its size.
        blocks: Blocks that it has.
        keys: Its entries, in the order of their rows.
        sizes: (height, width) of the original image of each entry.
    """

    file: str
    bytes: int
    blocks: list[int]
    keys: list[str]
    sizes: list[tuple[int, int]]


def append(journal: Path, line: Line) -> None:
    """Adds a line, in one write; a kill in the middle leaves half a line, which `read` passes over.

    A journal is a shortcut: a shard without a line is found by its own header.
    """
    values = {part.name: getattr(line, part.name) for part in fields(line)}
    with journal.open("ab", buffering=0) as file:
        file.write(json.dumps(values, separators=(",", ":")).encode() + b"\n")


def read(journals: Iterable[Path]) -> dict[str, Line]:
    """The whole lines of some journals, by name of the shard."""
    found: dict[str, Line] = {}
    for journal in journals:
        for text in journal.read_bytes().split(b"\n"):
            try:
                line = Line(**json.loads(text))
            except (ValueError, TypeError):
                continue  # half a line
            found[line.file] = line
    return found
