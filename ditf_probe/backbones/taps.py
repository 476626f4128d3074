"""Reading the stream before an AdaLN with ordinary hooks, and stopping the pass once everything is read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ditf_probe.backbones.families import BlockGroup, Call, Family

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


@contextmanager
def gathered(transformer: Any, blocks: Sequence[Any]) -> Iterator[None]:
    """Has the weights of blocks at hand in the body, also of a transformer that FSDP divides over ranks.

    There, it ends the pass as well, which `recording` may have left before FSDP saw its end: weights that are whole
    become parts again. Nothing happens to a model that is whole.

    Args:
        transformer: The model, right after a pass.
        blocks: Those whose weights the body reads; with any, it may also read what is around the blocks.
    """
    divided = hasattr(transformer, "unshard")
    try:
        for module in (*blocks, transformer) if divided and blocks else ():
            module.unshard()
        yield
    finally:
        if divided:
            transformer.reset_iter_state()


def _register(point: HookPoint, see: Callable[[HookPoint, Call], None]) -> RemovableHandle:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(point, Call(module, args, kwargs))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        see(point, Call(module, args, kwargs, output))

    if point.at == "input":
        return point.module.register_forward_pre_hook(before, with_kwargs=True)
    return point.module.register_forward_hook(after, with_kwargs=True)


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
