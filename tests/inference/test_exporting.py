"""A head as a program of its own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ditf_probe.errors import InputError
from ditf_probe.inference.exporting import FACTS, export_head
from ditf_probe.probes import LayerAggregation, LinearProbe


def maps(batch: int, grid: tuple[int, int], count: int = 2) -> tuple[Tensor, ...]:
    return tuple(torch.randn(batch, 6, *grid) for _ in range(count))


@pytest.mark.parametrize("kind", [LinearProbe, LayerAggregation])
def test_a_program_gives_the_numbers_of_the_head(kind: type[LinearProbe | LayerAggregation], tmp_path: Path) -> None:
    head, path = kind(6, [1, 4], width=5), tmp_path / "head.pt2"
    export_head(head, [4, 1], path)
    facts = {FACTS: ""}
    program = torch.export.load(path, extra_files=facts).module()
    assert json.loads(facts[FACTS]) == {"blocks": [4, 1], "shape": [6], "grid": None, "head": kind.__name__}
    for batch, grid in ((1, (3, 3)), (5, (16, 2)), (2, (1, 9))):
        four, one = maps(batch, grid)
        torch.testing.assert_close(program((four, one)), head({1: one, 4: four}), atol=1e-6, rtol=1e-5)
    assert head.training
    assert all(parameter.requires_grad for parameter in head.parameters())


class Fixed(nn.Module):
    """A head with a weight per position."""

    def __init__(self, channels: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.channels, self.blocks = channels, list(blocks)
        self.position = nn.Parameter(torch.randn(6, 3, 4))

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        return features[self.blocks[0]] * self.position


def test_a_head_of_one_grid(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Fixed.*cannot follow it, give the grid"):
        export_head(Fixed(6, [1]), [1], tmp_path / "head.pt2")
    assert not list(tmp_path.iterdir())
    head = Fixed(6, [1])
    export_head(head, [1], tmp_path / "head.pt2", grid=(3, 4))
    (one,) = maps(3, (3, 4), 1)
    assert torch.equal(torch.export.load(tmp_path / "head.pt2").module()((one,)), head({1: one}))


def test_maps_of_two_grids_are_brought_to_one_first(tmp_path: Path) -> None:
    head = LayerAggregation(6, [1, 4], width=5).eval()
    export_head(head, [1, 4], tmp_path / "head.pt2")
    program = torch.export.load(tmp_path / "head.pt2").module()
    (coarse,), (fine,) = maps(2, (3, 4), 1), maps(2, (6, 8), 1)
    with pytest.raises(AssertionError, match="Guard failed"):
        program((coarse, fine))
    enlarged = nn.functional.interpolate(coarse, (6, 8), mode="bilinear")
    torch.testing.assert_close(program((enlarged, fine)), head({1: coarse, 4: fine}), atol=1e-6, rtol=1e-5)


class OverTime(nn.Module):
    """The last timestep less the first."""

    per_timestep, num_timesteps = True, 3

    def __init__(self, channels: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.channels, self.blocks = channels, list(blocks)

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        maps = features[self.blocks[0]]
        return maps[:, 2] - maps[:, 0]


def test_a_head_over_timesteps(tmp_path: Path) -> None:
    export_head(OverTime(6, [1]), [1], tmp_path / "head.pt2")
    facts = {FACTS: ""}
    program = torch.export.load(tmp_path / "head.pt2", extra_files=facts).module()
    assert json.loads(facts[FACTS])["shape"] == [3, 6]
    maps = torch.randn(4, 3, 6, 8, 2)
    assert torch.equal(program((maps,)), maps[:, 2] - maps[:, 0])


class Restless(LinearProbe):
    """A head that never says the same twice."""

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        found = super().forward(features)
        return found + torch.rand_like(found)


def test_a_program_with_other_numbers_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Restless.*program differs by"):
        export_head(Restless(6, [1]), [1], tmp_path / "head.pt2")
    assert not list(tmp_path.iterdir())


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"path.*\.pt2"):
        export_head(LinearProbe(6, [1]), [1], tmp_path / "head.onnx")
    with pytest.raises(InputError, match="grid"):
        export_head(LinearProbe(6, [1]), [1], tmp_path / "head.pt2", grid=(0, 4))
    with pytest.raises(InputError, match=r"features.*needs block 2"):
        export_head(LinearProbe(6, [1, 2]), [1], tmp_path / "head.pt2")
    assert not list(tmp_path.iterdir())
