"""Streams that follow from their key, so that a test knows what every entry must be."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ditf_probe.backbones.base import Norm, TappedBlock
from ditf_probe.features.store import FeatureStore

DEFINITION: dict[str, Any] = {
    "code": 1,
    "backbone": {"class": "Planted", "weights_sha256": "ab" * 32, "config": {"layers": 3}},
    "timestep": 100,
    "dtype": "float32",
}


class Streams:
    """Blocks of an entry by its number: two image tokens high, three wide, five channels."""

    size, grid, channels = (8, 12), (2, 3), 5

    def block(self, numbers: Sequence[int], index: int, dtype: torch.dtype = torch.float32) -> TappedBlock:
        def drawn(purpose: int, *shape: int) -> torch.Tensor:
            return torch.stack([
                torch.randn(shape, generator=torch.Generator().manual_seed(1000 * number + 10 * index + purpose))
                for number in numbers
            ])  # fmt: skip

        tokens = self.grid[0] * self.grid[1]
        modulations = [drawn(purpose, self.channels) for purpose in (1, 2)]
        stream = drawn(0, tokens, self.channels).to(dtype)
        return TappedBlock(stream, *modulations, None, Norm("rms_norm", 1e-5), self.grid)

    def blocks(self, numbers: Sequence[int], indices: Sequence[int] = (3,), **options: Any) -> dict[int, TappedBlock]:
        return {index: self.block(numbers, index, **options) for index in indices}

    def write(self, store: FeatureStore, numbers: Sequence[int], indices: Sequence[int] = (3,)) -> None:
        store.write([f"image{n}" for n in numbers], [self.size] * len(numbers), self.blocks(numbers, indices))

    def check(self, store: FeatureStore, numbers: Sequence[int], indices: Sequence[int] = (3,)) -> None:
        for number in numbers:
            found, expected = store.read(f"image{number}", indices), self.blocks([number], indices)
            assert list(found) == list(indices)
            for index in indices:
                for name in ("hidden_states", "shift", "scale"):
                    assert torch.equal(getattr(found[index], name), getattr(expected[index], name))
                assert found[index].gate is None
                assert (found[index].norm, found[index].grid) == (expected[index].norm, expected[index].grid)


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
def definition() -> dict[str, Any]:
    return {**DEFINITION, "backbone": {**DEFINITION["backbone"], "config": {"layers": 3}}}


@pytest.fixture
def store(tmp_path: Path, definition: dict[str, Any]) -> FeatureStore:
    return FeatureStore(tmp_path / "stores", definition, "planted")
