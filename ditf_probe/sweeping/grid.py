"""From `KEY=VALUE,VALUE` on the command line to the overrides of each run."""

import hashlib
import itertools
import re
from collections.abc import Sequence

from ditf_probe.errors import InputError

Overrides = dict[str, str]
"""Key to value, both as they stand on the command line of a run."""

RESERVED = ("config", "run_dir", "ckpt_path")
_LONGEST = 80
_PAIRS = {"[": "]", "{": "}", "(": ")"}


def parse_override(text: str) -> tuple[str, list[str]]:
    """One key and its values; commas within brackets, braces and quotes do not separate.

    Raises:
        InputError: No key, no value, a value that comes twice, a bracket or quote that is not closed, or a key that
            every run has of its own.
    """
    key, sign, _ = text.partition("=")
    if not sign or not re.fullmatch(r"[\w.+-]+", key):
        raise InputError("--over", text, "write KEY=VALUE,VALUE, such as model.init_args.learning_rate=1e-3,3e-3")
    if key in RESERVED:
        raise InputError("--over", text, f"the sweep itself sets {key}, vary something else")
    first, *others = split_values(text)
    found = [first.partition("=")[2].strip(), *others]
    if "" in found:
        raise InputError("--over", text, "give a value between and after commas, null for none")
    if len(set(found)) < len(found):
        raise InputError("--over", text, "give each value once")
    return key, found


def split_values(text: str) -> list[str]:
    """The parts between commas that are outside of brackets, braces, parentheses and quotes.

    Raises:
        InputError: One of these is not closed.
    """
    closing: list[str] = []
    parts, quote = [""], ""
    for character in text:
        if character == "," and not closing and not quote:
            parts.append("")
            continue
        parts[-1] += character
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in _PAIRS:
            closing.append(_PAIRS[character])
        elif closing and character == closing[-1]:
            closing.pop()
    if missing := quote or "".join(reversed(closing)):
        raise InputError("--over", text, f"close its brackets and quotes, {missing} is missing")
    return [part.strip() for part in parts]


def grid(texts: Sequence[str], zipped: bool = False) -> list[Overrides]:
    """The overrides of every run.

    Args:
        texts: `KEY=VALUE,VALUE` each.
        zipped: Take the first value of every key for the first run, the second for the second, and so on, in place of
            every combination.

    Returns:
        All combinations, the last key varying fastest.

    Raises:
        InputError: As in `parse_override`, a key that comes twice, or lists of unequal length to be zipped.
    """
    parsed = [parse_override(text) for text in texts]
    keys = [key for key, _ in parsed]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError("--over", key, "name each key once, with all its values")
    lengths = {len(values) for _, values in parsed}
    if zipped and len(lengths) > 1:
        counts = ", ".join(f"{key} {len(values)}" for key, values in parsed)
        raise InputError("--zip", counts, "give every key the same number of values")
    lists = [values for _, values in parsed]
    rows = zip(*lists, strict=True) if zipped else itertools.product(*lists)
    return [dict(zip(keys, row, strict=True)) for row in rows]


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each key to its last part, or to itself where two would have the same."""
    last = {key: key.rpartition(".")[2] for key in keys}
    names = list(last.values())
    return {key: name if names.count(name) == 1 else key for key, name in last.items()}


def run_name(overrides: Overrides) -> str:
    """The folder of a run: the same for the same overrides, in any order and whatever else is in the sweep.

    Overrides of keys that end alike may share a name; `Sweep.check` tells them apart.
    """
    short = short_keys(list(overrides))
    plain = ",".join(f"{short[key]}={overrides[key]}" for key in sorted(overrides, key=short.__getitem__))
    safe = re.sub(r"[^\w.,=+-]", "_", plain)[:_LONGEST]
    if safe == plain:
        return safe
    exact = "\n".join(f"{key}={value}" for key, value in sorted(overrides.items()))
    return f"{safe}~{hashlib.sha256(exact.encode()).hexdigest()[:8]}"
