"""float64 on devices that do not have it: what needs it is computed on the CPU."""

from torch import Tensor

NO_FLOAT64 = frozenset({"mps"})
"""Types of devices without float64."""


def within_reach(x: Tensor) -> Tensor:
    """The same tensor where float64 can be computed: on the CPU if its own device cannot. Gradients pass."""
    return x.cpu() if x.device.type in NO_FLOAT64 else x


def to_float64(x: Tensor) -> Tensor:
    """The same numbers in float64, on the CPU if their device has none. Gradients pass."""
    return within_reach(x).double()
