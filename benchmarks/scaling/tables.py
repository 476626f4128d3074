"""Tables and numbers as the scaling model prints them: Markdown, to stand in the documentation as they are."""

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns after the first are as wide as they need to be.

    Args:
        header: Names of the columns.
        rows: As many cells each.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def readable_bytes(count: float) -> str:
    """Bytes in MB, GB, TB or PB, of 10^6, 10^9, 10^12 and 10^15, with three digits."""
    return _readable(count, (("PB", 10**15), ("TB", 10**12), ("GB", 10**9), ("MB", 10**6)))


def readable_operations(count: float) -> str:
    """Floating-point operations in M, G or T, with three digits."""
    return _readable(count, (("T", 10**12), ("G", 10**9), ("M", 10**6)))


def readable_time(seconds: float) -> str:
    """Seconds in days, hours, minutes, seconds or milliseconds, with three digits."""
    return _readable(seconds, (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)))


def _readable(value: float, units: Sequence[tuple[str, float]]) -> str:
    name, size = next((unit for unit in units if value >= unit[1]), units[-1])
    number = value / size
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f} {name}"


def readable_gpus(count: int) -> str:
    """A number of GPUs, the heading of a column."""
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def option_of(name: str) -> str:
    """The option of the command for a field of a dataclass."""
    return f"--{name.replace('_', '-')}"
