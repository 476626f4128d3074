"""What a training asks of every probe: the losses of a configuration, with their weights."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ditf_probe.errors import InputError
from ditf_probe.losses import KeypointContrast, Objective

LossFactory = Callable[[], nn.Module]
"""Builds a loss."""

_ARGUMENTS = {"terms": "losses", "weights": "loss_weights"}


def objective(
    losses: Mapping[str, LossFactory] | None,
    weights: Mapping[str, float] | None,
    temperature: float,
    margin: float,
) -> Objective:
    """The objective of a probe.

    Args:
        losses: Name to what builds a loss; None is the contrast between keypoints alone, called "contrast".
        weights: Name to weight; 1 where a name is missing.
        temperature: Of the contrast that stands where no losses are named.
        margin: The same.

    Raises:
        InputError: As `Objective`, in the names of the task's arguments.
    """
    try:
        if losses is None:
            return Objective({"contrast": KeypointContrast(temperature, True, margin)}, weights)
        return Objective({name: make() for name, make in losses.items()}, weights)
    except InputError as error:
        head, _, rest = error.argument.partition(".")
        argument = ".".join(filter(None, (_ARGUMENTS.get(head, head), rest)))
        raise InputError(argument, error.value, error.remedy) from error


def told(own: Objective, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is logged of an objective beside its total: learnt temperatures, and each loss where there are several."""
    learnt = own.temperatures()
    if len(values) == 1:
        return dict(zip(["temperature"], learnt.values(), strict=False))  # of one loss, where it learns one
    found = {f"temperature_{name}": value for name, value in learnt.items()}
    return found | {f"loss_{name}": value for name, value in values.items()}
