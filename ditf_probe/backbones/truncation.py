"""Leaving out what a pass never reaches: the blocks after the last one, what runs in it after its tap, the output head.

The lists of blocks keep their length, so that flat indices, the number of blocks and loops over them mean the same as
in the whole model; what is left out is a module without parameters that refuses to run.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ditf_probe.backbones.base import Tap
from ditf_probe.backbones.block_taps import check_block_tap, group_taps
from ditf_probe.backbones.checks import diffusers_class
from ditf_probe.backbones.families import Family
from ditf_probe.backbones.running_order import loaded_taps, running_order
from ditf_probe.backbones.taps import containers, find_block
from ditf_probe.errors import InputError, check_choice

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
    """Stands where a block, a part of one, or an output head was left out."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("the pass reached a part of the model that was not loaded")


def truncate(transformer: nn.Module, family: Family, last_block: int, last_tap: Tap | None = None) -> None:
    """Replaces the blocks after one, what runs in that one after its tap, and the output head, in place.

    Args:
        transformer: The model; its parameters may be on the device "meta".
        family: Its entry.
        last_block: Flat index of the last block to keep, from 0.
        last_tap: The only tap of that block that will be asked for; None keeps all of it.

    Raises:
        InputError: The model has no such block, or the block no such tap.
    """
    lists = [blocks for _, blocks in containers(transformer, family)]
    count = sum(map(len, lists))
    if not 0 <= last_block < count:
        raise InputError("last_block", last_block, f"the backbone has blocks 0 to {count - 1}")
    if last_tap is not None:
        check_choice("last_tap", last_tap, Tap)
        _cut_after(transformer, family, last_block, last_tap)
    places = [(blocks, position) for blocks in lists for position in range(len(blocks))]
    for blocks, position in places[last_block + 1 :]:
        blocks[position] = NotLoaded()
    for name, _ in list(transformer.named_children()):
        if name in HEADS:
            setattr(transformer, name, NotLoaded())


def leave_out_alike(transformer: nn.Module, example: nn.Module) -> None:
    """Leaves out of a model, in place, what was left out of another one of the same configuration."""
    for path, module in example.named_modules():
        if isinstance(module, NotLoaded):
            _leave_out(transformer, path)


def check_loaded(transformer: nn.Module, family: Family, blocks: Sequence[int], tap: Tap) -> None:
    """Refuses what was left out.

    Args:
        transformer: The model.
        family: Its entry.
        blocks: Flat indices, from 0.
        tap: What is asked of them.

    Raises:
        InputError: One of the blocks was left out, or what the tap needs of it.
    """
    there = [block for _, group in containers(transformer, family) for block in group]
    last = max((index for index, block in enumerate(there) if not isinstance(block, NotLoaded)), default=-1)
    for block in blocks:
        if block > last:
            remedy = f"the backbone was loaded up to block {last}, load it with a larger last_block"
            raise InputError("blocks", block, remedy)
    if last in blocks:
        group, _, module = find_block(transformer, family, last)
        taps = loaded_taps(module, diffusers_class(transformer).__name__, group, NotLoaded)
        if tap in group_taps(group) and tap not in taps:
            remedy = f"block {last} was loaded for {', '.join(taps)} alone, load it with another last_tap or without"
            raise InputError("tap", tap, remedy)


def _cut_after(transformer: nn.Module, family: Family, index: int, tap: Tap) -> None:
    group, position, block = find_block(transformer, family, index)
    check_block_tap(group, index, position, tap, "last_tap")
    order = running_order(type(transformer).__name__, group.container, tap)
    for path in list(order.superfluous(block)):
        _leave_out(block, path)


def _leave_out(module: nn.Module, path: str) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, NotLoaded())
