"""Which channels are discarded: the massive ones, so many of the strongest, or as many others at random."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ditf_probe.errors import InputError, check_choice

ChannelKind = Literal["massive", "random"]


@dataclass(frozen=True)
class ChannelPick:
    """Which channels of a block are discarded.

    Attributes:
        count: How many; None is as many as are massive.
        kind: "massive", the strongest first; or "random", the control: channels that are not massive.
        seed: Of the random ones.

    Raises:
        InputError: An unknown kind, or a negative count or seed.
    """

    count: int | None = None
    kind: ChannelKind = "massive"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("channel_choice", self.kind, ChannelKind)
        if self.count is not None and self.count < 0:
            raise InputError("massive_count", self.count, "use 0 or more channels")
        if self.seed < 0:
            raise InputError("channel_seed", self.seed, "use 0 or a positive number")


MASSIVE = ChannelPick()
"""The massive channels, however many there are."""


def mean_magnitudes(hidden_states: Tensor) -> Tensor:
    """The mean magnitude of every channel.

    Args:
        hidden_states: `(..., C)` raw residual stream.

    Returns:
        `(C,)` float64: mean of |x| over all tokens.
    """
    return hidden_states.flatten(0, -2).double().abs().mean(0)


def strongest_channels(magnitudes: Tensor, count: int) -> list[int]:
    """The channels of the largest mean magnitude, the lower index first among equals.

    Args:
        magnitudes: `(C,)`, as `mean_magnitudes` gives them.
        count: How many, 0 to C.

    Returns:
        Indices in ascending order.

    Raises:
        InputError: There are not so many.
    """
    width = len(magnitudes)
    if not 0 <= count <= width:
        raise InputError("massive_count", count, f"use 0 to {width} channels")
    return sorted(torch.argsort(magnitudes, descending=True, stable=True)[:count].tolist())


def random_channels(width: int, count: int, excluded: Collection[int], seed: int = 0, block: int = 0) -> list[int]:
    """Channels drawn without replacement from those that are not excluded.

    One seed puts the channels of a block in one order, of which the first are taken: with equal `excluded` a larger
    count only adds channels.

    Args:
        width: C, number of channels.
        count: How many to draw.
        excluded: Channels that may not be drawn.
        seed: Of the draw.
        block: Block index; blocks have draws of their own.

    Returns:
        Indices in ascending order.

    Raises:
        InputError: Fewer than `count` are left.
    """
    order = np.random.default_rng([seed, block]).permutation(width).tolist()
    free = [int(channel) for channel in order if channel not in excluded]
    if not 0 <= count <= len(free):
        raise InputError("massive_count", count, f"use 0 to {len(free)}: of {width} channels no more are free to draw")
    return sorted(free[:count])


def picked_channels(
    pick: ChannelPick, massive: Collection[int], magnitudes: Tensor | None, width: int, block: int
) -> list[int]:
    """The channels that a pick means in a block.

    A random pick takes neither the massive channels nor, where magnitudes are known, as many of the strongest as it
    has itself: it shares no channel with the pick that it is the control of.

    Args:
        pick: How many, and which.
        massive: The massive channels.
        magnitudes: `(C,)` mean magnitudes; None where the massive channels are given by hand, which says it all.
        width: C, number of channels.
        block: Block index.

    Returns:
        Indices in ascending order.

    Raises:
        InputError: So many are not there; or the strongest are asked for where the massive channels are given by hand.
    """
    count = len(massive) if pick.count is None else pick.count
    if not count:
        return []
    if pick.kind == "random":
        strongest = [] if magnitudes is None else strongest_channels(magnitudes, min(count, width))
        return random_channels(width, count, {*massive, *strongest}, pick.seed, block)
    if pick.count is None:
        return sorted(massive)
    if magnitudes is None:
        raise InputError("massive_count", count, "leave it out, or set massive_channels to auto: a list says which")
    return strongest_channels(magnitudes, count)
