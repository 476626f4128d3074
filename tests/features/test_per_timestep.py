"""Features of each timestep beside their mean."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ditf_probe.backbones.base import Norm, TappedBlock
from ditf_probe.features.batches import with_ids
from ditf_probe.features.extractor import FeatureExtractor

Make = Callable[..., object]
RECIPES = [
    ("none", "pre_norm"),
    ("layer_norm", "none"),
    ("adaln", "none"),
    ("adaln", "pre_norm"),
    ("adaln", "post_adaln"),
]


def tapped_at(steps: int) -> TappedBlock:
    """Two images of 2 x 3 tokens, another stream and modulation at each timestep."""
    generator = torch.Generator().manual_seed(0)
    stream = torch.randn(2, steps, 6, 8, generator=generator)
    shift, scale = torch.randn(2, 2, steps, 8, generator=generator)
    return TappedBlock(stream, shift, scale, None, Norm(), (2, 3))


def step_of(block: TappedBlock, step: int) -> TappedBlock:
    return block.map(lambda x: x[:, step])


@pytest.mark.parametrize(("modulation", "discard"), RECIPES)
def test_each_timestep_has_the_features_that_it_has_alone_and_their_mean_is_the_mean(
    planted: Make, modulation: str, discard: str
) -> None:
    extractor = FeatureExtractor(planted(), blocks=[1], timestep=[10, 20, 30], massive_channels=[2, 5])
    recipe = {"modulation": modulation, "discard": discard}
    block = tapped_at(3)
    found = extractor.features({1: block}, **recipe, per_timestep=True)[1]
    assert found.shape == (2, 3, 8, 2, 3)
    for step in range(3):
        alone = extractor.features({1: step_of(block, step)}, **recipe)[1]
        torch.testing.assert_close(found[:, step], alone)
    assert torch.equal(found.mean(1), extractor.features({1: block}, **recipe)[1])


def test_one_timestep_is_an_axis_of_one(planted: Make) -> None:
    extractor = FeatureExtractor(planted(), blocks=[1], timestep=10)
    block = step_of(tapped_at(1), 0)
    found = extractor.features({1: block}, per_timestep=True)[1]
    assert torch.equal(found, extractor.features({1: block})[1][:, None])


@pytest.mark.parametrize("debias", ["mean", "svd"])
def test_debias_takes_the_same_from_every_timestep(planted: Make, debias: str) -> None:
    extractor = FeatureExtractor(
        planted(position=True), blocks=[1], timestep=10, position_debias=debias, debias_components=2
    )
    extractor.calibrate(torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(1)))
    block = replace(tapped_at(3), norm=Norm(eps=1e-5))
    found = extractor.features({1: block}, per_timestep=True)[1]
    alone = torch.stack([extractor.features({1: step_of(block, step)})[1] for step in range(3)], 1)
    torch.testing.assert_close(found, alone)
    torch.testing.assert_close(found.mean(1), extractor.features({1: block})[1])
    plain = extractor.features({1: block}, position_debias="none", per_timestep=True)[1]
    assert float((found - plain).abs().max()) > 0.1  # there was something to take


def test_batches_get_their_part_of_the_ids() -> None:
    batches: list[Tensor] = [torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4)]
    assert [ids for _, ids in with_ids(batches, ["a", "b", "c"])] == [["a", "b"], ["c"]]
    assert [ids for _, ids in with_ids(batches, None)] == [None, None]
