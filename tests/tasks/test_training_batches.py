"""What heads are given in training: exactly what a loss asks for, and the same numbers as from whole maps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone, TappedBlock
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.pairs import Pair, Side
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.geometry import grid_coordinates
from ditf_probe.losses import DenseContrast, KeypointContrast
from ditf_probe.matching import sample_descriptors
from ditf_probe.probes import LayerAggregation, LinearProbe
from ditf_probe.tasks.descriptors import Describer, Ends, cells_suffice
from ditf_probe.tasks.models import make_stream
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.source_cells import surrounding_cells
from ditf_probe.tasks.streams import Stream
from ditf_probe.tasks.training_batches import BatchReader, TrainingBatch
from ditf_probe.tasks.training_data import TrainingData

SIZES = [(20, 40), (32, 32), (40, 20), (24, 30)]
BLOCKS = {"linear": [1], "mix": [0, 2]}


class Photos:
    """Four photos of three shapes."""

    name = "photos"

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        return {f"photo {number}": size for number, size in enumerate(SIZES)}

    def image(self, image_id: str) -> Tensor:
        number = int(image_id.split()[1])
        generator = torch.Generator().manual_seed(number)
        return torch.randint(0, 256, (3, *SIZES[number]), generator=generator, dtype=torch.uint8)


def pairs_of(seed: int, count: int = 5) -> list[Pair]:
    rng = np.random.default_rng(seed)
    pairs = []
    for index in range(count):
        ends = []
        for number in rng.integers(0, len(SIZES), 2):
            size = SIZES[number]
            points = torch.tensor(rng.uniform(-0.5, [size[1] - 0.5, size[0] - 0.5], (4, 2)), dtype=torch.float32)
            visible = torch.tensor(rng.random(4) < 0.7)
            box = torch.tensor([0.0, 0.0, size[1] - 1.0, size[0] - 1.0])
            ends.append(Side(f"photo {number}", size, points, visible, box))
        pairs.append(Pair(index, "thing", str(index), ends[0], ends[1]))
    return pairs


def stream_of(features: BackboneFeatures) -> Stream:
    tapped = replace(features, tap="attention")  # the one tap of block 2
    stream = make_stream(load_backbone(features.backbone, device="cpu"), tapped, [0, 1, 2])
    stream.open(Photos())
    return stream


def heads_of() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"linear": LinearProbe(16, [1], width=8), "mix": LayerAggregation(16, [0, 2], width=6)}


def slow_map(stream: Stream, head: nn.Module, blocks: Sequence[int], side: Side) -> Tensor:
    """One image, one head, the whole map."""
    return stream.crop(head(stream.maps([side], blocks))[0], side)


def slow_points(descriptors: Tensor, side: Side, visible: Tensor) -> Tensor:
    return sample_descriptors(descriptors, side.keypoints[visible], side.size)


RESIZES = ["stretch", "keep_aspect", "pad"]


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("seed", range(5))
def test_whole_maps_are_those_of_single_images(features: BackboneFeatures, resize: Any, seed: int) -> None:
    stream, heads, pairs = stream_of(replace(features, resize=resize)), heads_of(), pairs_of(seed)
    batch = BatchReader(stream, [0, 1, 2], [0, 1, 2])(pairs)
    ids = [view.side.image_id for view in batch.views]
    assert len(ids) == len(set(ids)), "no image is read twice"
    found = Describer(stream, BLOCKS, set())(batch, heads)
    for name, head in heads.items():
        for maps, sides in zip(found[name], ([p.source for p in pairs], [p.target for p in pairs]), strict=True):
            for one, side in zip(maps, sides, strict=True):
                torch.testing.assert_close(one, slow_map(stream, head, BLOCKS[name], side), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("seed", range(10))
def test_cells_give_the_descriptors_of_whole_maps(features: BackboneFeatures, resize: Any, seed: int) -> None:
    """Values and gradients, against the whole map of every source."""
    stream, heads, pairs = stream_of(replace(features, resize=resize)), heads_of(), pairs_of(seed)
    batch = BatchReader(stream, [0, 1, 2], [], [0, 1, 2])(pairs)
    assert batch.sources == []
    assert {view.side.image_id for view in batch.views} == {pair.target.image_id for pair in pairs}
    found = Describer(stream, BLOCKS, set(heads))(batch, heads)
    for name, head in heads.items():
        weights = torch.Generator().manual_seed(seed)
        gradients, totals = [], []
        for lean in (True, False):
            total = torch.zeros(())
            for number, pair in enumerate(pairs):
                sparse = found[name][0][number]
                maps = sparse if lean else slow_map(stream, head, BLOCKS[name], pair.source)
                points = slow_points(maps, pair.source, pair.visible)
                weights.manual_seed(number)
                total = total + (points * torch.randn(points.shape, generator=weights)).sum()
                if lean:
                    cells = surrounding_cells(pair.source.keypoints[pair.visible], pair.source.size, sparse.shape[1:])
                    assert set((sparse.flatten(1) != 0).any(0).nonzero()[:, 0].tolist()) <= set(cells.tolist())
            head.zero_grad()
            total.backward(retain_graph=True)
            totals.append(total.detach())
            gradients.append([p.grad.clone() for p in head.parameters() if p.grad is not None])
        torch.testing.assert_close(*totals, atol=1e-4, rtol=1e-4)
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_cells_are_those_that_an_interpolation_reads() -> None:
    """200 random cases against the definition: the cells whose removal changes a bilinear sample."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = (int(x) for x in rng.integers(1, 7, 2))
        size = (int(rng.integers(8, 60)), int(rng.integers(8, 60)))
        points = torch.tensor(rng.uniform(-0.5, [size[1] - 0.5, size[0] - 0.5], (3, 2)), dtype=torch.float32)
        read = set()
        for x, y in grid_coordinates(points.double(), size, (height, width)).tolist():
            for row in range(height):
                for column in range(width):
                    across = max(0.0, 1 - abs(min(max(x, 0), width - 1) - column))
                    along = max(0.0, 1 - abs(min(max(y, 0), height - 1) - row))
                    if across * along > 1e-6:
                        read.add(row * width + column)
        found = surrounding_cells(points, size, (height, width)).tolist()
        assert read <= set(found)
        assert found == sorted(set(found))
        assert len(found) <= 12
    assert surrounding_cells(torch.zeros(0, 2), (8, 8), (4, 4)).tolist() == [0]


def rows_read(batch: TrainingBatch) -> dict[str, int]:
    """Tokens of one block that were copied for the whole maps, and for the cells."""
    whole = sum(group.tapped[1].hidden_states[..., 0].numel() for group in batch.groups)
    return {"maps": whole, "cells": 0 if batch.cells is None else batch.cells.tapped[1].hidden_states[..., 0].numel()}


def test_no_more_is_read_than_is_asked_for(features: BackboneFeatures) -> None:
    stream = stream_of(features)
    (pair,) = pairs_of(0, 1)
    pair = replace(
        pair, target=replace(pair.target, image_id="photo 1"), source=replace(pair.source, image_id="photo 0")
    )
    assert rows_read(BatchReader(stream, [1], [1])([pair])) == {"maps": 2 * 64, "cells": 0}
    lean = rows_read(BatchReader(stream, [1], [], [1])([pair]))
    assert lean["maps"] == 64
    assert 0 < lean["cells"] <= 4 * int(pair.visible.sum())
    both = BatchReader(stream, [0, 1], [1], [0])([pair])
    assert [(group.searched, list(group.tapped)) for group in both.groups] == [(True, [0, 1]), (False, [1])]
    assert both.cells is not None
    assert list(both.cells.tapped) == [0]


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("by_cells", [False, True])
def test_crops_are_parts_of_the_whole_map(features: BackboneFeatures, resize: Any, by_cells: bool) -> None:
    stream, heads, pairs = stream_of(replace(features, resize=resize)), heads_of(), pairs_of(3, 8)
    every = [0, 1, 2]
    reader = BatchReader(stream, every, [] if by_cells else every, every if by_cells else [], crop=0.4, seed=7)
    batch = reader(pairs, (0, 1))
    found = Describer(stream, BLOCKS, set(heads) if by_cells else set())(batch, heads)
    assert [pair.target.size for pair in batch.pairs] == [p.target.size for p in reader(pairs, (0, 1)).pairs]
    areas = [pair.target.size for pair in batch.pairs] + [pair.target.size for pair in reader(pairs, (0, 2)).pairs]
    assert len(set(areas)) > 1
    for name, head in heads.items():
        sources, targets = found[name]
        for number, (pair, seen) in enumerate(zip(pairs, batch.pairs, strict=True)):
            maps = zip(
                (sources[number], targets[number]), (pair.source, pair.target), (seen.source, seen.target), strict=True
            )
            for one, side, part in maps:
                whole = slow_map(stream, head, BLOCKS[name], side)
                assert one.shape[1] <= whole.shape[1]
                # What is annotated has the same descriptor in the part as in the whole, unless the edge is near.
                visible = part.visible & seen.visible
                places = grid_coordinates(part.keypoints, part.size, one.shape[1:])
                limit = torch.tensor([one.shape[2] - 1.0, one.shape[1] - 1.0])
                visible &= ((places > 0) & (places < limit)).all(dim=1)
                a, b = (slow_points(m, s, visible) for m, s in ((one, part), (whole, side)))
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_features_are_handed_over_in_bfloat16_block_by_block(
    features: BackboneFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, pairs = stream_of(features), pairs_of(1)
    batch = BatchReader(stream, [0, 1, 2], [0, 1, 2])(pairs)
    made: list[list[int]] = []
    original = stream.extractor.features

    def noted(tapped: dict[int, TappedBlock], **options: Any) -> dict[int, Tensor]:
        made.append(list(tapped))
        return original(tapped, **options)

    monkeypatch.setattr(stream.extractor, "features", noted)
    seen: list[tuple[type, dict[int, torch.dtype]]] = []

    class Spy(LinearProbe):
        def forward(self, features: Mapping[int, Tensor]) -> Tensor:
            seen.append((type(features), {block: maps.dtype for block, maps in features.items()}))
            return super().forward({block: maps.float() for block, maps in features.items()})

    heads = {"one": Spy(16, [0, 2]), "two": Spy(16, [2, 1])}
    Describer(stream, {"one": [0, 2], "two": [2, 1]}, set(), torch.bfloat16)(batch, heads)
    groups = len(batch.groups)
    assert sorted(made) == sorted([[0], [1], [2]] * groups), "each block once, and alone"
    assert len(seen) == 2 * groups
    assert all(kind is dict and set(dtypes.values()) == {torch.bfloat16} for kind, dtypes in seen)
    assert {tuple(dtypes) for _, dtypes in seen} == {(0, 2), (2, 1)}


def test_zero_shot_maps_are_those_of_the_extractor(features: BackboneFeatures) -> None:
    stream, pairs = stream_of(replace(features, resize="pad")), pairs_of(2)
    batch = BatchReader(stream, [1, 2], [1, 2])(pairs)
    found: Ends = Describer(stream, {}, set()).zero_shot(batch, 1)
    for maps, sides in zip(found, ([p.source for p in pairs], [p.target for p in pairs]), strict=True):
        for one, side in zip(maps, sides, strict=True):
            torch.testing.assert_close(one, stream.crop(stream.maps([side], [1])[1][0], side))


class OneWay(KeypointContrast):
    """Keypoints of the sources searched on the targets only."""

    needs = frozenset({"source_points", "target_points", "target_maps"})


class Context(LinearProbe):
    pointwise = False


class Apart(LinearProbe):
    pointwise = True


def test_what_suffices(features: BackboneFeatures) -> None:
    assert cells_suffice(Apart(4, [0]), OneWay(), features, [4])
    assert cells_suffice(Apart(4, [0, 1]), OneWay(), features, [4, 4])
    assert not cells_suffice(Context(4, [0]), OneWay(), features, [4])
    assert not cells_suffice(nn.Conv2d(4, 4, 1), OneWay(), features, [4])
    assert not cells_suffice(Apart(4, [0]), KeypointContrast(), features, [4])
    assert not cells_suffice(Apart(4, [0]), OneWay(), replace(features, position_debias="mean"), [4])
    assert not cells_suffice(Apart(4, [0, 1]), OneWay(), features, [4, 8])


def test_a_head_over_blocks_of_two_grids_is_given_maps() -> None:
    """It brings them to one grid between cells, which the cells around a keypoint alone could not tell."""
    levels: dict[str, Any] = {"down_block_types": 3 * ["DownBlock2D"], "up_block_types": 3 * ["UpBlock2D"]}
    levels |= {"block_out_channels": 3 * [16], "layers_per_block": 1, "norm_num_groups": 4, "mid_block_type": None}
    torch.manual_seed(0)
    backbone = Backbone.from_model(UNet2DConditionModel(in_channels=3, **levels))
    assert [backbone.stride_at(block) for block in (0, 1)] == [2, 1]
    settings = BackboneFeatures(blocks=[1], timestep=100, image_size=16, modulation="none")
    data, dataset = TrainingData(settings, crop=1.0, ahead=0), SyntheticPairs("train", 2, 32)
    pairs = PairDataModule(dataset, dataset, batch_size=2)
    data.serve(pairs)
    heads = {"both": LinearProbe(16, [0, 1], width=8), "fine": LinearProbe(16, [1], width=8)}
    blocks = {name: head.blocks for name, head in heads.items()}
    losses = {name: DenseContrast(symmetric=False) for name in heads}
    data.open(backbone, blocks, heads, losses, torch.float32)
    batch = next(iter(pairs.train_dataloader()))
    found = data.describe(batch, heads)
    for number, pair in enumerate(batch.pairs):
        for name, head in heads.items():
            whole = slow_map(data.stream, head, blocks[name], pair.source)
            a, b = (slow_points(maps, pair.source, pair.visible) for maps in (found[name][0][number], whole))
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_store_is_read_where_it_lies(features: BackboneFeatures, tmp_path: Path) -> None:
    """From a store, with memory for one image, the batch is the same bit by bit."""
    pairs = pairs_of(4)
    kept = replace(features, store=str(tmp_path / "store"), bank_gib=1e-5)
    stream_of(kept)
    batches = [BatchReader(stream_of(x), [1], [1], [1])(pairs) for x in (features, kept)]
    for one, other in zip(batches[0].groups, batches[1].groups, strict=True):
        assert torch.equal(one.tapped[1].hidden_states, other.tapped[1].hidden_states)
    cells = [batch.cells for batch in batches]
    assert cells[0] is not None
    assert cells[1] is not None
    assert torch.equal(cells[0].tapped[1].hidden_states, cells[1].tapped[1].hidden_states)
