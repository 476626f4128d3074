"""What the tables of a comparison share."""

STYLES = {"zero-shot": "", "probe": "bold", "control": "dim"}
WORDS = {"per_point": "per point", "per_image": "per image"}


def interval_text(interval: list[float] | None, sign: str = "") -> str:
    """An interval in words; nothing for None."""
    return "" if interval is None else f"{interval[0]:{sign}.1f} to {interval[1]:{sign}.1f}"


def difference_text(value: float | None, interval: list[float] | None) -> str:
    """A difference with its sign, and its interval where it has one; nothing for None."""
    if value is None:
        return ""
    return f"{value:+.1f}" + (f" ({interval_text(interval, '+')})" if interval else "")


def number_text(value: float | None) -> str:
    """A percentage with one decimal; nothing for None."""
    return "" if value is None else f"{value:.1f}"
