"""Label propagation from files to tables, against a plain loop, and on two ranks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from ditf_probe.backbones.loading import load_backbone
from ditf_probe.callbacks import MaskPictures
from ditf_probe.cli import evaluate
from ditf_probe.comparison import report_measured
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.davis import DAVIS
from ditf_probe.data.pairs import PairDataset
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.data.videos import VideoDataModule
from ditf_probe.errors import InputError
from ditf_probe.matching.labels import hard_labels, soft_labels
from ditf_probe.matching.memory import Propagation
from ditf_probe.matching.propagation import propagate_labels
from ditf_probe.metrics.segmentation import METRICS, VideoObjectSegmentation
from ditf_probe.probes import LinearProbe, describe_probe, save_probe
from ditf_probe.tasks import PropagationTask
from ditf_probe.tasks.settings import BackboneFeatures

SIZE = (40, 56)
PROTOCOL = Propagation(short_side=32, multiple=8, radius=3, n_last_frames=2, topk=3)
ROWS = ["raw", "adaln", "same_position", "rgb"]


def write_video(root: Path, name: str, frames: int, objects: int, masks: int = 99) -> None:
    """Coloured squares of 12 pixels over smooth noise; each moves 2 pixels per frame."""
    rng = np.random.default_rng(frames)
    ground = Image.fromarray(rng.integers(0, 120, (5, 7, 3), dtype=np.uint8)).resize(SIZE[::-1])
    for time in range(frames):
        pixels, values = np.array(ground), np.zeros(SIZE, np.uint8)
        for number in range(1, objects + 1):
            place = slice(16 * number - 12, 16 * number), slice(4 + 2 * time, 16 + 2 * time)
            pixels[place] = (255, 60, 60) if number == 1 else (60, 255, 60)
            values[place] = number
        for folder, suffix, array in (("JPEGImages", "jpg", pixels), ("Annotations", "png", values)):
            if suffix == "jpg" or time < masks:
                path = root / folder / "480p" / name / f"{time:05d}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "davis"
    for name, frames, objects in (("pair", 5, 2), ("lone", 6, 1), ("late", 4, 1)):
        write_video(folder, name, frames, objects)
    (folder / "ImageSets" / "2017").mkdir(parents=True)
    (folder / "ImageSets" / "2017" / "val.txt").write_text("pair\nlone\nlate\n")
    return folder


def run(
    trainer: Callable[..., L.Trainer], task: PropagationTask, dataset: DAVIS, calibration: PairDataset | None = None
) -> PropagationTask:
    trainer().test(task, VideoDataModule({"davis": dataset}, calibration), verbose=False)
    return task


def read(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path)))


def test_masks_and_scores_equal_a_plain_loop(
    root: Path, features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    """All features of a video at once, the context written out; scores from the files that were written."""
    dataset = DAVIS(root)
    task = run(trainer, PropagationTask(features, ROWS, run_dir=str(tmp_path / "run"), propagation=PROTOCOL), dataset)
    metrics = {row: VideoObjectSegmentation() for row in ROWS}
    for sequence in dataset:
        count, index = len(sequence), sequence.index
        frames = torch.stack([task._resized(dataset.frame(index, time)) for time in range(count)])
        assert frames.shape[2:] == (32, 40)
        maps = task.image_rows(frames, sequence.image_ids)
        first = dataset.mask(index, 0)
        truth = torch.stack([dataset.mask(index, time) for time in range(count)])
        for row in ROWS:
            folder = tmp_path / "run" / "davis" / row / sequence.name
            found = torch.stack([read(folder / f"{time:05d}.png") for time in range(count)])
            assert len(list(folder.iterdir())) == count
            assert (found[0] == first).all()
            if row == "same_position":
                assert (found == first).all()
            else:
                labels = [soft_labels(first, sequence.num_objects, maps[row].shape[2:])]
                for time in range(1, count):
                    context = [0, *range(max(1, time - 2), time)]
                    near = [maps[row][t] for t in context], [labels[t] for t in context]
                    labels.append(propagate_labels(maps[row][time], *near, radius=3, topk=3, temperature=0.1))
                    # Frames of a batch and single ones differ in the last bits.
                    assert (found[time] == hard_labels(labels[time], SIZE)).float().mean() > 0.999
            metrics[row].update(found, truth, sequence.num_objects, index)
    davis = task.result().datasets[0]
    assert (davis.name, davis.unit, davis.n, davis.primary) == ("davis", "sequence", 3, "J&F")
    assert davis.facts == {"sequences": 3, "frames": 15, "masks": 15, "objects": 4}
    assert [row.name for row in davis.rows] == ROWS
    for row in davis.rows:
        expected = {name: float(value) for name, value in metrics[row.name].compute().items()}
        assert row.values == pytest.approx(expected, abs=1e-4)
        assert tuple(row.values) == METRICS
    scores = {row.name: row.values["J&F"] for row in davis.rows}
    assert scores["rgb"] > scores["same_position"] + 10  # squares of one colour that move


def test_objects_weigh_alike_and_sequences_are_drawn(
    root: Path, features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    task = PropagationTask(features, ["same_position"], run_dir=str(tmp_path), propagation=PROTOCOL)
    row = run(trainer, task, DAVIS(root)).result().datasets[0].rows[0]
    objects = task.scores[0].objects()["same_position"]
    assert objects.sequence_index.tolist() == [0, 0, 1, 2]
    assert row.values["J"] == pytest.approx(objects.region.mean())
    generator = np.random.default_rng(0)
    for found in row.resampled["J"][:50]:
        times = generator.multinomial(3, [1 / 3] * 3)
        drawn = [score for index, score in zip([0, 0, 1, 2], objects.region, strict=True) for _ in range(times[index])]
        assert found == pytest.approx(sum(drawn) / len(drawn))
    assert row.notes == ("copy of the first mask",)


def test_only_the_context_is_kept(
    root: Path, features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Each frame goes through the backbone once for all rows of it, one at a time."""
    import gc
    import weakref

    from ditf_probe.tasks.image_rows import ImageRows

    alive: list[Any] = []
    most, calls = 0, []
    original = ImageRows.__call__

    def counted(self: ImageRows, images: torch.Tensor, ids: Any, categories: Any = None) -> dict[str, torch.Tensor]:
        nonlocal most
        found = original(self, images, ids, categories)
        calls.extend(ids)
        alive.append(weakref.ref(found["adaln"].untyped_storage()))
        gc.collect()  # what only a cycle holds is not kept
        most = max(most, sum(reference() is not None for reference in alive))
        return found

    monkeypatch.setattr(ImageRows, "__call__", counted)
    task = PropagationTask(features, ["raw", "adaln"], run_dir=str(tmp_path), propagation=PROTOCOL)
    dataset = DAVIS(root, sequences=["lone"])
    run(trainer, task, dataset)
    assert calls == list(dataset[0].image_ids)
    assert most <= 4  # the first, the last two, and the current one


def test_several_backbones_take_turns(
    root: Path, features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    other = replace(features, blocks=[0], timestep=300, image_size=[24, 32])
    task = PropagationTask(
        features, ["adaln", "untrained"], run_dir=str(tmp_path), others={"other": other}, propagation=PROTOCOL
    )
    run(trainer, task, DAVIS(root, sequences=["late"]))
    assert [row.name for row in task.result().datasets[0].rows] == ["adaln", "other", "untrained"]
    assert len(task._by_backbone) == 2
    settings = task.settings()
    json.dumps(settings)
    assert settings["propagation"]["radius"] == 3
    assert [model["image_size"] for model in settings["models"]] == [None] * 3  # replaced by the short side
    assert settings["data"]["davis"]["version"] == "2017"


def test_probes_have_rows_and_files(
    root: Path, features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    """Two probes of one name are told apart by their runs, whose slash is none in a file name."""
    probe = LinearProbe(16, (1, 0), width=8)
    backbone = load_backbone(features.backbone, device="cpu").settings()
    folders = [tmp_path / run / "probes" / "linear" for run in ("a", "b")]
    for folder in folders:
        facts = describe_probe(probe, features={"blocks": [1, 0], "timestep": 300}, backbone=backbone, training={})
        save_probe(folder, probe.state_dict(), facts)
    task = PropagationTask(
        features, ["adaln", "rgb"], [str(f) for f in folders], run_dir=str(tmp_path / "run"), propagation=PROTOCOL
    )
    run(trainer, task, DAVIS(root, sequences=["late"]))
    rows = task.result().datasets[0].rows
    assert [(row.name, row.kind) for row in rows] == [
        ("adaln", "zero-shot"), ("a/linear", "probe"), ("b/linear", "probe"), ("rgb", "control"),
    ]  # fmt: skip
    assert rows[1].parameters == 2 * (16 * 8 + 8)
    assert rows[1].values == rows[2].values
    written = sorted(path.name for path in (tmp_path / "run" / "davis").iterdir())
    assert written == ["a-linear", "adaln", "b-linear", "rgb"]


def test_size_of_the_features_without_short_side(
    root: Path, features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    """Padding is cut off before labels are carried, and the mask may be taken at the size of the input."""
    features = replace(features, image_size=32, resize="pad")
    for place in ("frame", "input"):
        protocol = replace(PROTOCOL, short_side=None, argmax_at=place, n_last_frames=0)
        task = PropagationTask(features, ["adaln"], run_dir=str(tmp_path / place), propagation=protocol)
        run(trainer, task, DAVIS(root, sequences=["lone"]))
    found = [read(tmp_path / place / "davis" / "adaln" / "lone" / "00003.png") for place in ("frame", "input")]
    assert found[0].shape == found[1].shape == SIZE
    assert 0.9 < (found[0] == found[1]).float().mean() < 1


def test_calibrated_rows(
    root: Path, features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    task = PropagationTask(features, ["adaln+debias"], run_dir=str(tmp_path), propagation=PROTOCOL)
    dataset = DAVIS(root, sequences=["late"])
    with pytest.raises(InputError, match="`calibration` is None"):
        run(trainer, task, dataset)
    run(trainer, task, dataset, SyntheticPairs("train", 2, 32))
    assert task.settings()["calibration"]["pairs"] == 2


def test_first_masks_only_have_no_score(
    root: Path, features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    write_video(root, "test", 4, 2, masks=1)
    (root / "ImageSets" / "2017" / "test-dev.txt").write_text("test\n")
    task = PropagationTask(features, ["adaln"], run_dir=str(tmp_path), propagation=PROTOCOL)
    run(trainer, task, DAVIS(root, split="test-dev"))
    assert read(tmp_path / "davis" / "adaln" / "test" / "00003.png").shape == SIZE
    comparison = report_measured(task.result(), tmp_path)
    assert comparison["datasets"]["davis"]["rows"][0]["scores"]["J&F"]["value"] is None


def test_pictures(root: Path, features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path) -> None:
    task = PropagationTask(features, ["adaln", "same_position"], run_dir=str(tmp_path), propagation=PROTOCOL)
    logger = TensorBoardLogger(tmp_path, name="tensorboard", default_hp_metric=False)
    chosen = trainer(callbacks=[MaskPictures(2, num_frames=2)], logger=logger)
    chosen.test(task, VideoDataModule({"davis": DAVIS(root)}), verbose=False)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["davis-lone-masks.png", "davis-pair-masks.png"]
    with Image.open(tmp_path / "pictures" / names[0]) as picture:
        assert picture.size[1] > 3 * 180  # the annotation and two rows
    logger.experiment.flush()
    assert any(b"davis/pair/masks" in path.read_bytes() for path in (tmp_path / "tensorboard").rglob("events*"))
    for options in ({"num_sequences": -1}, {"num_frames": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            MaskPictures(**options)


def test_another_data_module_is_refused(
    features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    task = PropagationTask(features, run_dir=str(tmp_path))
    pairs = PairDataModule(test={"synthetic": SyntheticPairs("test", 2, 32)})
    with pytest.raises(InputError, match="`datamodule` is 'PairDataModule': give the trainer a VideoDataModule"):
        trainer().test(task, pairs, verbose=False)


def _process(features: BackboneFeatures, root: Path, run_dir: Path) -> None:
    task = PropagationTask(features, ["adaln", "same_position"], run_dir=str(run_dir), propagation=PROTOCOL)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options |= {"enable_checkpointing": False, "use_distributed_sampler": False}
    trainer = L.Trainer(**options, strategy="ddp", devices=2)
    trainer.test(task, VideoDataModule({"davis": DAVIS(root)}), verbose=False)
    values = {row.name: dict(row.values) for row in task.result().datasets[0].rows}
    (run_dir / f"rank{trainer.global_rank}.json").write_text(json.dumps(values))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_ranks_agree_with_one(
    root: Path,
    features: BackboneFeatures,
    trainer: Callable[..., L.Trainer],
    tmp_path: Path,
    on_two_ranks: Callable[..., None],
) -> None:
    """Three sequences over two ranks: one is seen twice and counts once."""
    two = tmp_path / "two"
    two.mkdir()
    on_two_ranks(_process, features, root, two)
    ranks = [json.loads((two / f"rank{rank}.json").read_text()) for rank in range(2)]
    task = PropagationTask(features, ["adaln", "same_position"], run_dir=str(tmp_path / "one"), propagation=PROTOCOL)
    one = {row.name: dict(row.values) for row in run(trainer, task, DAVIS(root)).result().datasets[0].rows}
    assert ranks[0] == ranks[1] == {name: pytest.approx(values, abs=1e-4) for name, values in one.items()}
    assert len(list((two / "davis" / "adaln").rglob("*.png"))) == 15


def test_command_on_the_real_slice(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One short row of the run file on one real sequence."""
    evaluate([
        "test", "--config", str(CONFIGS / "davis.yaml"), "--run_dir", str(tmp_path),
        "--data.init_args.test.davis.init_args.root", str(shared_data / "davis-mini"),
        "--data.init_args.test.davis.init_args.sequences", "[libby]",
        "--model.init_args.rows", "[adaln, same_position]",
        "--model.init_args.propagation.short_side", "64",
        "--model.init_args.propagation.radius", "3",
    ])  # fmt: skip
    rows = json.loads((tmp_path / "comparison.json").read_text())["datasets"]["davis"]["rows"]
    scores = {row["name"]: row["scores"]["J&F"]["value"] for row in rows}
    assert scores["adaln"] > scores["same_position"] + 3
    assert "J&F" in capsys.readouterr().out
    assert Image.open(tmp_path / "davis" / "adaln" / "libby" / "00024.png").size == (854, 480)
    assert (tmp_path / "pictures" / "davis-libby-masks.png").is_file()


# Frames before, radius, top-k, temperature, shorter side, multiple: DINO's defaults, DIFT's README, DiTF's code.
PAPERS = {"dino": (7, 12, 5, 0.1, 480, 64), "dift": (28, 15, 15, 0.2, 480, 32), "ditf": (7, 12, 5, 0.1, 960, 32)}


@pytest.mark.parametrize("name", PAPERS)
def test_protocols_of_papers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file fits into the run file, and carries the settings of its paper."""
    part = CONFIGS / "propagation" / f"{name}.yaml"
    with pytest.raises(SystemExit) as end:
        evaluate([
            "test", "--config", str(CONFIGS / "davis.yaml"), "--model.init_args.propagation", str(part),
            "--print_config",
        ])  # fmt: skip
    assert end.value.code == 0
    found = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["propagation"]
    keys = ("n_last_frames", "radius", "topk", "temperature", "short_side", "multiple")
    assert tuple(found[key] for key in keys) == PAPERS[name]
    assert (found["labels"], found["norm_mask"], found["argmax_at"]) == ("nearest", True, "input")
    assert Propagation(**found).short_side == PAPERS[name][4]
    assert set(yaml.safe_load(part.read_text())) == set(found) - {"budget_mib"}


def test_every_protocol_has_a_paper() -> None:
    assert {path.stem for path in (CONFIGS / "propagation").glob("*.yaml")} == set(PAPERS)
