"""What of a block runs before one of its taps has been read, seen in a pass of the very small model of its class.

Modules have one order in all models of a class; what a larger one has beside is taken to be needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import nn

from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.base import Tap
from ditf_probe.backbones.block_taps import group_taps, modules_of_tap, tap_block
from ditf_probe.backbones.families import FAMILIES, BlockGroup, Family, ModelInputs
from ditf_probe.backbones.latents import LatentSpace
from ditf_probe.backbones.taps import containers, recording
from ditf_probe.conditions import prompt_embeddings

_GRID = (2, 2)


@dataclass(frozen=True, slots=True)
class Order:
    """Modules of blocks of one kind, by their path in the block, at the moment at which a tap has been read.

    Attributes:
        whole: Those that had run to their end in any of the blocks, and those that the tap itself reads.
        entered: Those that were running.
        known: All.
    """

    whole: frozenset[str]
    entered: frozenset[str]
    known: frozenset[str]

    def superfluous(self, block: nn.Module, path: str = "") -> Iterator[str]:
        """Paths of the modules of a block, each as large as can be, that have not begun to run by then.

        Args:
            block: A block of that kind, or a module in it.
            path: Its path with a dot behind, "" for the block.
        """
        for name, child in block.named_children():
            here = f"{path}{name}"
            if here in self.whole or here not in self.known:
                continue
            if here in self.entered or any(seen.startswith(f"{here}.") for seen in self.whole | self.entered):
                yield from self.superfluous(child, f"{here}.")
            else:
                yield here


@cache
def running_order(name: str, container: str, tap: Tap) -> Order:
    """What runs before a tap in blocks of one kind.

    Args:
        name: A diffusers class with an entry.
        container: Path of the list of blocks.
        tap: One that these blocks have.
    """
    family = FAMILIES[name]
    transformer, space = _very_small(name)
    whole, entered, known, first = set(), set(), set(), 0
    for group, blocks in containers(transformer, family):
        for index, block in enumerate(blocks, start=first):
            if group.container == container:
                begun, ended = _seen(transformer, family, space, index, block, tap)
                whole |= ended
                entered |= begun
                known |= {path for path, _ in block.named_modules()}
        if group.container == container:
            whole |= modules_of_tap(group, family, tap)
        first += len(blocks)
    return Order(frozenset(whole), frozenset(entered - whole), frozenset(known))


def loaded_taps(block: nn.Module, name: str, group: BlockGroup, absent: type[nn.Module]) -> tuple[Tap, ...]:
    """The taps that a block has although modules of it were left out.

    Args:
        block: The block.
        name: The diffusers class of its transformer.
        group: The kind of the block.
        absent: The class that stands in the place of what was left out.
    """
    missing = {path for path, module in block.named_modules() if isinstance(module, absent)}
    if not missing:
        return group_taps(group)
    found = []
    for tap in group_taps(group):
        superfluous = tuple(f"{path}." for path in running_order(name, group.container, tap).superfluous(block))
        if all(f"{path}.".startswith(superfluous) for path in missing):
            found.append(tap)
    return tuple(found)


@lru_cache(maxsize=1)
def _very_small(name: str) -> tuple[nn.Module, LatentSpace]:
    """The model of a class that its entry describes for tests, and the space of its latents."""
    import diffusers  # slow to import

    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        transformer = getattr(diffusers, name)(**family.tiny).eval()
        return transformer, LatentSpace(getattr(diffusers, family.vae)(**AUTOENCODERS[family.vae].tiny))


@torch.no_grad()
def _seen(
    transformer: nn.Module, family: Family, space: LatentSpace, index: int, block: nn.Module, tap: Tap
) -> tuple[set[str], set[str]]:
    """Paths in a block of the modules that have begun, and of those that have ended, when its tap has been read."""
    begun: set[str] = set()
    ended: set[str] = set()
    handles = [module.register_forward_pre_hook(partial(_note, begun, path)) for path, module in block.named_modules()]
    handles += [module.register_forward_hook(partial(_note, ended, path)) for path, module in block.named_modules()]
    try:
        with recording(tap_block(transformer, family, index, tap).points()):
            transformer(**family.call(_inputs(transformer, family, space)), return_dict=False)
    finally:
        for handle in handles:
            handle.remove()
    return begun, ended


def _note(paths: set[str], path: str, *_: object) -> None:
    paths.add(path)


def _inputs(transformer: nn.Module, family: Family, space: LatentSpace) -> ModelInputs:
    """An empty image under the null condition."""
    config: Any = transformer.config
    patch = family.patch(config, space.channels)
    height, width = (patch * side for side in _GRID)
    label = torch.zeros(1, dtype=torch.int64)
    return ModelInputs(
        latents=torch.zeros(1, space.channels, height, width),
        time=torch.tensor([family.time(500)]),
        condition=label if family.text is None else prompt_embeddings(None, 1, family.text(config)),
        grid=_GRID,
        patch=patch,
        guidance=1.0 if config.get("guidance_embeds") else None,
        size=(height * space.stride, width * space.stride),
        config=config,
    )
