"""Annotation files that people write: JSON and CSV, with errors that say which file, line and column."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ditf_probe.data.problems import Problems
from ditf_probe.errors import InputError


def read_text(path: Path, argument: str) -> str:
    """Contents of a UTF-8 file; a byte order mark is dropped.

    Args:
        path: The file.
        argument: Name of the user's argument, for the error.

    Raises:
        InputError: It is missing, may not be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(argument, str(path), "no such file; check the path or restore it") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(argument, str(path), f"line {line} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise InputError(argument, str(path), f"cannot be read ({error.strerror}); give a readable file") from error


def read_json(path: Path, argument: str) -> Any:
    """Contents of a JSON file.

    Raises:
        InputError: It cannot be read or is no JSON.
    """
    text = read_text(path, argument)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(argument, str(path), f"no JSON or cut short ({error}); restore the file") from error


def read_table(
    path: Path, argument: str, required: Sequence[str], optional: Sequence[str] = (), problems: Problems | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a CSV file with a header line, as line number and column to text; empty lines are skipped.

    Args:
        path: The file.
        argument: Name of the user's argument, for the error.
        required: Columns that must be there, in any order.
        optional: Columns that may be there.
        problems: Collects rows with another number of cells than the header; without it they raise.

    Yields:
        Number of the row's last line, counted from 1, and its cells without surrounding blanks.

    Raises:
        InputError: The file cannot be read, lacks a column, or has an unknown or repeated one.
    """
    reader = csv.reader(io.StringIO(read_text(path, argument), newline=""), strict=True)
    problems = problems or Problems()
    try:
        columns = [name.strip() for name in next(reader, [])]
        _check_columns(path, argument, columns, required, optional)
        for row in reader:
            fits = len(row) == len(columns)
            with problems.record():
                if row and not fits:
                    remedy = (
                        f"line {reader.line_num} has {len(row)} cells where the header has {len(columns)}; correct it"
                    )
                    raise InputError(argument, str(path), remedy)
            if row and fits:
                yield reader.line_num, dict(zip(columns, (cell.strip() for cell in row), strict=True))
    except csv.Error as error:
        raise InputError(argument, str(path), f"line {reader.line_num} is no CSV ({error}); correct it") from error


def _check_columns(
    path: Path, argument: str, columns: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> None:
    allowed = f"the columns are {', '.join(required)}" + (f" and, if wanted, {', '.join(optional)}" if optional else "")
    for name in columns:
        if name not in (*required, *optional):
            raise InputError(argument, str(path), f"unknown column {name!r}; {allowed}")
        if columns.count(name) > 1:
            raise InputError(argument, str(path), f"column {name!r} twice; keep one")
    for name in required:
        if name not in columns:
            raise InputError(argument, str(path), f"no column {name!r}; {allowed}")
