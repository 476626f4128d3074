"""A head as a `torch.export` program, for programs that do not have this project."""

import copy
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ditf_probe.errors import InputError
from ditf_probe.files import replacing
from ditf_probe.probes import lora_of, takes_timesteps

FACTS = "ditf_probe.json"
_TOLERANCE = 1e-5


class _OverTuple(nn.Module):
    """A head over a tuple of maps in place of a mapping."""

    def __init__(self, head: nn.Module, blocks: Sequence[int]) -> None:
        super().__init__()
        self.head, self.blocks = head, tuple(blocks)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        found: Tensor = self.head(dict(zip(self.blocks, maps, strict=True)))
        return found


def export_head(head: nn.Module, blocks: Sequence[int], path: str | Path, grid: tuple[int, int] | None = None) -> None:
    """Writes a head as a `torch.export` program.

    The program takes one tuple of maps, `(B, C, h, w)` float32 of each block in the given order, or `(B, T, C, h, w)`
    for heads over timesteps, and returns `(B, D, h, w)`. Its extra file `ditf_probe.json` names the blocks and the
    axes between batch and grid. Before the file gets its name, the program is read back and compared with the head
    itself on batches and grids other than that of the export.

    All maps of a call have one grid, which the program checks. Of blocks on several grids, such as the up blocks of a
    UNet, enlarge the maps to the finest grid first, bilinearly with `align_corners=False`: so the head does by itself.

    Args:
        head: A head of `channels` over some blocks; exported from a copy on the CPU.
        blocks: The order of the maps.
        path: A file that ends in `.pt2`.
        grid: (h, w) of the maps where it is fixed; None allows any. The batch may always be of any size.

    Raises:
        InputError: Another ending, a grid without cells, blocks that are not those of the head, a head with adapters in
            its backbone, one that `torch.export` cannot follow for any grid, or one whose program gives other numbers.
    """
    target = Path(path)
    if target.suffix != ".pt2":
        raise InputError("path", str(path), "name a file that ends in .pt2")
    if (lora := lora_of(head)) is not None:
        remedy = f"it takes the features of a backbone with {lora.words}, which its program would not have: use it here"
        raise InputError("head", type(head).__name__, remedy)
    if grid is not None and min(grid) < 1:
        raise InputError("grid", grid, "give (height, width) in cells, or None for any")
    module = _OverTuple(copy.deepcopy(head).to("cpu", torch.float32).eval().requires_grad_(False), blocks)
    shape = _shape(head)
    facts = {"blocks": list(blocks), "shape": list(shape), "grid": grid, "head": type(head).__qualname__}
    with replacing(target) as temporary:
        buffer = io.BytesIO()
        torch.export.save(_program(module, shape, grid), buffer, extra_files={FACTS: json.dumps(facts)})
        temporary.write_bytes(buffer.getvalue())
        _check(module, torch.export.load(io.BytesIO(temporary.read_bytes())), shape, grid)


def _program(module: _OverTuple, shape: tuple[int, ...], grid: tuple[int, int] | None) -> ExportedProgram:
    maps = _maps(len(module.blocks), shape, 2, grid or (5, 7))
    dims: dict[int, Any] = {0: Dim("batch")}
    if grid is None:
        dims |= {len(shape) + 1: Dim("height"), len(shape) + 2: Dim("width")}
    try:
        return torch.export.export(module, (maps,), dynamic_shapes=(tuple(dims for _ in maps),), strict=False)
    except InputError:
        raise  # by the head, of a block or width that it is not given
    except Exception as error:  # torch raises several kinds, some of them private
        reason = " ".join(str(error).split())[:200]
        remedy = "give the grid of your images" if grid is None else "use the head in Python"
        raise InputError(
            "head", type(module.head).__name__, f"torch.export cannot follow it, {remedy} ({reason})"
        ) from error


def _check(module: _OverTuple, program: ExportedProgram, shape: tuple[int, ...], grid: tuple[int, int] | None) -> None:
    again = program.module()
    for number, (batch, size) in enumerate(((1, (4, 6)), (3, (9, 8)))):
        maps = _maps(len(module.blocks), shape, batch, grid or size, seed=number + 1)
        with torch.no_grad():
            expected, found = module(maps), again(maps)
        error = float((expected - found).abs().max() / expected.abs().max().clamp_min(1e-12))
        if not error <= _TOLERANCE:
            remedy = f"its program differs by {error:.1e} of the largest value, use the head in Python"
            raise InputError("head", type(module.head).__name__, remedy)


def _shape(head: nn.Module) -> tuple[int, ...]:
    """What a map of a head has between batch and grid: its channels, or timesteps and channels."""
    given: Any = head
    return (given.num_timesteps, given.channels) if takes_timesteps(head) else (given.channels,)


def _maps(count: int, shape: tuple[int, ...], batch: int, grid: tuple[int, int], seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *shape, *grid, generator=generator) for _ in range(count))
