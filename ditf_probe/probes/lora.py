"""Low-rank adapters of weights inside a backbone, as a part of the head that they are trained with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ditf_probe.errors import InputError
from ditf_probe.probes.base import checked_blocks, checked_count

PART = "lora"
"""What the adapter is called among the parts of a head."""


@dataclass(frozen=True)
class LoraSettings:
    """Which weights of a backbone are adapted, and how.

    Attributes:
        rank: Rank r of an adapter.
        alpha: Its output is multiplied by alpha / r.
        blocks: Number of blocks, counted back from the last one that is tapped.
        targets: Linear layers of these blocks, each by the end of its path.

    Raises:
        InputError: A number out of range, or no target.
    """

    rank: int = 4
    alpha: float = 4.0
    blocks: int = 1
    targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        checked_count("lora.rank", self.rank)
        checked_count("lora.blocks", self.blocks)
        if not 0 < self.alpha < float("inf"):
            raise InputError("lora.alpha", self.alpha, "give a positive number, such as the rank")
        if not self.targets:
            raise InputError("lora.targets", list(self.targets), "name at least one linear layer, such as to_q")


class LoraWeights(nn.Module):
    """The weights of adapters: a layer W x becomes W x + alpha / r * up down x (LoRA, arXiv 2106.09685, section 4.1).

    `up` starts at zero, so that training departs from the frozen backbone, and `down` at random as in the authors'
    code. The weights act in a pass of `backbones.lora.LoraBackbone`.

    Args:
        rank: As in `LoraSettings`.
        alpha: As in `LoraSettings`.
        blocks: The adapted blocks, by flat index.
        layers: Paths of the adapted layers in the transformer.
        widths: Inputs and outputs of each.

    Raises:
        InputError: A rank, blocks or widths that no layer has, or widths that are not one pair per layer.
    """

    def __init__(
        self, rank: int, alpha: float, blocks: Sequence[int], layers: Sequence[str], widths: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        self.rank, self.alpha = checked_count("lora.rank", rank), alpha
        self.blocks, self.layers = checked_blocks(blocks), list(layers)
        self.widths = [
            (checked_count("lora.widths", given), checked_count("lora.widths", out)) for given, out in widths
        ]
        if not layers or len(self.widths) != len(layers):
            raise InputError("lora.widths", list(widths), f"give inputs and outputs of the layers {list(layers)}")
        self.down = nn.ParameterList(torch.empty(rank, given) for given, _ in self.widths)
        self.up = nn.ParameterList(torch.zeros(out, rank) for _, out in self.widths)
        for weight in self.down:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))

    def facts(self) -> dict[str, Any]:
        """The arguments that build it again, as plain JSON values."""
        widths = [list(pair) for pair in self.widths]
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "blocks": self.blocks,
            "layers": self.layers,
            "widths": widths,
        }

    @property
    def words(self) -> str:
        """What tables say of it."""
        plural = "s" if len(self.blocks) > 1 else ""
        return f"LoRA rank {self.rank} in block{plural} {', '.join(map(str, self.blocks))}"


def attach(head: nn.Module, weights: LoraWeights) -> None:
    """Makes adapters of the backbone a part of a head: trained, averaged, counted and saved with it.

    Raises:
        InputError: The head has a part of that name already.
    """
    if hasattr(head, PART):
        raise InputError("lora", type(head).__name__, f"the head has a part called {PART} of its own, rename it")
    head.add_module(PART, weights)


def lora_of(head: nn.Module | None) -> LoraWeights | None:
    """The adapters that a head was trained with; None for a head over a frozen backbone."""
    found = getattr(head, PART, None)
    return found if isinstance(found, LoraWeights) else None
