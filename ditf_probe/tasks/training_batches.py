"""What heads are trained on: a batch of pairs with the streams that they need of its images, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.data.crops import View, cropped_views, whole_views
from ditf_probe.data.pairs import Pair
from ditf_probe.geometry import Size
from ditf_probe.tasks.source_cells import SourceCells, padded, surrounding_cells
from ditf_probe.tasks.streams import Stream


@dataclass(frozen=True)
class ImageGroup:
    """Images whose maps have one shape.

    Attributes:
        images: Which images of the batch.
        searched: Whether they are targets; the others are sources alone.
        tapped: Block index to the streams `(B, N, C)` and modulations of these images.
    """

    images: list[int]
    searched: bool
    tapped: dict[int, TappedBlock]


@dataclass(frozen=True)
class TrainingBatch:
    """Pairs and the streams of their images.

    Attributes:
        pairs: The pairs; where there are crops, with what is annotated in them.
        views: The images whose maps are needed, each once.
        groups: Their streams.
        sources: Which of `views` the source of each pair is; empty where no head needs maps of sources.
        targets: Which of `views` the target of each pair is.
        cells: The cells around the keypoints of the sources, where a head needs these alone.
        images: Image id to prepared image `(3, H, W)`, where the step itself runs the backbone and the groups are empty
            until then; see `tasks.adapted_data`.
    """

    pairs: list[Pair]
    views: list[View]
    groups: list[ImageGroup]
    sources: list[int]
    targets: list[int]
    cells: SourceCells | None = None
    images: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> "TrainingBatch":
        """The same with its tensors on a device; from pinned memory without waiting."""

        def moved(tapped: Mapping[int, TappedBlock]) -> dict[int, TappedBlock]:
            return {index: block.map(lambda x: x.to(device, non_blocking=True)) for index, block in tapped.items()}

        groups = [replace(group, tapped=moved(group.tapped)) for group in self.groups]
        cells = None if self.cells is None else replace(self.cells, tapped=moved(self.cells.tapped))
        images = {name: image.to(device, non_blocking=True) for name, image in self.images.items()}
        return replace(self, groups=groups, cells=cells, images=images)


@dataclass(frozen=True)
class BatchReader:
    """Reads the streams of a batch of pairs from a bank into memory that is copied to a device quickly.

    It may be called in a thread. Of mapped files nothing is read but what is asked for.

    Attributes:
        stream: Where the images are.
        blocks: Blocks of all heads, whose maps of targets are needed.
        source_blocks: Those of the heads that need maps of sources.
        cell_blocks: Those of the heads that need the cells around the keypoints of sources alone.
        crop: Least share of the height and width of a map that random crops keep; 1 crops nothing.
        seed: Of the crops.
        device: Where the batch will be used; memory is pinned for CUDA.
    """

    stream: Stream
    blocks: Sequence[int]
    source_blocks: Sequence[int]
    cell_blocks: Sequence[int] = ()
    crop: float = 1.0
    seed: int = 0
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))

    def __call__(self, pairs: list[Pair], draw: tuple[int, ...] = ()) -> TrainingBatch:
        """A batch with its streams.

        Args:
            pairs: Their images must be in the bank.
            draw: What the crops of this batch are drawn from, beside the seed.
        """
        if self.device.type != "cuda":
            return self._read(pairs, draw)
        with torch.cuda.device(self.device):  # every thread begins with the first device, and would pin memory for it
            return self._read(pairs, draw)

    def _read(self, pairs: list[Pair], draw: tuple[int, ...]) -> TrainingBatch:
        ends = self._views(pairs, draw)
        seen = [replace(p, source=a.side, target=b.side) for p, (a, b) in zip(pairs, ends, strict=True)]
        views: dict[str | int, int] = {}
        wanted = [target for _, target in ends] + ([source for source, _ in ends] if self.source_blocks else [])
        # Parts of one image differ from pair to pair.
        keys: list[str | int] = [
            view.side.image_id if view.window is None else place for place, view in enumerate(wanted)
        ]
        for key in keys:
            views.setdefault(key, len(views))
        unique = [wanted[keys.index(key)] for key in views]
        numbers = [views[key] for key in keys]
        sources, targets = numbers[len(pairs) :], numbers[: len(pairs)]
        cells = self._cells([source for source, _ in ends], seen) if self.cell_blocks else None
        return TrainingBatch(seen, unique, self._groups(unique, set(targets)), sources, targets, cells)

    def _views(self, pairs: list[Pair], draw: tuple[int, ...]) -> list[tuple[View, View]]:
        extractor = self.stream.extractor
        if self.crop == 1:
            return whole_views(pairs, extractor.transform)
        stride = max(extractor.backbone.stride_at(block) for block in self.blocks)
        rng = np.random.default_rng([self.seed, *draw])
        return cropped_views(pairs, extractor.transform, stride, self.crop, rng)

    def _groups(self, views: Sequence[View], targets: set[int]) -> list[ImageGroup]:
        """Images whose maps have one shape, those that are only sources apart."""
        members: dict[object, list[int]] = {}
        for number, view in enumerate(views):
            shape = view.transform.canvas if view.window is None else (view.window.height, view.window.width)
            members.setdefault((view.window is None, shape, number in targets), []).append(number)
        groups = []
        for images in members.values():
            searched, chosen = images[0] in targets, [views[i] for i in images]
            blocks = self.blocks if searched else self.source_blocks
            groups.append(ImageGroup(images, searched, self._tapped(chosen, blocks)))
        return groups

    def _tapped(self, views: Sequence[View], blocks: Sequence[int]) -> dict[int, TappedBlock]:
        return {block: self._maps(views, block) for block in blocks}

    def _maps(self, views: Sequence[View], block: int) -> TappedBlock:
        parts = [shown(self.stream.bank.entry(view.side.image_id, block), view) for view in views]
        return TappedBlock.join(parts, self._joined)

    def _cells(self, views: Sequence[View], pairs: Sequence[Pair]) -> SourceCells:
        tapped, cells, grids = {}, {}, {}
        for block in self.cell_blocks:
            parts = [self.stream.bank.entry(view.side.image_id, block) for view in views]
            tokens = [view.tokens(part.grid) for view, part in zip(views, parts, strict=True)]
            grids[block] = [(shown.shape[0], shown.shape[1]) for shown in tokens]
            cells[block] = [
                surrounding_cells(pair.source.keypoints[pair.visible], pair.source.size, grid)
                for pair, grid in zip(pairs, grids[block], strict=True)
            ]
            chosen = padded([shown.flatten()[own] for shown, own in zip(tokens, cells[block], strict=True)])
            row = (1, len(chosen[0]))
            some = [_selected(part, own, row) for part, own in zip(parts, chosen, strict=True)]
            tapped[block] = TappedBlock.join(some, self._joined)
        return SourceCells(tapped, cells, grids)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        if self.device.type != "cuda":
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        return torch.cat(parts, out=torch.empty(shape, dtype=parts[0].dtype, pin_memory=True))


def shown(block: TappedBlock, view: View) -> TappedBlock:
    """What a view shows of one image."""
    if view.window is None:
        return block
    tokens = view.tokens(block.grid)
    return _selected(block, tokens.flatten().to(block.hidden_states.device), (tokens.shape[0], tokens.shape[1]))


def _selected(block: TappedBlock, tokens: Tensor, grid: Size) -> TappedBlock:
    """Some tokens of one image, as a grid of their own."""
    return replace(block, hidden_states=block.hidden_states.index_select(-2, tokens), grid=grid)
