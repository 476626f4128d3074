"""Extraction: every image once, on any number of ranks, and a rerun computes only what is missing."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image
from torch import Tensor

from ditf_probe.backbones.diffusion import DiffusionBackbone
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.cli import evaluate
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.drawn_masks import DrawnMasks
from ditf_probe.data.image_module import ImageModule
from ditf_probe.data.photo_folder import PhotoFolder
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.errors import InputError
from ditf_probe.features.bank import FeatureBank
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.store import FeatureStore, definition_of
from ditf_probe.tasks import ExtractionTask
from ditf_probe.tasks.settings import BackboneFeatures

Trainer = Callable[..., L.Trainer]
Passes = list[tuple[tuple[int, ...], list[str]]]


def record(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """Shape and ids of every batch that a backbone is given."""
    seen: Passes = []
    forward = DiffusionBackbone.forward

    def recorded(self: Any, images: Tensor, **arguments: Any) -> Any:
        seen.append((tuple(images.shape[2:]), list(arguments["image_ids"])))
        return forward(self, images, **arguments)

    monkeypatch.setattr(DiffusionBackbone, "forward", recorded)
    return seen


@pytest.fixture
def photos(tmp_path: Path) -> PhotoFolder:
    """Seven photos of three sizes, in two folders."""
    for number, size in enumerate([(32, 24), (24, 32), (32, 24), (32, 32), (24, 32), (32, 24), (32, 24)]):
        pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        folder = tmp_path / "photos" / ("odd" if number % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return PhotoFolder(str(tmp_path / "photos"))


@pytest.fixture
def settings(features: BackboneFeatures, tmp_path: Path) -> BackboneFeatures:
    chosen = replace(features, blocks=[0, 1], image_size=None, ensemble=2, batch_size=2, store=str(tmp_path / "store"))
    return replace(chosen, num_workers=0)


def bank_of(settings: BackboneFeatures) -> FeatureBank:
    extractor = FeatureExtractor(load_backbone(settings.backbone, device="cpu"), **settings.extractor_options())
    return FeatureBank(extractor)


def assert_holds(settings: BackboneFeatures, source: Any, bank: FeatureBank) -> None:
    """The store holds every image of a data set, with the streams of a bank without a store."""
    assert settings.store is not None
    store = FeatureStore(settings.store, definition_of(bank.extractor, "float32"), create=False)
    bank.fill(source, batch_size=settings.batch_size)
    for image_id in source.image_sizes():
        found, expected = store.read(image_id, settings.blocks), bank.tapped([image_id])
        for block in settings.blocks:
            for name in ("hidden_states", "shift", "scale", "gate"):
                a, b = getattr(found[block], name), getattr(expected[block], name)
                torch.testing.assert_close(a, b)


def test_every_image_once_and_only_what_is_missing(
    settings: BackboneFeatures, photos: PhotoFolder, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = record(monkeypatch)
    task = ExtractionTask(settings)
    trainer().predict(task, ImageModule({"photos": photos}))
    assert sorted(i for _, ids in passes for i in ids) == sorted(photos.image_sizes())
    sizes = photos.image_sizes()
    assert all(sizes[i] == shape for shape, ids in passes for i in ids), "one prepared size per batch"
    assert sorted(len(ids) for _, ids in passes) == [1, 2, 2, 2]
    (done,) = task.result()
    assert (done.source, done.images, done.computed, done.missing) == ("photos", 7, 7, 0)
    passes.clear()
    again = ExtractionTask(settings)
    trainer().predict(again, ImageModule({"photos": photos}))
    assert passes == []
    assert again.result()[0].computed == 0
    lost = sorted(done.store.glob("*.safetensors"))[1]
    ids = next(x["keys"] for x in map(json.loads, lines(done.store)) if x["file"] == lost.name)
    lost.unlink()
    trainer().predict(ExtractionTask(settings), ImageModule({"photos": photos}))
    assert sorted(i for _, names in passes for i in names) == sorted(ids)
    assert_holds(settings, photos, bank_of(settings))


def lines(folder: Path) -> list[str]:
    return [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def test_several_sources_and_backbones(
    settings: BackboneFeatures, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that two data sets share are computed once; other backbones and untrained controls go to other stores."""
    passes = record(monkeypatch)
    pairs, masks = SyntheticPairs("test", 2, 32), DrawnMasks("test", 3, 32)
    images = ImageModule({"pairs": pairs, "more": SyntheticPairs("test", 3, 32), "masks": masks})
    other = replace(settings, timestep=300, blocks=[1])
    task = ExtractionTask(settings, untrained=True, others={"late": other})
    trainer().predict(task, images)
    computed = [i for _, ids in passes for i in ids]
    expected = [*SyntheticPairs("test", 3, 32).image_ids(), *masks.image_sizes()]
    assert sorted(computed) == sorted(expected * 4)
    assert len(list((tmp_path / "store").iterdir())) == 4
    assert [found.computed for found in task.result()] == [4, 2, 3] * 4


def test_a_run_that_is_cut_short_says_so(settings: BackboneFeatures, photos: PhotoFolder, trainer: Trainer) -> None:
    task = ExtractionTask(settings)
    trainer(limit_predict_batches=1).predict(task, ImageModule({"photos": photos}))
    (found,) = task.result()
    assert (found.computed, found.missing) == (2, 5)
    assert "2 of 7 images computed, 5 still missing" in found.line()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_photo_is_one_line(
    settings: BackboneFeatures, photos: PhotoFolder, trainer: Trainer, workers: int
) -> None:
    broken = next(path for path in Path(photos.root).rglob("3.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InputError, match=r"3\.png"):
        trainer().predict(ExtractionTask(replace(settings, num_workers=workers)), ImageModule({"photos": photos}))
    assert not list(Path(str(settings.store)).rglob(".*"))


@pytest.mark.parametrize("failing", [1, 3])
def test_a_disk_that_is_full_stops_the_run(
    settings: BackboneFeatures, photos: PhotoFolder, trainer: Trainer, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Though writing is done in a thread of its own; also when it is the last batch that cannot be written."""
    write, calls = FeatureStore.write, []

    def full(self: FeatureStore, *batch: Any) -> None:
        calls.append(threading.get_ident())
        if len(calls) > failing:
            raise InputError("store", str(self.folder), "cannot be written to (No space left on device)")
        write(self, *batch)

    monkeypatch.setattr(FeatureStore, "write", full)
    with pytest.raises(InputError, match="No space left"):
        trainer().predict(ExtractionTask(settings), ImageModule({"photos": photos}))
    assert len(calls) == failing + 1, "nothing is written after it"
    assert threading.get_ident() not in calls
    (store,) = Path(str(settings.store)).iterdir()
    assert len(list(store.glob("*.safetensors"))) == failing


def test_refusals(settings: BackboneFeatures, pairs: PairDataModule, photos: PhotoFolder, trainer: Trainer) -> None:
    with pytest.raises(InputError, match="store"):
        ExtractionTask(replace(settings, store=None))
    with pytest.raises(InputError, match="sources"):
        ImageModule({})
    with pytest.raises(InputError, match="ImageModule"):
        trainer().predict(ExtractionTask(settings), pairs)
    with pytest.raises(InputError, match="ExtractionTask"):
        ImageModule({"photos": photos}).predict_dataloader()
    with pytest.raises(InputError, match="is no photo"):
        photos.image("photos/nothing.png")


def _process(settings: BackboneFeatures, photos: PhotoFolder, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        passes = record(patch)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = L.Trainer(accelerator="cpu", strategy="ddp", devices=2, enable_checkpointing=False, **quiet)  # type: ignore[arg-type]
        task = ExtractionTask(settings)
        trainer.predict(task, ImageModule({"photos": photos}))
        found = {"ids": [i for _, ids in passes for i in ids], "computed": task.result()[0].computed}
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))


@pytest.fixture
def extract_on_two_ranks(
    on_two_ranks: Callable[..., None], settings: BackboneFeatures, photos: PhotoFolder, tmp_path: Path
) -> Callable[[], list[list[str]]]:
    """Extracts on two ranks, and returns the ids that each has computed."""

    def run() -> list[list[str]]:
        on_two_ranks(_process, settings, photos, tmp_path)
        found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
        assert found[0]["computed"] == found[1]["computed"] == sum(len(rank["ids"]) for rank in found)
        return [rank["ids"] for rank in found]

    return run


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_ranks_divide_what_is_missing(
    settings: BackboneFeatures,
    photos: PhotoFolder,
    trainer: Trainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extract_on_two_ranks: Callable[[], list[list[str]]],
) -> None:
    """Part of the images come from one rank, the rest from two, and then nothing is missing for any number."""
    trainer(limit_predict_batches=1).predict(ExtractionTask(settings), ImageModule({"photos": photos}))
    store = next(Path(str(settings.store)).iterdir())
    before = [key for line in lines(store) for key in json.loads(line)["keys"]]
    assert len(before) == 2
    first, second = extract_on_two_ranks()
    assert first
    assert second
    assert sorted([*before, *first, *second]) == sorted(photos.image_sizes())
    assert extract_on_two_ranks() == [[], []]
    one = sorted(store.glob("*.safetensors"))[0]
    gone = next(x["keys"] for x in map(json.loads, lines(store)) if x["file"] == one.name)
    one.unlink()
    assert extract_on_two_ranks() == [gone, []], "a rank without work waits for the other"
    passes = record(monkeypatch)
    trainer().predict(ExtractionTask(settings), ImageModule({"photos": photos}))
    assert passes == []
    assert_holds(settings, photos, bank_of(settings))


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "--config", str(CONFIGS / "extract.yaml"), "--run_dir", str(tmp_path / "run")]
    words += ["--model.init_args.store", str(tmp_path / "store"), "--trainer.accelerator", "cpu"]
    words += [
        "--data.init_args.sources", '{"some": {"class_path": "SyntheticPairs", "init_args": {"num_pairs": 2}}}'
    ]  # fmt: skip
    for computed in (4, 0):
        evaluate(words)
        assert f"ditf-tiny on synthetic: {computed} of 4 images computed" in capsys.readouterr().out
