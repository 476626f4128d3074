"""The one error that users meet: what is wrong, with which value, and the way out, on one line."""

from typing import get_args


class InputError(ValueError):
    """Bad input from the user: an argument, a file or a value that cannot be used.

    The command line prints the message alone and exits with code 2.

    Args:
        argument: Name of the argument or file at fault.
        value: The value received.
        remedy: What to do instead, as a short imperative clause.
    """

    def __init__(self, argument: str, value: object, remedy: str) -> None:
        self.argument = argument
        self.value = value
        self.remedy = remedy
        super().__init__(" ".join(f"`{argument}` is {value!r}: {remedy}".split()))

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, object, str]]:
        """Lets the error cross process borders whole."""
        return type(self), (self.argument, self.value, self.remedy)


def check_choice(argument: str, value: object, choices: object) -> None:
    """Refuses a value that is not among the choices of a Literal.

    Raises:
        InputError: It is not.
    """
    names = get_args(choices)
    if value not in names:
        raise InputError(argument, value, f"use one of {', '.join(names)}")
