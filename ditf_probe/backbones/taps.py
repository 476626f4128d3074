"""Reading the stream before an AdaLN with ordinary hooks, and stopping the pass once everything is read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ditf_probe.backbones.base import Norm, Tap, TappedBlock
from ditf_probe.backbones.families import BlockGroup, Call, Family, SubLayer, TokenOrder
from ditf_probe.errors import InputError

Key = tuple[int, str]


@dataclass(frozen=True, slots=True)
class HookPoint:
    """One tensor to read during a forward pass.

    Attributes:
        key: Its name in the record.
        module: Whose call shows it.
        at: Before ("input") or after ("output") that call.
        read: From the call to the tensor.
    """

    key: Key
    module: nn.Module
    at: Literal["input", "output"]
    read: Callable[[Call], Tensor]


class _AllRead(Exception):
    """Leaves a forward pass that has nothing more to show."""


@contextmanager
def recording(points: Sequence[HookPoint], *, stop: bool = True) -> Iterator[dict[Key, Tensor]]:
    """Reads tensors while the body runs a model, without changing what it computes.

    The first call of a module counts. Hooks are gone afterwards, also after an exception.

    Args:
        points: What to read.
        stop: Leave the body as soon as everything is read.

    Yields:
        The record, filled during the pass.

    Raises:
        RuntimeError: The pass ended and something was never read: the family entry does not fit the model.
    """
    record: dict[Key, Tensor] = {}
    finished = _AllRead()
    handles: list[RemovableHandle] = []

    def see(point: HookPoint, call: Call) -> None:
        if point.key not in record:
            record[point.key] = point.read(call)
            if stop and len(record) == len(points):
                raise finished

    try:
        handles.extend(_register(point, see) for point in points)
        yield record
    except _AllRead as reason:
        if reason is not finished:
            raise
    finally:
        for handle in handles:
            handle.remove()
    missing = [point.key for point in points if point.key not in record]
    if missing:
        raise RuntimeError(f"the forward pass never reached {missing}")


def _register(point: HookPoint, see: Callable[[HookPoint, Call], None]) -> RemovableHandle:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(point, Call(module, args, kwargs))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        see(point, Call(module, args, kwargs, output))

    if point.at == "input":
        return point.module.register_forward_pre_hook(before, with_kwargs=True)
    return point.module.register_forward_hook(after, with_kwargs=True)


@dataclass(frozen=True, slots=True)
class BlockTap:
    """The tap of one block of one model.

    Attributes:
        index: Flat block index.
        group: The kind of the block.
        layer: The AdaLN that is tapped.
        block: The block.
        source: The module that shows the modulation.
    """

    index: int
    group: BlockGroup
    layer: SubLayer
    block: nn.Module
    source: nn.Module

    def points(self) -> list[HookPoint]:
        """What to read: the stream and the modulation."""
        modulation = self.group.modulation
        return [
            HookPoint((self.index, "stream"), self.block.get_submodule(self.layer.entry), "input", self.layer.read),
            HookPoint((self.index, "modulation"), self.source, modulation.at, modulation.read),
        ]

    def assemble(
        self, record: dict[Key, Tensor], grid: tuple[int, int], text_lengths: Tensor | None = None
    ) -> TappedBlock:
        """From what was read to the image tokens and their modulation."""
        stream = image_tokens(record[self.index, "stream"], grid[0] * grid[1], self.group.order, text_lengths)
        chunks = record[self.index, "modulation"].reshape(len(stream), -1, stream.shape[-1])
        shift, scale, gate = (
            None if chunk is None else chunks[:, chunk]
            for chunk in (self.layer.shift, self.layer.scale, self.layer.gate)
        )
        module = self.block.get_submodule(self.layer.norm)
        shift, scale = fold_norm_weights(module, shift, scale, self.layer.weight_offset)
        return TappedBlock(stream, shift, scale, gate, read_norm(module), grid)


def containers(transformer: nn.Module, family: Family) -> list[tuple[BlockGroup, nn.ModuleList]]:
    """The block lists of a transformer, in order of execution."""
    found = []
    for group in family.groups:
        blocks = transformer.get_submodule(group.container)
        assert isinstance(blocks, nn.ModuleList)
        found.append((group, blocks))
    return found


def find_block(transformer: nn.Module, family: Family, index: int) -> tuple[BlockGroup, int, nn.Module]:
    """The kind of a block, its number among the blocks of that kind, and the block itself.

    Args:
        transformer: The model.
        family: Its entry.
        index: Flat block index, from 0.
    """
    position = index
    for group, blocks in containers(transformer, family):
        if position < len(blocks):
            return group, position, blocks[position]
        position -= len(blocks)
    raise IndexError(f"the transformer has no block {index}")


def tap_block(transformer: nn.Module, family: Family, index: int, tap: Tap) -> BlockTap:
    """Finds the tap of a block.

    Args:
        transformer: The model.
        family: Its entry.
        index: Flat block index, from 0.
        tap: Which AdaLN.

    Raises:
        InputError: The block has no second AdaLN.
    """
    group, position, block = find_block(transformer, family, index)
    layer = group.attention if tap == "attention" else group.mlp
    if layer is None:
        name = f"{group.container}[{position}]"
        raise InputError("tap", tap, f"block {index} ({name}) has one AdaLN only, use tap attention")
    start = transformer if group.modulation.shared else block
    return BlockTap(index, group, layer, block, start.get_submodule(group.modulation.module))


def image_tokens(stream: Tensor, count: int, order: TokenOrder, text_lengths: Tensor | None = None) -> Tensor:
    """The image tokens of a stream `(B, tokens, C)`; `text_lengths` `(B,)` are needed after text of unequal length."""
    if stream.ndim != 3 or stream.shape[1] < count or (order == "image_only" and stream.shape[1] != count):
        raise RuntimeError(f"the stream has shape {tuple(stream.shape)} where {count} image tokens are due")
    if order == "after_text":
        assert text_lengths is not None
        places = text_lengths[:, None] + torch.arange(count, device=text_lengths.device)
        return stream.gather(1, places[..., None].expand(-1, -1, stream.shape[-1]))
    return stream[:, -count:] if order == "text_first" else stream[:, :count]


def read_norm(module: nn.Module) -> Norm:
    """Kind and eps of a normalisation."""
    eps: Any = module.eps
    if isinstance(module, nn.LayerNorm):
        return Norm("layer_norm", float(eps))
    if "RMSNorm" in type(module).__name__:
        default = torch.finfo(torch.float32).eps  # what torch's RMSNorm takes for None
        return Norm("rms_norm", default if eps is None else float(eps))
    raise RuntimeError(f"{type(module).__name__} is no known normalisation")


def fold_norm_weights(
    module: nn.Module, shift: Tensor | None, scale: Tensor | None, offset: float = 0.0
) -> tuple[Tensor | None, Tensor | None]:
    """Moves the weights of a norm into the modulation that follows: ((w + offset) x + b)(1 + scale) + shift, exactly.

    Returns:
        Shift and scale for the same norm without weights.
    """
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    factor = 1.0 if scale is None else 1 + scale
    if bias is not None:
        shift = bias * factor if shift is None else bias * factor + shift
    if weight is not None:
        scale = (weight + offset) * factor - 1
    return shift, scale
