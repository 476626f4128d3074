"""A description as a table for the terminal."""

from rich.console import Console
from rich.table import Table

from ditf_probe.backbones.description import Amount, Description
from ditf_probe.printing import console as standard_console


def print_description(description: Description, dtype: str, console: Console | None = None) -> None:
    """Prints a description.

    Args:
        description: What to print.
        dtype: Name of the dtype that its bytes are of.
        console: Where to; standard output by default.
    """
    blocks = Table(title=f"{description.name}: {description.transformer}", title_justify="left")
    for heading in ("blocks", "container", "taps"):
        blocks.add_column(heading, overflow="fold")
    for heading in ("parameters each", f"{dtype} each"):
        blocks.add_column(heading, justify="right")
    for group in description.groups:
        span = f"{group.first} to {group.last}" if group.last > group.first else str(group.first)
        each = (readable_count(group.each.parameters), readable_size(group.each.size))
        blocks.add_row(span, group.container, ", ".join(group.taps), *each)
    facts = Table(show_header=False)
    facts.add_row("channels", str(description.channels))
    stride = "not known without an autoencoder" if description.stride is None else f"{description.stride} pixels"
    facts.add_row("stride", stride)
    facts.add_row("transformer, whole", _readable(description.total))
    tap = "" if description.last_tap is None else f", tap {description.last_tap}"
    facts.add_row(f"transformer, up to block {description.last_block}{tap}", _readable(description.loaded))
    if description.vae is not None:
        facts.add_row("autoencoder", _readable(description.vae))
    shown = console or standard_console()
    shown.print(blocks)
    shown.print(facts)


def readable_count(number: int) -> str:
    """Parameters in thousands, millions or billions (1000 each)."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def readable_size(size: int) -> str:
    """Bytes in KiB, MiB or GiB (1024 each)."""
    for unit, power in (("GiB", 3), ("MiB", 2)):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f} {unit}"
    return f"{size / 1024:.1f} KiB"


def _readable(amount: Amount) -> str:
    return f"{readable_count(amount.parameters)} parameters, {readable_size(amount.size)}"
