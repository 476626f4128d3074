"""Leaving out what a pass never reaches: the blocks after the last one that is wanted, and the output head.

The lists of blocks keep their length, so that flat indices, the number of blocks and loops over them mean the same as
in the whole model; what is left out is a module without parameters that refuses to run.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ditf_probe.backbones.families import Family
from ditf_probe.backbones.taps import containers
from ditf_probe.errors import InputError

# Direct children of diffusers transformers that turn the last stream into a prediction.
HEADS = (
    "norm_out",
    "proj_out",
    "proj_out_1",
    "proj_out_2",
    "final_norm",
    "final_linear",
    "final_layer",
    "all_final_layer",
)


class NotLoaded(nn.Module):
    """Stands where a block or an output head was left out."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("the pass reached a part of the model that was not loaded")


def truncate(transformer: nn.Module, family: Family, last_block: int) -> None:
    """Replaces the blocks after one, and the output head, in place.

    Args:
        transformer: The model; its parameters may be on the device "meta".
        family: Its entry.
        last_block: Flat index of the last block to keep, from 0.

    Raises:
        InputError: The model has no such block.
    """
    lists = [blocks for _, blocks in containers(transformer, family)]
    count = sum(map(len, lists))
    if not 0 <= last_block < count:
        raise InputError("last_block", last_block, f"the backbone has blocks 0 to {count - 1}")
    places = [(blocks, position) for blocks in lists for position in range(len(blocks))]
    for blocks, position in places[last_block + 1 :]:
        blocks[position] = NotLoaded()
    for name, _ in list(transformer.named_children()):
        if name in HEADS:
            setattr(transformer, name, NotLoaded())


def last_loaded(transformer: nn.Module, family: Family) -> int:
    """Flat index of the last block that is there."""
    blocks = [block for _, group in containers(transformer, family) for block in group]
    return max((index for index, block in enumerate(blocks) if not isinstance(block, NotLoaded)), default=-1)


def check_loaded(blocks: Sequence[int], last: int) -> None:
    """Refuses blocks that were left out.

    Args:
        blocks: Flat indices, from 0.
        last: Flat index of the last block that is there.

    Raises:
        InputError: One of them was left out.
    """
    for block in blocks:
        if block > last:
            remedy = f"the backbone was loaded up to block {last}, load it with a larger last_block"
            raise InputError("blocks", block, remedy)
