"""Where tables are printed to."""

from rich.console import Console

WIDEST = 10_000
"""More characters than any table has in a line."""


def console() -> Console:
    """As wide as the terminal; where there is none, as wide as each table needs, for wrapped columns are unreadable."""
    found = Console()
    return found if found.is_terminal else Console(width=WIDEST)
