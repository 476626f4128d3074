"""Damaged records of a data set: stop at the first, or leave each out and say so in the end."""

from collections.abc import Iterator
from contextlib import contextmanager

from ditf_probe.errors import InputError


class Problems:
    """Decides what becomes of a damaged record.

    Args:
        keep_going: Collect what is wrong instead of raising at the first record.

    Example:
        >>> problems = Problems(keep_going=True)
        >>> for name in ("good", "bad"):
        ...     with problems.record():
        ...         if name == "bad":
        ...             raise InputError("root", name, "is damaged, replace it")
        >>> len(problems.found)
        1
    """

    def __init__(self, keep_going: bool = False) -> None:
        self.keep_going = keep_going
        self._found: list[InputError] = []

    @property
    def found(self) -> tuple[InputError, ...]:
        """What was wrong, in order; once where many records share one damaged file."""
        return tuple({str(error): error for error in self._found}.values())

    @contextmanager
    def record(self) -> Iterator[None]:
        """Reads one record in its body; an `InputError` of it is collected, or goes on to the caller."""
        try:
            yield
        except InputError as error:
            if not self.keep_going:
                raise
            self._found.append(error)
