"""Heads on the features of real backbones learn by every loss: on warped photos, without a label, and on drawings."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ditf_probe.backbones.loading import load_backbone
from ditf_probe.data.pairs import Pair, PairDataset
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.data.warped import WarpedPhotos
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.losses import (
    CycleConsistency,
    DenseContrast,
    Extras,
    GaussianCrossEntropy,
    KeypointContrast,
    Objective,
    OptimalTransport,
    SelfDistillation,
    SoftArgmaxRegression,
)
from ditf_probe.matching import match_keypoints
from ditf_probe.probes import LinearProbe

BLOCK = 3
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "keypoints": KeypointContrast,
    "dense": DenseContrast,
    "gaussian": GaussianCrossEntropy,
    "soft": lambda: SoftArgmaxRegression("softargmax"),
    "window": lambda: SoftArgmaxRegression(units="image", measure="smooth_l1", beta=0.1),
    "kernel": lambda: SoftArgmaxRegression("kernel_softargmax"),
    "transport": lambda: OptimalTransport(capacity=2.0),
    "cycle": CycleConsistency,
    "distillation": SelfDistillation,
}


@dataclass
class Batch:
    pairs: list[Pair]
    sources: list[Tensor]
    targets: list[Tensor]

    def maps(self, head: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """Descriptors of both sides."""
        return tuple([head({BLOCK: one[None]})[0] for one in side] for side in (self.sources, self.targets))


def batch_of(data: PairDataset) -> Batch:
    extractor = FeatureExtractor(load_backbone("ditf-tiny"), blocks=[BLOCK], timestep=100, image_size=64)
    pairs = [data[index] for index in range(len(data))]
    sides = [
        [
            extractor(extractor.prepare(data.image(side.image_id))[None], [side.image_id])[BLOCK][0]
            for side in (getattr(pair, name) for pair in pairs)
        ]
        for name in ("source", "target")
    ]
    return Batch(pairs, *sides)


@pytest.fixture(scope="module", params=["warped photos", "drawings"])
def batch(request: pytest.FixtureRequest) -> Batch:
    if request.param == "drawings":
        return batch_of(SyntheticPairs("train", 4, 64))
    return batch_of(WarpedPhotos(num_pairs=3, image_size=96))


def head_of(batch: Batch) -> LinearProbe:
    torch.manual_seed(0)
    return LinearProbe(batch.sources[0].shape[0], [BLOCK], width=24)


def train(head: nn.Module, objective: Objective, batch: Batch, steps: int) -> list[float]:
    optimiser = torch.optim.Adam([*head.parameters(), *objective.parameters()], lr=3e-3)
    losses = []
    for _ in range(steps):
        torch.manual_seed(0)  # the same cells are drawn
        total, _ = objective(*batch.maps(head), batch.pairs, Extras(batch.sources, batch.targets))
        losses.append(float(total.detach()))
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return losses


@pytest.mark.parametrize("name", LOSSES)
def test_a_head_learns_by_each_loss(batch: Batch, name: str) -> None:
    losses = train(head_of(batch), Objective({name: LOSSES[name]()}), batch, 16)
    assert losses[-1] < 0.85 * losses[0]


def error(head: nn.Module, batch: Batch) -> float:
    """Mean distance of matches from partners, in parts of the longer side."""
    errors = []
    with torch.no_grad():
        for source, target, pair in zip(*batch.maps(head), batch.pairs, strict=True):
            sizes = pair.source.size, pair.target.size
            found, _ = match_keypoints(source, target, pair.source.keypoints, *sizes, visible=pair.visible)
            errors.append((found - pair.target.keypoints)[pair.visible].norm(dim=1) / max(pair.target.size))
    return float(torch.cat(errors).mean())


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("cycle", "distillation")])
def test_matches_come_closer_by_the_losses_that_know_the_partner(batch: Batch, name: str) -> None:
    head = head_of(batch)
    before = error(head, batch)
    train(head, Objective({name: LOSSES[name]()}), batch, 16)
    assert error(head, batch) < 0.9 * before


def test_distillation_keeps_a_head_near_the_features(batch: Batch) -> None:
    free = head_of(batch)
    held = copy.deepcopy(free)
    contrast = {"contrast": DenseContrast()}
    train(free, Objective(contrast), batch, 16)
    train(held, Objective({"contrast": DenseContrast(), "keep": SelfDistillation()}, {"keep": 5.0}), batch, 16)
    extras = Extras(batch.sources, batch.targets)
    strayed = [float(SelfDistillation()(*batch.maps(head), batch.pairs, extras).detach()) for head in (free, held)]
    assert strayed[1] < 0.7 * strayed[0]
