"""Extraction with a transformer that two ranks divide: the same entries, each written once, in equally many passes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image

from ditf_probe.backbones.diffusion import DiffusionBackbone
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.data.image_module import ImageModule
from ditf_probe.data.photo_folder import PhotoFolder
from ditf_probe.errors import InputError
from ditf_probe.features.loading import in_step
from ditf_probe.features.store import FeatureStore
from ditf_probe.features.store.basis import read_basis
from ditf_probe.features.store.manifest import read_manifest
from ditf_probe.tasks import ExtractionTask
from ditf_probe.tasks.bases import BasisSettings
from ditf_probe.tasks.settings import BackboneFeatures

Trainer = Callable[..., L.Trainer]


@pytest.fixture
def photos(tmp_path: Path) -> PhotoFolder:
    """Five photos of two sizes, so that ranks have batches of different length and number."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(32, 24), (24, 32), (32, 24), (32, 24), (32, 24)]):
        pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return PhotoFolder(str(folder))


@pytest.fixture
def settings(features: BackboneFeatures, weights: Path, tmp_path: Path) -> BackboneFeatures:
    """The transformer of the small backbone as a diffusers folder."""
    TinyDenoiser.load(weights).transformer.save_pretrained(tmp_path / "transformer")
    chosen = replace(features, backbone=str(tmp_path / "transformer"), blocks=[0, 2], tap="attention", image_size=None)
    return replace(chosen, ensemble=3, batch_size=2, options={"max_batch": 4}, num_workers=0)


def _process(settings: BackboneFeatures, photos: PhotoFolder, folder: Path, basis: BasisSettings | None) -> None:
    passes: list[int] = []
    run = DiffusionBackbone._run

    def counted(self: Any, taps: Any, batch: Any, draws: range) -> Any:
        passes.append(len(batch) * len(draws))
        assert type(self.transformer).__name__.startswith("FSDP")
        return run(self, taps, batch, draws)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionBackbone, "_run", counted)
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(accelerator="cpu", strategy="ddp", devices=2, enable_checkpointing=False, **quiet)
        task = ExtractionTask(settings, shard_model=True, basis=basis)
        trainer.predict(task, ImageModule({"photos": photos}))
        found = {"passes": passes, "computed": task.result()[0].computed}
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))


@pytest.fixture
def divided_extraction(
    on_two_ranks: Callable[..., None], photos: PhotoFolder, tmp_path: Path
) -> Callable[..., list[dict[str, Any]]]:
    """Extracts on two ranks that divide the model, and returns what each has done."""

    def run(settings: BackboneFeatures, basis: BasisSettings | None = None) -> list[dict[str, Any]]:
        on_two_ranks(_process, settings, photos, tmp_path, basis)
        return [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]

    return run


def opened(root: Path) -> FeatureStore:
    (folder,) = root.iterdir()
    return FeatureStore(folder, read_manifest(folder)["definition"], create=False)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_divided_model_fills_the_same_store(
    settings: BackboneFeatures,
    photos: PhotoFolder,
    trainer: Trainer,
    tmp_path: Path,
    divided_extraction: Callable[..., list[dict[str, Any]]],
    dtype: str,
) -> None:
    settings = replace(settings, dtype=dtype)
    whole, divided = (replace(settings, store=str(tmp_path / name)) for name in ("whole", "divided"))
    trainer().predict(ExtractionTask(whole), ImageModule({"photos": photos}))
    first, second = divided_extraction(divided)
    assert len(first["passes"]) == len(second["passes"]) > 0
    assert first["computed"] == second["computed"] == 5
    one, two = opened(tmp_path / "whole"), opened(tmp_path / "divided")
    assert one.folder.name == two.folder.name, "how it was computed is no part of the definition"
    written = [
        key
        for file in two.folder.glob("*.jsonl")
        for line in file.read_text().splitlines()
        for key in json.loads(line)["keys"]
    ]
    assert sorted(written) == sorted(one.entries()), "each image once"
    for key in one.entries():
        a, b = one.read(key, settings.blocks), two.read(key, settings.blocks)
        for block in settings.blocks:
            for name in ("hidden_states", "shift", "scale", "gate"):
                x, y = getattr(a[block], name), getattr(b[block], name)
                torch.testing.assert_close(x, y, rtol=0, atol=1e-6 if dtype == "float32" else 0.05)
    again = divided_extraction(divided)
    assert [rank["passes"] for rank in again] == [[], []]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_divided_model_fits_the_same_basis(
    settings: BackboneFeatures,
    photos: PhotoFolder,
    trainer: Trainer,
    tmp_path: Path,
    divided_extraction: Callable[..., list[dict[str, Any]]],
) -> None:
    whole, divided = (replace(settings, store=str(tmp_path / name)) for name in ("whole", "divided"))
    asked = BasisSettings(components=5, images=3)
    trainer().predict(ExtractionTask(whole, basis=asked), ImageModule({"photos": photos}))
    first, second = divided_extraction(divided, asked)
    assert len(first["passes"]) == len(second["passes"]) > 0
    assert first["computed"] == second["computed"] == 5
    files = [next((tmp_path / name).glob("basis-*")) for name in ("whole", "divided")]
    assert files[0].name == files[1].name
    one, two = map(read_basis, files)
    for index in (0, 2):
        torch.testing.assert_close(one.blocks[index].mean, two.blocks[index].mean, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.blocks[index].components, two.blocks[index].components, rtol=0, atol=1e-3)
    again = divided_extraction(divided, asked)
    assert [rank["passes"] for rank in again] == [[], []]


def test_refusals(settings: BackboneFeatures, photos: PhotoFolder, trainer: Trainer, tmp_path: Path) -> None:
    settings = replace(settings, store=str(tmp_path / "store"))
    with pytest.raises(InputError, match="untrained"):
        ExtractionTask(settings, shard_model=True, untrained=True)
    with pytest.raises(InputError, match="single rank has nothing to divide"):
        trainer().predict(ExtractionTask(settings, shard_model=True), ImageModule({"photos": photos}))


def test_ranks_stay_in_step() -> None:
    divided = [[["a", "b"], ["c"]], [["d"], ["e", "f"], ["g"]], []]
    found = [in_step(divided, rank) for rank in range(3)]
    assert found[0] == ([["a", "b"], ["c"], ["g"]], [2, 1, 0])
    assert found[1] == ([["e", "f"], ["d"], ["g"]], [2, 1, 1])
    assert found[2] == ([["a", "a"], ["c"], ["g"]], [0, 0, 0])
    assert in_step([[], []], 0) == ([], [])
