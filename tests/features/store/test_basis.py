"""Bases of raw streams: against a singular value decomposition, and their file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ditf_probe.backbones.base import Norm, TappedBlock
from ditf_probe.errors import InputError
from ditf_probe.features.store.basis import (
    Basis,
    BlockBasis,
    RunningMoments,
    principal_components,
    read_basis,
    write_basis,
)


def tokens_of(seed: int, images: int = 3, tokens: int = 20, channels: int = 7, massive: float = 0.0) -> torch.Tensor:
    """Streams `(images, tokens, channels)` whose channels are correlated, one of them massive."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator)
    found = torch.randn(images, tokens, channels, generator=generator) @ mixing
    found[..., seed % channels] += massive * (1 + 0.01 * torch.randn(images, tokens, generator=generator))
    return found


def fitted(batches: list[torch.Tensor], count: int) -> BlockBasis:
    running = RunningMoments()
    for batch in batches:
        running.add(batch)
    return principal_components(running.moments(), count)


def basis_of(seed: int = 0, count: int = 3, blocks: tuple[int, ...] = (1, 4)) -> Basis:
    found = {index: fitted([tokens_of(seed + index)], count) for index in blocks}
    return Basis(found, 3, {"timestep": 100, "dtype": "float32"})


def by_hand(stream: torch.Tensor, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, components and singular values of all tokens at once, without a covariance."""
    rows = stream.flatten(0, -2).double().numpy()
    mean = rows.mean(0)
    _, values, components = np.linalg.svd(rows - mean, full_matrices=False)
    for component in components:
        if component[np.abs(component).argmax()] < 0:
            component *= -1
    return mean, components[:count], values


@pytest.mark.parametrize("massive", [0.0, 1000.0])
def test_components_are_those_of_a_singular_value_decomposition(massive: float) -> None:
    """100 random cases, batches of unequal size, with and without a massive channel."""
    for seed in range(100):
        stream, count = tokens_of(seed, massive=massive), 1 + seed % 7
        mean, components, values = by_hand(stream, count)
        found = fitted([stream[:1], stream[1, :5], stream[1, 5:], stream[2:]], count)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.components, components, rtol=1e-4, atol=1e-4)
        assert found.explained == pytest.approx((values[:count] ** 2).sum() / (values**2).sum(), abs=1e-6)
        assert found.tokens == 60
        gram = found.components.double() @ found.components.double().T
        torch.testing.assert_close(gram, torch.eye(count, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("massive", [0.0, 1000.0])
def test_all_components_give_the_stream_back(massive: float) -> None:
    for seed in range(20):
        stream = tokens_of(seed, massive=massive)
        found = fitted([stream], 7)
        other = tokens_of(seed, images=1, tokens=5, massive=massive)
        for given in (stream, other, stream.reshape(3, 4, 5, 7)):
            back = found.stream(found.coefficients(given))
            assert back.shape == given.shape
            torch.testing.assert_close(back, given, rtol=1e-5, atol=1e-5 * float(given.abs().max()))


def test_a_massive_channel_survives_few_components() -> None:
    stream = tokens_of(2, images=10, massive=1000.0)
    found = fitted([stream], 1)
    back = found.stream(found.coefficients(stream))
    error, spread = (back - stream)[..., 2], stream[..., 2].std()
    assert error.abs().max() < 0.1 * spread
    assert found.components[0, 2] > 0.9


def test_several_timesteps_and_half_precision() -> None:
    """A stream with one more axis is reduced token by token; coefficients in bfloat16 give a float32 stream."""
    basis = basis_of(count=7)
    stream = torch.stack([tokens_of(1), tokens_of(2)], 1)
    block = TappedBlock(stream, None, None, None, Norm(), (4, 5))
    reduced = basis.reduced({1: block})[1]
    assert reduced.hidden_states.shape == (3, 2, 20, 7)
    torch.testing.assert_close(basis.restored(1, reduced).hidden_states, stream, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(basis.reduced({1: block})[1].hidden_states, reduced.hidden_states)
    half = reduced.map(lambda x: x.bfloat16())
    assert basis.restored(1, half).hidden_states.dtype == torch.float32


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(InputError, match="no tokens"):
        RunningMoments().moments()
    with pytest.raises(InputError, match="`components` is 8: use 1 to 7"):
        fitted([tokens_of(0)], 8)
    with pytest.raises(InputError, match="cannot be told from 5 tokens"):
        fitted([tokens_of(0, images=1, tokens=5)], 5)
    with pytest.raises(InputError, match="not finite"):
        fitted([torch.full((1, 9, 3), float("inf"))], 2)
    assert fitted([torch.ones(1, 9, 3)], 2).explained == 1.0, "nothing varies"


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    basis = basis_of()
    write_basis(tmp_path / "basis.safetensors", basis)
    found = read_basis(tmp_path / "basis.safetensors")
    assert (found.images, found.definition, found.sha256) == (3, basis.definition, basis.sha256)
    assert list(found.blocks) == [1, 4]
    for index, block in found.blocks.items():
        expected = basis.blocks[index]
        assert torch.equal(block.mean, expected.mean)
        assert torch.equal(block.components, expected.components)
        assert (block.tokens, block.explained) == (expected.tokens, expected.explained)
    assert sorted(load_file(tmp_path / "basis.safetensors")) == ["1.components", "1.mean", "4.components", "4.mean"]
    assert [path.name for path in tmp_path.iterdir()] == ["basis.safetensors"]
    assert len({basis.sha256, basis_of(1).sha256, basis_of(count=2).sha256, basis_of(blocks=(1,)).sha256}) == 4


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "basis.safetensors"
    with pytest.raises(InputError, match=r"`store_basis` is .*: no such file"):
        read_basis(file)
    write_basis(file, basis_of())
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["ditf_probe_basis"])
    for damaged in (whole[:-40], b"", whole[:8], bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"`store_basis` is .*basis\.safetensors.*damaged"):
            read_basis(file)
    tensors: dict[str, Any] = {f"1.{name}": x for name, x in (("mean", torch.ones(2)), ("components", torch.eye(2)))}
    for metadata in (None, {"ditf_probe_basis": json.dumps(header)}):
        save_file(tensors, file, metadata)
        with pytest.raises(InputError, match="no basis"):
            read_basis(file)


def test_other_streams_are_refused() -> None:
    basis = basis_of()
    same = {"timestep": 100, "dtype": "bfloat16", "modulation_condition": "t"}
    basis.check("here", same, {4: 7, 1: 7})
    for definition, widths, words in (
        (same, {2: 7}, "is of blocks 1, 4 and lacks 2"),
        (same, {1: 7, 4: 9}, "is of 7 channels of block 4, which has 9 here"),
        ({"timestep": 200}, {1: 7}, "was fitted to other features: timestep .100 there, 200 here."),
    ):
        with pytest.raises(InputError, match=f"`store_basis` is 'here': {words}"):
            basis.check("here", definition, widths)
