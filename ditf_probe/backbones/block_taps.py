"""What is read of one block: the stream before an AdaLN with its modulation, or a projection of its attention."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditf_probe.backbones.base import ModulationCondition, Norm, Tap, TappedBlock
from ditf_probe.backbones.families import (
    BlockGroup,
    Call,
    EmbeddingParts,
    Family,
    SubLayer,
    TokenOrder,
    output,
)
from ditf_probe.backbones.taps import HookPoint, Key, find_block
from ditf_probe.errors import InputError

Projection = Literal["query", "key", "value"]


@dataclass(frozen=True, slots=True)
class StreamTap:
    """The stream before an AdaLN of one block of one model.

    Attributes:
        index: Flat block index.
        group: The kind of the block.
        layer: The AdaLN that is tapped.
        block: The block.
        source: The module that shows the modulation.
        parts: Modules whose outputs add up to the embedding that shift, scale and gate are computed from anew; None
            takes them as the pass has them.
    """

    index: int
    group: BlockGroup
    layer: SubLayer
    block: nn.Module
    source: nn.Module
    parts: tuple[nn.Module, ...] | None = None

    @property
    def reads_weights(self) -> bool:
        """Whether `assemble` reads weights, when the pass is over."""
        return self.parts is not None or bool([*self.block.get_submodule(self.layer.norm).parameters(False)])

    def points(self) -> list[HookPoint]:
        """What to read: the stream and the modulation, or the embeddings that the modulation comes from."""
        stream = HookPoint((self.index, "stream"), self.block.get_submodule(self.layer.entry), "input", self.layer.read)
        if self.parts is not None:
            return [HookPoint(self._part(i), part, "output", output) for i, part in enumerate(self.parts)] + [stream]
        modulation = self.layer.modulation or self.group.modulation
        return [stream, HookPoint((self.index, "modulation"), self.source, modulation.at, modulation.read)]

    def assemble(
        self, record: dict[Key, Tensor], grid: tuple[int, int], text_lengths: Tensor | None = None
    ) -> TappedBlock:
        """From what was read to the image tokens and their modulation."""
        stream = image_tokens(record[self.index, "stream"], grid[0] * grid[1], self.group.order, text_lengths)
        if self.parts is None:
            chunks = record[self.index, "modulation"]
        else:
            chunks = self.source(F.silu(torch.stack([record[self._part(i)] for i in range(len(self.parts))]).sum(0)))
        chunks = chunks.reshape(len(stream), -1, stream.shape[-1])
        shift, scale, gate = (
            None if chunk is None else chunks[:, chunk]
            for chunk in (self.layer.shift, self.layer.scale, self.layer.gate)
        )
        module = self.block.get_submodule(self.layer.norm)
        shift, scale = fold_norm_weights(module, shift, scale, self.layer.weight_offset)
        # Weights of a norm without a modulation behind it have no row per image.
        shift, scale = (None if x is None else x.expand(len(stream), -1) for x in (shift, scale))
        return TappedBlock(stream, shift, scale, gate, read_norm(module), grid)

    def _part(self, number: int) -> Key:
        return self.index, f"part {number}"


@dataclass(frozen=True, slots=True)
class ProjectionTap:
    """Queries, keys or values of one block of one model, heads side by side.

    Attributes:
        index: Flat block index.
        linear: The layer that computes them.
        norm: The norm of each head, or of all heads together, before the position encoding; None if there is none.
        order: Where the image tokens sit.
        channels: Those of the layer that hold the projection; None if all do.
    """

    index: int
    linear: nn.Module
    norm: nn.Module | None
    order: TokenOrder
    channels: slice | None = None

    def points(self) -> list[HookPoint]:
        """What to read."""
        return [HookPoint((self.index, "projection"), self.linear, "output", self._read)]

    def assemble(
        self, record: dict[Key, Tensor], grid: tuple[int, int], text_lengths: Tensor | None = None
    ) -> TappedBlock:
        """From what was read to the image tokens; there is no modulation."""
        tokens = image_tokens(record[self.index, "projection"], grid[0] * grid[1], self.order, text_lengths)
        return TappedBlock(tokens, None, None, None, Norm(), grid)

    def _read(self, call: Call) -> Tensor:
        projected: Tensor = call.output
        if self.channels is not None:
            projected = projected[..., self.channels]
        if self.norm is None:
            return projected
        # The norm is applied here and not read, because models differ in the layout in which they apply it.
        heads = projected.reshape(*projected.shape[:-1], -1, norm_width(self.norm))
        normed: Tensor = self.norm(heads)
        return normed.flatten(-2)


BlockTap = StreamTap | ProjectionTap


def tap_block(
    transformer: nn.Module, family: Family, index: int, tap: Tap, condition: ModulationCondition = "t+c"
) -> BlockTap:
    """Finds the tap of a block.

    Args:
        transformer: The model.
        family: Its entry.
        index: Flat block index, from 0.
        tap: Where.
        condition: What shift and scale are computed from; the pass itself always has both.

    Raises:
        InputError: The block has no such tap, or the modulation no such part.
    """
    group, position, block = find_block(transformer, family, index)
    check_block_tap(group, index, position, tap)
    if tap in ("query", "key", "value"):
        return _projection(index, block, group, tap, family.width(transformer.config))
    layer = group.attention if tap == "attention" else group.mlp
    assert layer is not None
    modulation = layer.modulation or group.modulation
    source = (transformer if modulation.shared else block).get_submodule(modulation.module)
    parts = None
    if condition != "t+c" and family.parts is not None and family.parts.condition:
        parts = _parts(transformer if family.parts.shared else block, family.parts, condition)
    return StreamTap(index, group, layer, block, source, parts)


def check_block_tap(group: BlockGroup, index: int, position: int, tap: Tap, argument: str = "tap") -> None:
    """Refuses a tap that a block does not have.

    Args:
        group: The kind of the block.
        index: Its flat index, from 0.
        position: Its number among the blocks of that kind.
        tap: The tap.
        argument: What named it.

    Raises:
        InputError: The block has no such tap.
    """
    if tap not in group_taps(group):
        name = f"block {index} ({group.container}[{position}])"
        raise InputError(argument, tap, f"{name} has one AdaLN only, use tap attention")


def group_taps(group: BlockGroup) -> tuple[Tap, ...]:
    """The taps of blocks of one kind."""
    streams: tuple[Tap, ...] = ("attention",) if group.mlp is None else ("attention", "mlp")
    return (*streams, "query", "key", "value")


def modules_of_tap(group: BlockGroup, family: Family, tap: Tap) -> set[str]:
    """Paths, in blocks of one kind, of the modules that a tap reads or calls itself."""
    if tap in ("query", "key", "value"):
        norm = {"query": group.projections.query_norm, "key": group.projections.key_norm}.get(tap)
        return {getattr(group.projections, tap)} | ({norm} if norm else set())
    layer = group.attention if tap == "attention" else group.mlp
    assert layer is not None
    source = layer.modulation or group.modulation
    modulation = set() if source.shared else {source.module}
    parts = family.parts
    embeddings = set() if parts is None or parts.shared else {*parts.time, *parts.condition}
    return ({layer.entry, layer.norm} | modulation | embeddings) - {""}


def modulation_conditions(family: Family) -> tuple[ModulationCondition, ...]:
    """What the modulation of a family can be computed from."""
    if family.parts is None:
        return ("t+c",)
    return ("t+c", "t", "c") if family.parts.condition else ("t+c", "t")


def _parts(start: nn.Module, parts: EmbeddingParts, condition: ModulationCondition) -> tuple[nn.Module, ...]:
    return tuple(
        module for path in (parts.time if condition == "t" else parts.condition) for module in _at(start, path)
    )


def _at(start: nn.Module, path: str) -> Iterator[nn.Module]:
    """The module of a path, or nothing where the model does not have it."""
    try:
        found: Any = start.get_submodule(path)
    except AttributeError:
        return
    if isinstance(found, nn.Module):
        yield found


def _projection(index: int, block: nn.Module, group: BlockGroup, tap: Projection, width: int) -> ProjectionTap:
    """The tap of a projection; `width` is that of the stream."""
    projections = group.projections
    path = {"query": projections.query_norm, "key": projections.key_norm}.get(tap)
    norm = None if path is None else next(_at(block, path), None)
    first = ("query", "key", "value").index(tap) * width
    channels = slice(first, first + width) if projections.fused else None
    linear = block.get_submodule(getattr(projections, tap))
    return ProjectionTap(index, linear, norm, projections.order or group.order, channels)


def norm_width(norm: nn.Module) -> int:
    """The channels that a norm works on."""
    shape: Any = getattr(norm, "normalized_shape", None) or getattr(norm, "dim", None)
    if shape is None:
        raise RuntimeError(f"{type(norm).__name__} does not say how many channels it works on")
    return int(shape if isinstance(shape, int) else shape[-1])


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
        Shift and scale for the same norm without weights, in float32 where it has any.
    """
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    if weight is None and bias is None:
        return shift, scale
    like = scale if scale is not None else shift
    if like is not None:  # an offloaded norm has its weights elsewhere
        weight, bias = (None if x is None else x.to(like.device) for x in (weight, bias))
    weight, bias, shift, scale = (None if x is None else x.float() for x in (weight, bias, shift, scale))
    factor = 1.0 if scale is None else 1 + scale
    if bias is not None:
        shift = bias * factor if shift is None else bias * factor + shift
    if weight is not None:
        scale = (weight + offset) * factor - 1
    return shift, scale
