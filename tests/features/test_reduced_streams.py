"""The bank over a store of coefficients: what is small on disk and in memory, and what comes back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ditf_probe.errors import InputError
from ditf_probe.features.bank import FeatureBank
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.store import FeatureStore, definition_of
from ditf_probe.features.store.basis import Basis, RunningMoments, principal_components
from ditf_probe.features.store.manifest import address_of
from ditf_probe.features.stored import StoredBank

Make = Callable[..., Any]
IDS = [f"image{i}" for i in range(5)]
CANVASES = [(40, 60), (60, 40), (40, 60), (40, 60), (60, 40)]


@pytest.fixture
def extractor(planted: Make) -> FeatureExtractor:
    return FeatureExtractor(planted(massive={2: 300.0}, position=True), blocks=[0, 1], timestep=1, massive_ratio=20.0)


@pytest.fixture
def dataset(given_pairs: Make, make_image: Make) -> Any:
    return given_pairs([make_image(*size, seed) for seed, size in enumerate(CANVASES)])


@pytest.fixture
def plain(extractor: FeatureExtractor, dataset: Any) -> FeatureBank:
    bank = FeatureBank(extractor)
    bank.fill(dataset)
    return bank


def fitted(bank: FeatureBank, count: int) -> Basis:
    running = {index: RunningMoments() for index in (0, 1)}
    for image_id in IDS:
        for index, block in bank.tapped([image_id]).items():
            running[index].add(block.hidden_states)
    blocks = {index: principal_components(found.moments(), count) for index, found in running.items()}
    return Basis(blocks, len(IDS), definition_of(bank.extractor, "float32"))


def stored(extractor: FeatureExtractor, root: Path, basis: Basis | None, dtype: str = "float32", **more: Any) -> Any:
    definition = definition_of(extractor, dtype, basis=None if basis is None else basis.facts())
    store = FeatureStore(root, definition, create=not more.get("only", False))
    return StoredBank(extractor, store, dtype=dtype, basis=basis, **more)


def features_by_hand(plain: FeatureBank, image_id: str, index: int, count: int) -> np.ndarray:
    """AdaLN features `(h * w, C)` of a stream that was cut to its first singular vectors, in float64."""
    rows = np.concatenate([plain.tapped([i])[index].hidden_states[0].double().numpy() for i in IDS])
    mean = rows.mean(0)
    kept = np.linalg.svd(rows - mean, full_matrices=False)[2][:count]
    block = plain.tapped([image_id])[index]
    stream = (block.hidden_states[0].double().numpy() - mean) @ kept.T @ kept + mean
    centred = stream - stream.mean(1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(1, keepdims=True) + block.norm.eps)
    found: np.ndarray = normed * (1 + block.scale[0].double().numpy()) + block.shift[0].double().numpy()
    return found


@pytest.mark.parametrize("count", [2, 4])
def test_features_are_those_of_a_truncated_decomposition(
    plain: FeatureBank, dataset: Any, tmp_path: Path, count: int
) -> None:
    extractor = plain.extractor
    bank = stored(extractor, tmp_path, fitted(plain, count))
    bank.fill(dataset, batch_size=2)
    for image_id in IDS:
        found = extractor.features(bank.tapped([image_id]))
        for index, maps in found.items():
            expected = features_by_hand(plain, image_id, index, count)
            np.testing.assert_allclose(maps[0].flatten(1).T, expected, rtol=2e-3, atol=2e-3)
    whole = extractor.features(plain.tapped(["image0"]))[0]
    assert (extractor.features(bank.tapped(["image0"]))[0] - whole).abs().max() > 1e-2, "something was cut off"


def test_all_components_are_the_whole_stream(plain: FeatureBank, dataset: Any, tmp_path: Path) -> None:
    bank = stored(plain.extractor, tmp_path, fitted(plain, 8))
    bank.fill(dataset)
    for image_id in IDS:
        for index, block in plain.tapped([image_id]).items():
            found = bank.tapped([image_id])[index]
            torch.testing.assert_close(found.hidden_states, block.hidden_states, rtol=1e-5, atol=1e-5 * 300)
            assert torch.equal(found.shift, block.shift)
            assert torch.equal(bank.entry(image_id, index).hidden_states, found.hidden_states)
    plain.extractor.calibrate_tapped(bank.tapped([image_id]) for image_id in IDS)
    assert plain.extractor.calibration.massive_channels == {0: [2], 1: [2]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_disk_and_memory_hold_coefficients(plain: FeatureBank, dataset: Any, tmp_path: Path, dtype: str) -> None:
    """The estimate is what both take: three numbers of a token in place of eight, and whole modulations."""
    extractor, basis = plain.extractor, fitted(plain, 3)
    cold = stored(extractor, tmp_path, basis, dtype)
    cold.fill(dataset)
    size = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    assert cold.estimate(CANVASES) == 2 * 5 * (150 * 3 * size + 3 * 8 * 4) == cold.nbytes
    written = 0
    for path in tmp_path.glob("*/*.safetensors"):
        with safe_open(path, "pt") as opened:
            written += sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118
    assert written == cold.nbytes
    calls = len(extractor.backbone.calls)
    warm = stored(extractor, tmp_path, basis, dtype, only=True)
    warm.fill(dataset)
    assert len(extractor.backbone.calls) == calls
    for ids in (["image0"], ["image3", "image0", "image2"], ["image1", "image4"]):
        for index in (0, 1):
            first, second = (bank.tapped(ids)[index].hidden_states for bank in (cold, warm))
            assert first.dtype == torch.float32
            assert torch.equal(first, second)
            alone = torch.cat([warm.tapped([image_id])[index].hidden_states for image_id in ids])
            assert torch.equal(first, alone), "the same bits whatever shares a batch"
    assert warm.nbytes == cold.nbytes
    images = torch.stack([dataset.image("image2")])
    assert torch.equal(warm.through(images, ["image2"])[1].hidden_states, warm.tapped(["image2"])[1].hidden_states)


def test_another_basis_is_another_store(plain: FeatureBank, dataset: Any, tmp_path: Path) -> None:
    extractor, first, second = plain.extractor, fitted(plain, 3), fitted(plain, 4)
    stored(extractor, tmp_path, first).fill(dataset)
    for other in (second, None):
        with pytest.raises(InputError, match=r"holds no such features, the closest .*basis"):
            stored(extractor, tmp_path, other, only=True)
        calls = len(extractor.backbone.calls)
        stored(extractor, tmp_path, other).fill(dataset)
        assert len(extractor.backbone.calls) > calls
    assert len(list(tmp_path.iterdir())) == 3


def test_without_a_basis_addresses_stay_what_they_were(extractor: FeatureExtractor, plain: FeatureBank) -> None:
    whole = definition_of(extractor, "float32")
    assert "basis" not in whole
    basis = fitted(plain, 3)
    reduced = definition_of(extractor, "float32", basis=basis.facts())
    assert reduced == whole | {"basis": {"components": 3, "sha256": basis.sha256}}
    assert address_of(reduced) != address_of(whole)
