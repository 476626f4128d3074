"""Homographies of a miniature HPatches: a photo under known homographies, and in other light."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from ditf_probe.cli import evaluate
from ditf_probe.comparison import summarise_measured
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.data.detectors import KeypointFiles, Sift
from ditf_probe.data.hpatches import HPatches
from ditf_probe.data.photos import builtin_photos, read_photo
from ditf_probe.data.planar import PlanarDataModule, PlanarDataset, PlanarImage
from ditf_probe.errors import InputError
from ditf_probe.metrics.homography import project
from ditf_probe.tasks.measured import MeasuredRun
from ditf_probe.tasks.planar import HomographyTask, View
from ditf_probe.tasks.settings import BackboneFeatures

SIZE = (150, 200)
ROWS = ["adaln", "same_position", "rgb"]


def homography(number: int) -> np.ndarray:
    """Turns and leans more with every image, about the middle of the picture."""
    angle, middle = 0.04 * number, np.array([[1, 0, 100], [0, 1, 75], [0, 0, 1.0]])
    lean = np.array([[np.cos(angle), -np.sin(angle), 2.5], [np.sin(angle), np.cos(angle), -1.5], [2e-4 * number, 0, 1]])
    return middle @ lean @ np.linalg.inv(middle)


def write_sequence(folder: Path, photo: np.ndarray, homographies: Sequence[np.ndarray], dim: float) -> None:
    folder.mkdir(parents=True)
    Image.fromarray(photo[: SIZE[0], : SIZE[1]]).save(folder / "1.ppm")
    for number, matrix in enumerate(homographies, start=2):
        seen = cv2.warpPerspective(photo, matrix, SIZE[::-1], flags=cv2.INTER_CUBIC)
        Image.fromarray(np.rint(seen * dim ** (number - 1)).astype(np.uint8)).save(folder / f"{number}.ppm")
        np.savetxt(folder / f"H_1_{number}", matrix)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sequences of viewpoint and one of illumination."""
    root = tmp_path_factory.mktemp("hpatches")
    photos = [np.ascontiguousarray(read_photo(path).permute(1, 2, 0).numpy()) for path in builtin_photos()[:4]]
    moved = [homography(number) for number in range(1, 6)]
    write_sequence(root / "v_astronaut", photos[0][60:, 150:], moved, 1.0)
    write_sequence(root / "v_coffee", photos[3][120:, 150:], moved[::-1], 1.0)
    write_sequence(root / "i_chelsea", photos[2][60:, 100:], [np.eye(3)] * 5, 0.9)
    return root


@pytest.fixture
def module(root: Path) -> PlanarDataModule:
    return PlanarDataModule({"hpatches": HPatches(root)})


def scores(result: MeasuredRun, dataset: str, row: str) -> dict[str, float]:
    found = next(d for d in result.datasets if d.name == dataset)
    return dict(next(r for r in found.rows if r.name == row).values)


class Oracle(HomographyTask):
    """Descriptors of the row "adaln" that know where in the plane a keypoint is."""

    def _views(self, dataset: PlanarDataset, image: PlanarImage, *options: Any) -> dict[str, View]:
        views = super()._views(dataset, image, *options)
        pairs = [pair for sequence in dataset for pair in sequence.pairs]
        matrix = next((p.homography for p in pairs if p.target == image), torch.eye(3, dtype=torch.float64))
        size, points, _ = (getattr(views["adaln"], name) for name in ("size", "points", "descriptors"))
        views["adaln"] = View(size, points, self._where(project(torch.linalg.inv(matrix), points)))
        return views

    def _where(self, places: Tensor) -> Tensor:
        """The point of a sphere over the plane: cosines fall with distance alone."""
        x, y = (places / 400).unbind(-1)
        return torch.stack([x.sin() * y.cos(), x.cos() * y.cos(), y.sin()], dim=1)


def write_keypoints(root: Path, folder: Path) -> None:
    """The same points of the plane in all images of a sequence, those that an image shows."""
    dataset = HPatches(root)
    for sequence in dataset:
        points = Sift(200)(dataset.image(sequence.reference.image_id), "")
        views = [(sequence.reference, points.double())]
        views += [(pair.target, project(pair.homography, points)) for pair in sequence.pairs]
        for image, moved in views:
            inside = ((moved >= 0) & (moved <= moved.new_tensor([SIZE[1] - 1, SIZE[0] - 1]))).all(1)
            place = folder / sequence.name
            place.mkdir(parents=True, exist_ok=True)
            np.savez(place / f"{Path(image.image_id).stem}.npz", keypoints=moved[inside].numpy())


@pytest.mark.parametrize("estimator", ["ransac", "magsac", "lmeds"])
def test_an_oracle_is_right_everywhere(
    features: BackboneFeatures,
    module: PlanarDataModule,
    root: Path,
    trainer: Callable[..., L.Trainer],
    tmp_path: Path,
    estimator: str,
) -> None:
    write_keypoints(root, tmp_path / "keypoints")
    detector = KeypointFiles(tmp_path / "keypoints")
    task = Oracle(features, ["adaln"], run_dir=str(tmp_path), detector=detector, estimator=estimator, sift=False)  # type: ignore[arg-type]
    trainer().test(task, module, verbose=False)
    result = task.result()
    assert [dataset.name for dataset in result.datasets] == ["hpatches", "hpatches/viewpoint", "hpatches/illumination"]
    for dataset in result.datasets:
        (row,) = dataset.rows
        assert {row.values[f"acc@{t}"] for t in (1, 3, 5)} == {100.0}
        assert {row.values[f"mma@{t}"] for t in (1, 3, 5, 10)} == {100.0}
        assert row.values["matches"] > 50
    corner = task.scores[0].accuracy["adaln"].pairs()["corner_error"]
    assert len(corner) == 15
    assert corner.max() < 1e-2


def test_rows_controls_and_files(
    features: BackboneFeatures, module: PlanarDataModule, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    task = HomographyTask(features, ROWS, run_dir=str(tmp_path), others={"other": features}, detector=Sift(300))
    logger = TensorBoardLogger(tmp_path, name="tensorboard")
    trainer(logger=logger).test(task, module, verbose=False)
    result = task.result()
    every = result.datasets[0]
    assert [(row.name, row.kind) for row in every.rows] == [
        *(("adaln", "zero-shot"), ("other", "zero-shot"), ("rgb", "control")),
        *(("same_position", "control"), ("sift", "control")),
    ]
    assert (every.n, every.unit, every.facts) == (3, "sequence", {"sequences": 3, "pairs": 15})
    assert every.rows[0].values == every.rows[1].values  # equal settings
    # Where only the light changes, staying in place is right; where the view does, it never is.
    assert scores(result, "hpatches/illumination", "same_position")["acc@1"] == 100.0
    assert scores(result, "hpatches/illumination", "same_position")["mma@1"] == 100.0
    assert scores(result, "hpatches/viewpoint", "same_position")["acc@5"] < 50
    assert scores(result, "hpatches", "sift")["acc@3"] > 90
    parts = [scores(result, f"hpatches/{change}", "rgb")["acc@5"] for change in ("viewpoint", "illumination")]
    assert scores(result, "hpatches", "rgb")["acc@5"] == pytest.approx((10 * parts[0] + 5 * parts[1]) / 15, abs=1e-4)
    with (tmp_path / "matching_accuracy.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5 * 3 * 10
    curve = [float(line["mma"]) for line in lines if (line["row"], line["change"]) == ("sift", "all")]
    assert curve == sorted(curve)
    assert curve[2] == pytest.approx(scores(result, "hpatches", "sift")["mma@3"], abs=1e-3)
    events = EventAccumulator(logger.log_dir).Reload()
    drawn = [event.value for event in events.Scalars("hpatches/mma_curve/sift")]
    assert drawn == pytest.approx(curve, abs=1e-3)
    summary = json.loads(json.dumps(summarise_measured(result), allow_nan=False))
    assert summary["settings"]["detector"]["num_keypoints"] == 300
    assert summary["settings"]["homography"] == {"estimator": "ransac", "threshold": 3.0, "seed": 0}
    assert summary["settings"]["data"]["hpatches"]["subset"] == "d2net"
    assert summary["datasets"]["hpatches"]["rows"][-1]["scores"]["acc@3"]["ci95"] is not None


def test_each_backbone_sees_every_image_once_and_is_not_reloaded(
    features: BackboneFeatures,
    module: PlanarDataModule,
    trainer: Callable[..., L.Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ditf_probe.features.extractor import FeatureExtractor
    from ditf_probe.tasks import models

    seen: list[str] = []
    loaded: list[str] = []
    tapped, load = FeatureExtractor.tapped, models.load_backbone

    def watched(self: FeatureExtractor, images: Tensor, ids: Sequence[str], conditions: Any = None) -> Any:
        seen.extend(f"{id(self.backbone)} {image_id}" for image_id in ids)
        return tapped(self, images, ids, conditions)

    def counted(name: str, **options: Any) -> Any:
        loaded.append(name)
        return load(name, **options)

    monkeypatch.setattr(FeatureExtractor, "tapped", watched)
    monkeypatch.setattr(models, "load_backbone", counted)
    monkeypatch.setattr(models, "ROOM", 0)  # as if they were large
    task = HomographyTask(features, ["raw", "adaln", "untrained"], run_dir=str(tmp_path), detector=Sift(20), sift=False)
    trainer().test(task, module, verbose=False)
    assert len(set(seen)) == len(seen) == 2 * 18
    # Once to be checked, once after it made way for the untrained one, and once for that to be made from.
    assert len(loaded) <= 3
    assert [row.name for row in task.result().datasets[0].rows] == ["raw", "adaln", "untrained"]


def test_images_without_keypoints_are_failures(
    features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    write_sequence(tmp_path / "v_grey", np.full((150, 200, 3), 99, np.uint8), [np.eye(3)] * 5, 1.0)
    module = PlanarDataModule({"grey": HPatches(tmp_path, sequences=["v_grey"])})
    task = HomographyTask(features, ROWS, run_dir=str(tmp_path / "run"))
    trainer().test(task, module, verbose=False)
    for row in task.result().datasets[0].rows:
        assert set(row.values.values()) == {0.0}, row.name
    assert [dataset.name for dataset in task.result().datasets] == ["grey", "grey/viewpoint"]


def test_bad_options_are_named(features: BackboneFeatures, trainer: Callable[..., L.Trainer], tmp_path: Path) -> None:
    for options in ({"estimator": "dlt"}, {"threshold": 0}, {"ratio": 2.0}, {"rounding": "up"}):
        with pytest.raises(InputError, match=next(iter(options))):
            HomographyTask(features, run_dir=str(tmp_path), **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="sift"):
        HomographyTask(features, run_dir=str(tmp_path), others={"sift": features})


def test_command_line(root: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["test", "--config", str(CONFIGS / "hpatches.yaml"), "--run_dir", str(tmp_path)]
    words += ["--data.init_args.test.hpatches.init_args.root", str(root), "--trainer.accelerator", "cpu"]
    words += ["--model.init_args.features.backbone", str(weights), "--model.init_args.features.blocks", "[1]"]
    words += ["--model.init_args.detector.init_args.num_keypoints", "100", "--trainer.enable_progress_bar", "false"]
    words += ["--model.init_args.rows", "[adaln, same_position]", "--trainer.callbacks", "[]"]
    evaluate(words)
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert list(comparison["datasets"]) == ["hpatches", "hpatches/viewpoint", "hpatches/illumination"]
    assert "hpatches/viewpoint" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        evaluate([*words[:6], str(tmp_path / "nowhere")])
    assert end.value.code == 2
    assert "nowhere" in capsys.readouterr().err


def run(features: BackboneFeatures, root: Path, run_dir: Path, **options: Any) -> None:
    """Tests on this rank and leaves the numbers of its result."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "enable_checkpointing": False, "use_distributed_sampler": False}
    task = HomographyTask(features, ROWS, run_dir=str(run_dir), detector=Sift(150))
    trainer = L.Trainer(**quiet, **options)
    trainer.test(task, PlanarDataModule({"hpatches": HPatches(root)}), verbose=False)
    found = summarise_measured(task.result())["datasets"]
    (run_dir / f"rank{trainer.global_rank}.json").write_text(json.dumps(found))


def _process(features: BackboneFeatures, root: Path, run_dir: Path) -> None:
    run(features, root, run_dir, strategy="ddp", devices=2)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_ranks_agree_with_one(
    features: BackboneFeatures, root: Path, tmp_path: Path, on_two_ranks: Callable[..., None]
) -> None:
    """Three sequences on two ranks: the first is shown twice and counts once."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    on_two_ranks(_process, features, root, tmp_path / "two")
    run(features, root, tmp_path / "one")
    one = json.loads((tmp_path / "one" / "rank0.json").read_text())
    two = [json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert two[0] == two[1]
    assert one["hpatches"]["facts"] == {"sequences": 3, "pairs": 15}
    assert one == two[0]
    curves = [(tmp_path / name / "matching_accuracy.csv").read_text() for name in ("one", "two")]
    assert curves[0] == curves[1]
