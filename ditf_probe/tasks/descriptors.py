"""From the streams of a training batch to the descriptor maps of every head."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.probes import takes_timesteps
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.streams import Stream
from ditf_probe.tasks.training_batches import TrainingBatch

Ends = tuple[list[Tensor], list[Tensor]]
"""Maps `(D, h, w)` of the sources and of the targets of a batch of pairs."""


@dataclass(frozen=True)
class Describer:
    """Makes features once for all heads, and descriptors with each.

    Attributes:
        stream: How features are made.
        blocks: Name of each head to its blocks.
        by_cells: Names of the heads that are given the cells around the keypoints of the sources, not their maps.
        dtype: In which features are handed over. They are made in float32, one block after the other, and heads get
            them as a mapping, so that no two blocks ever stand in float32 or in one tensor.
    """

    stream: Stream
    blocks: Mapping[str, list[int]]
    by_cells: Collection[str]
    dtype: torch.dtype = torch.float32

    def __call__(self, batch: TrainingBatch, heads: Mapping[str, nn.Module]) -> dict[str, Ends]:
        """Descriptor maps of sources and targets, by head; each covers the image, or the crop of it."""
        maps: dict[str, dict[int, Tensor]] = {name: {} for name in heads}
        for group in batch.groups:
            given = _Features(self, group.tapped)
            for name, head in heads.items():
                if group.searched or name not in self.by_cells:
                    found = head(given.of(name, head)).unbind()
                    maps[name] |= {i: batch.views[i].crop(one) for i, one in zip(group.images, found, strict=True)}
        sources = {name: [maps[name][i] for i in batch.sources] for name in heads if name not in self.by_cells}
        if batch.cells is not None:
            given = _Features(self, batch.cells.tapped)
            for name in self.by_cells:
                descriptors = heads[name](given.of(name, heads[name]))
                sources[name] = batch.cells.maps(descriptors, self.blocks[name][0])
        return {name: (sources[name], [maps[name][i] for i in batch.targets]) for name in heads}

    def zero_shot(self, batch: TrainingBatch, block: int) -> Ends:
        """The features of one block of sources and targets, which the zero-shot row matches: `(C, h, w)` each."""
        maps: dict[int, Tensor] = {}
        for group in batch.groups:
            found = self.stream.extractor.features({block: group.tapped[block]})[block].unbind()
            maps |= {i: batch.views[i].crop(one) for i, one in zip(group.images, found, strict=True)}
        return [maps[i] for i in batch.sources], [maps[i] for i in batch.targets]


class _Features:
    """The features of some images, each block made when a head first asks for it."""

    def __init__(self, describer: Describer, tapped: Mapping[int, TappedBlock]) -> None:
        self._describer, self._tapped = describer, tapped
        self._made: dict[tuple[int, bool], Tensor] = {}

    def of(self, name: str, head: nn.Module) -> dict[int, Tensor]:
        """Block index to features, `(B, C, h, w)`, or `(B, T, C, h, w)` for a head that says `per_timestep`."""
        apart = takes_timesteps(head)
        return {block: self._block(block, apart) for block in self._describer.blocks[name]}

    def _block(self, block: int, apart: bool) -> Tensor:
        if (block, apart) not in self._made:
            make = self._describer.stream.extractor.features
            found = make({block: self._tapped[block]}, per_timestep=apart)
            self._made[block, apart] = found[block].to(self._describer.dtype)
        return self._made[block, apart]


def cells_suffice(head: nn.Module, loss: nn.Module, features: BackboneFeatures, strides: Collection[int]) -> bool:
    """Whether of a source nothing is needed but the cells around its keypoints.

    Args:
        head: Says by `pointwise` that it looks at every cell apart.
        loss: Says by `needs`, a set of words, what it looks at: "source_maps" are whole maps of sources. All of them
            where it says nothing.
        features: A debias by position needs to know where cells are.
        strides: Those of the blocks of the head. Where they differ, a head interpolates between cells.
    """
    apart = bool(getattr(head, "pointwise", False)) and features.position_debias == "none" and len(set(strides)) == 1
    return apart and "source_maps" not in getattr(loss, "needs", ("source_maps",))
