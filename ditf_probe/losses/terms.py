"""What the terms of an objective have in common: how they are called, what they need, their temperature."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ditf_probe.data.pairs import Pair
from ditf_probe.errors import InputError

Need = Literal["source_maps", "target_maps", "source_points", "target_points", "zero_shot"]
"""What a term may need: whole descriptor maps of either side, keypoints and the descriptors there, and the features
before the probe. Of a map that is not needed whole, only the cells around keypoints visible in both images count.
"""

NEEDS: frozenset[Need] = frozenset(get_args(Need))
MAPS: frozenset[Need] = frozenset({"source_maps", "target_maps"})
POINTS: frozenset[Need] = frozenset({"source_points", "target_points"})


@dataclass(frozen=True)
class Extras:
    """What some terms look at beside descriptor maps and annotations; None where no term needs it.

    Attributes:
        source_zero_shot: `(C, h, w)` of each source image, the feature that the zero-shot row matches.
        target_zero_shot: The same of each target image.
    """

    source_zero_shot: Sequence[Tensor] | None = None
    target_zero_shot: Sequence[Tensor] | None = None

    def take(self, pairs: Sequence[int]) -> "Extras":
        """What belongs to some pairs of the batch."""
        sides = (self.source_zero_shot, self.target_zero_shot)
        return Extras(*(None if maps is None else [maps[i] for i in pairs] for maps in sides))


NO_EXTRAS = Extras()


class Term(nn.Module, ABC):
    """One loss over a batch of pairs, a term of an `Objective`.

    A subclass fills `compute`. What it learns, if anything, is a parameter of the module, as the temperature is. Losses
    are computed in float32 (float64 for float64) under any autocast: cosines divided by a small temperature need it.

    Attributes:
        needs: What it looks at, so that a task need not make the rest. For terms with points, pairs without a keypoint
            visible in both images do not count.

    Args:
        temperature: Cosines are divided by this, from 0.01 to 1; where it starts if it is learnt.
        learn_temperature: Whether the temperature is a parameter, kept between 0.01 and 1.

    Raises:
        InputError: A number out of range.
    """

    needs: frozenset[Need] = MAPS | POINTS

    def __init__(self, temperature: float, learn_temperature: bool) -> None:
        super().__init__()
        if not 0.01 <= temperature <= 1:
            raise InputError("temperature", temperature, "give a number from 0.01 to 1")
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learn_temperature)

    @property
    def temperature(self) -> Tensor:
        """The temperature, a scalar."""
        return self.log_temperature.exp().clamp(0.01, 1.0)

    @property
    def learn_temperature(self) -> bool:
        """Whether the temperature is learnt."""
        return self.log_temperature.requires_grad

    def forward(
        self,
        sources: Sequence[Tensor],
        targets: Sequence[Tensor],
        pairs: Sequence[Pair],
        extras: Extras = NO_EXTRAS,
    ) -> Tensor:
        """The loss of a batch of pairs.

        Args:
            sources: Descriptor map of each source image, `(D, h, w)`, of any length, covering the original image. Grids
                may differ within a batch.
            targets: Descriptor map of each target image, `(D, h', w')`.
            pairs: Annotations.
            extras: What else the term needs.

        Returns:
            Scalar; 0 (with a graph) where no pair is of use.

        Raises:
            InputError: NaN or infinity in a map, lists of different lengths, or a need that `extras` lacks.
        """
        lists = {"sources": sources, "targets": targets}
        lists |= {name: maps for name, maps in vars(extras).items() if maps is not None}
        for name, maps in lists.items():
            if len(maps) != len(pairs):
                raise InputError(name, f"{len(maps)} maps", f"give one for each of the {len(pairs)} pairs")
        sources, targets = checked(sources, "sources"), checked(targets, "targets")
        pointless = self.needs.isdisjoint(POINTS)
        kept = [i for i, pair in enumerate(pairs) if pointless or bool(pair.visible.any())]
        if not kept:
            parts = (*sources, *targets, *self.parameters())
            return sum(((part * 0.0).sum() for part in parts), torch.zeros(()))
        chosen = [sources[i] for i in kept], [targets[i] for i in kept], [pairs[i] for i in kept]
        with torch.autocast(sources[0].device.type, enabled=False):
            return self.compute(*chosen, extras.take(kept))

    @abstractmethod
    def compute(self, sources: list[Tensor], targets: list[Tensor], pairs: list[Pair], extras: Extras) -> Tensor:
        """The loss of at least one pair; arguments as those of `forward`, checked, only pairs that are of use."""


def checked(maps: Sequence[Tensor], name: str) -> list[Tensor]:
    """Maps in float32, or float64 where they are.

    Raises:
        InputError: NaN or infinity in a map.
    """
    # No sum is finite over NaN or infinity. One of large values may not be either, which a slower look tells apart.
    suspect = bool(maps) and not torch.stack([features.detach().sum() for features in maps]).isfinite().all()
    if suspect and not all(bool(features.isfinite().all()) for features in maps):
        raise InputError(name, "NaN or infinity", "lower the learning rate or check the features")
    return [features.to(torch.promote_types(features.dtype, torch.float32)) for features in maps]


def check_positive(name: str, value: float, least: float = 0.0) -> None:
    """Refuses an argument of a term that is not a finite number above 0, or not of at least `least`.

    Raises:
        InputError: It is not.
    """
    if not (0 < value < math.inf and value >= least):
        raise InputError(name, value, f"give a number of at least {least}" if least else "give a positive number")
