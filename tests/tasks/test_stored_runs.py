"""Runs over a feature store find what runs without one find, bit for bit, and a second run computes nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ditf_probe.backbones import known_hashes
from ditf_probe.backbones.diffusion import DiffusionBackbone
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.comparison.predictions_files import write_predictions
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.image_module import ImageModule
from ditf_probe.errors import InputError
from ditf_probe.metrics.predictions import COLUMNS
from ditf_probe.probes import LinearProbe
from ditf_probe.tasks import CorrespondenceTask, ExtractionTask, ProbeTask, models
from ditf_probe.tasks.settings import BackboneFeatures

ROWS = ["raw", "adaln+discard_post", "adaln+debias", "rgb", "untrained"]
Trainer = Callable[..., L.Trainer]


def record(patch: pytest.MonkeyPatch) -> list[str]:
    """Every image that a diffusion backbone is given, with the name of the backbone."""
    seen: list[str] = []
    forward = DiffusionBackbone.forward

    def recorded(self: Any, images: torch.Tensor, **arguments: Any) -> Any:
        seen.extend(f"{self.name} {image_id}" for image_id in arguments["image_ids"])
        return forward(self, images, **arguments)

    patch.setattr(DiffusionBackbone, "forward", recorded)
    return seen


def compare(features: BackboneFeatures, pairs: PairDataModule, trainer: Trainer, run_dir: Path, **options: Any) -> Any:
    task = CorrespondenceTask(features, ROWS, run_dir=str(run_dir), **options)
    trainer().test(task, pairs, verbose=False)
    return task.result()


def assert_equal(first: Any, second: Any) -> None:
    assert first.settings == second.settings
    for one, two in zip(first.datasets, second.datasets, strict=True):
        for a, b in zip(one.rows, two.rows, strict=True):
            assert a.name == b.name
            for name in COLUMNS:
                np.testing.assert_array_equal(getattr(a.predictions, name), getattr(b.predictions, name))


def test_a_comparison_is_the_same_with_a_store(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cold and warm, with memory for all images or for one or two."""
    passes = record(monkeypatch)
    plain = compare(features, pairs, trainer, tmp_path)
    for gib in (4.0, 1e-5):
        kept = replace(features, store=str(tmp_path / f"store{gib}"), bank_gib=gib)
        before = len(passes)
        assert_equal(plain, compare(kept, pairs, trainer, tmp_path))
        assert len(passes) > before
        before = len(passes)
        assert_equal(plain, compare(kept, pairs, trainer, tmp_path))
        assert_equal(plain, compare(replace(kept, store_only=True), pairs, trainer, tmp_path))
        assert len(passes) == before, "a warm store runs no model"
        folders = list((tmp_path / f"store{gib}").iterdir())
        names = {path.name.rpartition("-")[0] for path in folders}
        assert len(folders) == 3, "the model, its untrained control, and colours"
        assert names == {"FluxTransformer2DModel", "rgb-patches"}


def test_training_is_the_same_with_a_store(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Trainer, tmp_path: Path
) -> None:
    weights = []
    for store in (None, "store", "store"):
        torch.manual_seed(0)
        chosen = replace(features, store=store and str(tmp_path / store), bank_gib=1e-5 if store else 4.0)
        linear: Any = {"linear": lambda channels, blocks: LinearProbe(channels, blocks, width=4)}
        task = ProbeTask(chosen, linear, run_dir=str(tmp_path / "run"))
        trainer(max_epochs=2, num_sanity_val_steps=0).fit(task, pairs)
        weights.append(task.probes.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], value) for name, value in other.items())


def test_a_store_that_lacks_images_is_one_line(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Trainer, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    with pytest.raises(InputError, match="holds no store"):
        compare(replace(features, store=store, store_only=True), pairs, trainer, tmp_path)
    compare(replace(features, store=store), pairs, trainer, tmp_path)
    with pytest.raises(
        InputError, match=r"holds no such features, the closest are .*: timestep \(200 there, 300 here\)"
    ):
        compare(replace(features, store=store, timestep=300, store_only=True), pairs, trainer, tmp_path)


@pytest.fixture
def folder(weights: Path, tmp_path: Path) -> Path:
    """The transformer of the small backbone as a diffusers folder, without its class embedding."""
    folder = tmp_path / "transformer"
    TinyDenoiser.load(weights).transformer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_over_a_full_store_no_weights_are_loaded(
    features: BackboneFeatures, folder: Path, pairs: PairDataModule, trainer: Trainer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, kind: str,
) -> None:  # fmt: skip
    """Neither those of the model, nor, to tell stores apart, their hash; until the weights are others."""
    monkeypatch.setenv("DITF_PROBE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known_hashes, "SMALLEST", 1)
    monkeypatch.setattr(known_hashes, "_SETTLED", -1.0)
    file = tmp_path / "small.safetensors"
    file.write_bytes(Path(features.backbone).read_bytes())
    kept = replace(features, backbone=str(file), store=str(tmp_path / "store"))
    if kind == "folder":
        kept, file = replace(kept, backbone=str(folder)), folder / "diffusion_pytorch_model.safetensors"
    loads, hashed = count_loads(monkeypatch)
    first = compare(kept, pairs, trainer, tmp_path)
    assert len(loads) == 1
    assert hashed == [file]
    second = compare(kept, pairs, trainer, tmp_path)
    assert_equal(first, second)
    assert len(loads) == 1, "the second run has loaded nothing"
    assert hashed == [file], "nor read the weights for their hash"
    task = ExtractionTask(kept, untrained=True)
    sources = {name: source for name, source in pairs.test.items() if name == "synthetic"}
    trainer().predict(task, ImageModule(sources))
    assert [done.computed for done in task.result()] == [0, 0]
    assert len(loads) == 1
    stores = len(list((tmp_path / "store").iterdir()))
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("x_embedder.weight"))
    tensors[name] = -tensors[name]
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, file, metadata)
    with pytest.raises(InputError, match=r"closest are .*weights_sha256"):
        compare(replace(kept, store_only=True), pairs, trainer, tmp_path)
    compare(kept, pairs, trainer, tmp_path)
    assert len(loads) == 2
    assert len(list((tmp_path / "store").iterdir())) == stores + 1, "of the model; its untrained control is the same"


def count_loads(patch: pytest.MonkeyPatch) -> tuple[list[str], list[Path]]:
    """Backbones that are loaded with their weights, and files that are read for their hash."""
    loads: list[str] = []
    hashed: list[Path] = []
    load, read = models.load_backbone, known_hashes._read

    def loaded(name: str, **options: Any) -> Any:
        if options.get("loaded", "all") == "all":
            loads.append(name)
        return load(name, **options)

    def recorded(path: Path) -> str:
        hashed.append(path)
        return read(path)

    patch.setattr(models, "load_backbone", loaded)
    patch.setattr(known_hashes, "_read", recorded)
    return loads, hashed


def _process(features: BackboneFeatures, pairs: PairDataModule, run_dir: Path) -> None:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "use_distributed_sampler": False}
    with pytest.MonkeyPatch.context() as patch:
        computed = record(patch)
        task = CorrespondenceTask(features, ROWS, run_dir=str(run_dir))
        trainer = L.Trainer(accelerator="cpu", strategy="ddp", devices=2, **quiet)
        trainer.test(task, pairs, verbose=False)
    (run_dir / f"rank{trainer.global_rank}.json").write_text(json.dumps(computed))
    if trainer.is_global_zero:
        write_predictions(run_dir, task.result())


@pytest.fixture
def compare_on_two_ranks(
    on_two_ranks: Callable[..., None], pairs: PairDataModule
) -> Callable[[BackboneFeatures, Path], list[list[str]]]:
    """Tests on two ranks, and returns the images that each has computed, with the model."""

    def run(features: BackboneFeatures, run_dir: Path) -> list[list[str]]:
        run_dir.mkdir()
        on_two_ranks(_process, features, pairs, run_dir)
        return [json.loads((run_dir / f"rank{rank}.json").read_text()) for rank in range(2)]

    return run


def same_files(first: Path, second: Path) -> bool:
    one, two = (sorted(folder.rglob("*.csv")) for folder in (first, second))
    assert [path.name for path in one] == [path.name for path in two]
    assert len(one) > 2
    return all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_ranks_share_the_work_and_find_the_same_bits(
    features: BackboneFeatures,
    pairs: PairDataModule,
    trainer: Trainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compare_on_two_ranks: Callable[[BackboneFeatures, Path], list[list[str]]],
) -> None:
    """Each image is computed by one rank; whoever reads the store afterwards, one rank or two, finds the same bits."""
    alone = record(monkeypatch)
    compare(features, pairs, trainer, tmp_path)
    kept = replace(features, store=str(tmp_path / "store"))
    first, second = compare_on_two_ranks(kept, tmp_path / "cold")
    assert sorted([*first, *second]) == sorted(set(alone)), "each image of each model once, by either rank"
    assert first
    assert second
    assert compare_on_two_ranks(kept, tmp_path / "warm") == [[], []]
    assert same_files(tmp_path / "cold", tmp_path / "warm")
    found = compare(replace(kept, store_only=True), pairs, trainer, tmp_path)
    (tmp_path / "one").mkdir()
    write_predictions(tmp_path / "one", found)
    assert same_files(tmp_path / "cold", tmp_path / "one")
