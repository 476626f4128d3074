"""A gate learns by heart what a gate can learn: to close channels that drown the others."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from numpy.typing import NDArray
from torch import Tensor

from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.packing import pack_patches
from ditf_probe.backbones.spec import tiny_spec
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.comparison.summary import summarise
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.modulation import find_massive_channels
from ditf_probe.probes import ChannelGate, load_probe
from ditf_probe.tasks import CorrespondenceTask, ProbeTask
from ditf_probe.tasks.settings import BackboneFeatures

PATCH, CELLS, WIDTH = 4, 16, 32
MASSIVE = (5, 11, 30)
SIZE = (CELLS * PATCH, CELLS * PATCH)


class Moved(PairDataset):
    """Two windows of one random pattern, by at least three cells apart; nothing in it is finer than two pixels."""

    name = "moved"
    unit = "pattern"
    threshold = "image"

    def __init__(self, num_pairs: int) -> None:
        self.num_pairs = num_pairs

    def __len__(self) -> int:
        return self.num_pairs

    def _moves(self, index: int) -> NDArray[np.int64]:
        return np.random.default_rng(index).choice([-5, -4, -3, 3, 4, 5], 2)

    def __getitem__(self, index: int) -> Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        cells = np.random.default_rng([index, 1]).integers(5, CELLS - 5, (10, 2))
        points = torch.from_numpy(cells * PATCH + (PATCH - 1) / 2).float()  # the centres of cells
        visible, box = torch.ones(len(points), dtype=torch.bool), torch.tensor([0.0, 0.0, SIZE[1] - 1, SIZE[0] - 1])
        move = torch.from_numpy(self._moves(index) * PATCH).float()
        source = Side(f"{self.name}/{index}/0", SIZE, points, visible, box)
        target = Side(f"{self.name}/{index}/1", SIZE, points - move, visible, box)
        return Pair(index, "pattern", str(index), source, target)

    def image(self, image_id: str) -> Tensor:
        _, index, side = image_id.split("/")
        rng = np.random.default_rng([int(index), 2])
        coarse = rng.integers(0, 256, (2 * (CELLS + 10), 2 * (CELLS + 10), 3), dtype=np.uint8)
        pattern = coarse.repeat(PATCH // 2, axis=0).repeat(PATCH // 2, axis=1)
        x, y = 5 * PATCH + (self._moves(int(index)) * PATCH if side == "1" else np.zeros(2, dtype=int))
        return torch.from_numpy(pattern[y : y + SIZE[0], x : x + SIZE[1]].transpose(2, 0, 1).copy())


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    """A diffusion transformer that hands its patches on, three channels far larger than the others.

    Those three see the finest differences alone, in which these images have none: they carry the noise.
    """
    spec = tiny_spec("flux", ["a"], width=WIDTH, head_dim=8, blocks=2, double_blocks=2, patch=PATCH)
    denoiser = TinyDenoiser.untrained(spec, seed=0)
    denoiser.zero_initialise()  # the gates, so that no block adds anything
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (len(MASSIVE), 3, PATCH // 2, PATCH // 2), generator=generator) * 2.0 - 1
    chequers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(PATCH // 2, PATCH // 2)
    finest = signs.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) * chequers
    with torch.no_grad():
        denoiser.transformer.x_embedder.weight[list(MASSIVE)] = 100 * pack_patches(finest, PATCH)[:, 0]
    path = tmp_path / "massive.safetensors"
    denoiser.save(path)
    return str(path)


def test_a_gate_learns_eight_pairs_by_heart_by_closing_the_channels_that_drown_them(
    backbone: str, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    """From a PCK@0.10 near that of guessing to 100 within 200 steps."""
    features = BackboneFeatures(blocks=[1], timestep=100, image_size=SIZE[0], modulation="none", backbone=backbone)
    pairs = Moved(8)
    images = torch.stack([pairs.image(name) for name in pairs.image_ids()]) / 255
    stream = FeatureExtractor(load_backbone(backbone), blocks=[1], timestep=100, image_size=None, modulation="none")
    assert find_massive_channels(stream(images)[1].flatten(2).mT) == list(MASSIVE)
    task = ProbeTask(features, {"gate": ChannelGate}, run_dir=str(tmp_path), weight_decay=0.0, learning_rate=2e-2)
    done = EarlyStopping(monitor="val/pck", mode="max", stopping_threshold=99.99, patience=200)
    fit = trainer(max_steps=200, callbacks=[done], check_val_every_n_epoch=20, num_sanity_val_steps=0)
    fit.fit(task, PairDataModule(pairs, pairs, batch_size=8))
    assert task.best["gate"] == 100.0
    assert fit.global_step <= 200
    folder = tmp_path / "probes" / "gate"
    test = CorrespondenceTask(features, rows=["raw"], probe_folders=[str(folder)], run_dir=str(tmp_path / "test"))
    trainer().test(test, PairDataModule(test={"moved": pairs}), verbose=False)
    raw, gate = summarise(test.result())["datasets"]["moved"]["rows"]
    assert raw["pck"]["per_point"]["0.10"] < 10
    assert gate["pck"]["per_point"]["0.10"] == 100
    head, _ = load_probe(folder)
    assert isinstance(head, ChannelGate)
    assert head.closed()[1].closed == list(MASSIVE)
