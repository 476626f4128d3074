from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from ditf_probe.backbones.loading import load_backbone
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.pairs import PairDataset, threshold_base
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.matching import match_keypoints
from ditf_probe.metrics.predictions import Predictions
from ditf_probe.probes import LinearProbe, describe_probe, save_probe
from ditf_probe.tasks import CorrespondenceTask
from ditf_probe.tasks.records import RowResult, RunResult
from ditf_probe.tasks.rows import ROW_NAMES
from ditf_probe.tasks.settings import BackboneFeatures

Make = Callable[..., L.Trainer]
RECIPES = {
    "raw": {"modulation": "none"},
    "layer_norm": {"modulation": "layer_norm"},
    "adaln": {},
    "adaln+discard_pre": {"discard": "pre_norm"},
    "adaln+discard_post": {"discard": "post_adaln"},
    "adaln+debias": {"position_debias": "mean"},
}


def row_of(result: RunResult, dataset: str, name: str) -> RowResult:
    (found,) = (d for d in result.datasets if d.name == dataset)
    (row,) = (row for row in found.rows if row.name == name)
    return row


def image_of(extractor: FeatureExtractor, dataset: PairDataset, image_id: str) -> torch.Tensor:
    return extractor.prepare(dataset.image(image_id))[None]


def slow(extractor: FeatureExtractor, dataset: PairDataset) -> Iterator[tuple[float, ...]]:
    """One pair after the other, each image computed for each pair, by the public extractor and matcher."""
    for index in range(len(dataset)):
        pair = dataset[index]
        maps = [
            extractor(image_of(extractor, dataset, side.image_id), [side.image_id])
            for side in (pair.source, pair.target)
        ]
        (block,) = maps[0]
        seen = pair.visible.nonzero()[:, 0]
        found, _ = match_keypoints(
            maps[0][block][0], maps[1][block][0], pair.source.keypoints[seen], pair.source.size, pair.target.size
        )
        for k, (x, y) in zip(seen.tolist(), found.tolist(), strict=True):
            true_x, true_y = pair.target.keypoints[k].tolist()
            yield index, k, x, y, true_x, true_y, float(np.float32(threshold_base(pair, dataset.threshold)))


def rows_of(p: Predictions) -> list[tuple[float, ...]]:
    p = p.where(p.present)
    columns = (p.pair_index, p.keypoint, p.x, p.y, p.true_x, p.true_y, p.threshold_base)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.fixture
def result(features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path) -> RunResult:
    task = CorrespondenceTask(replace(features, massive_ratio=2.0), run_dir=str(tmp_path / "run"))
    trainer().test(task, pairs, verbose=False)
    return task.result()


def test_every_row_equals_a_loop_without_bank_and_batches(
    result: RunResult, features: BackboneFeatures, pairs: PairDataModule
) -> None:
    backbone = load_backbone(features.backbone, device="cpu")
    for name, recipe in {**RECIPES, "untrained": {}}.items():
        model = backbone.untrained(0) if name == "untrained" else backbone
        extractor = FeatureExtractor(model, blocks=[1], timestep=200, image_size=32, massive_ratio=2.0, **recipe)
        calibration = pairs.calibration
        assert calibration is not None
        ids = calibration.image_ids()
        extractor.calibrate(torch.cat([image_of(extractor, calibration, i) for i in ids]), ids)
        for dataset_name, dataset in pairs.test.items():
            expected = list(slow(extractor, dataset))
            found = rows_of(row_of(result, dataset_name, name).predictions)
            assert [row[:2] + row[4:] for row in found] == [row[:2] + row[4:] for row in expected]
            # A tie between pixels may fall either way with the batch size; elsewhere they agree.
            same = sum(a[2:4] == b[2:4] for a, b in zip(found, expected, strict=True))
            assert same >= 0.95 * len(expected), (dataset_name, name)


def test_rows_come_in_order_with_their_facts(result: RunResult) -> None:
    synthetic = result.datasets[0]
    assert [row.name for row in synthetic.rows] == list(ROW_NAMES)
    assert [d.name for d in result.datasets] == ["synthetic", "warped"]
    assert synthetic.unit == "instance pair"
    assert synthetic.pairs[3].source_id.startswith("synthetic/")
    assert synthetic.pairs[3].keypoint_names
    assert all(row.parameters == 0 for row in synthetic.rows)
    massive = result.settings["models"][0]["massive_channels"]["1"]
    assert row_of(result, "synthetic", "adaln+discard_pre").notes == (
        f"{len(massive)} channel{'s' * (len(massive) != 1)}",
    )
    assert row_of(result, "synthetic", "adaln").notes == ()


def test_settings_name_what_changes_a_number(result: RunResult) -> None:
    settings = result.settings
    assert settings["data"]["synthetic"]["num_pairs"] == 5
    assert settings["data"]["synthetic"]["split"] == "test"
    assert settings["calibration"]["pairs"] == 4
    model = settings["models"][settings["rows"]["adaln"]["model"]]
    assert model["timestep"] == 200
    assert len(model["backbone"]["weights_sha256"]) == 64
    assert settings["models"][settings["rows"]["untrained"]["model"]]["backbone"] != model["backbone"]


def test_position_and_colours_ignore_the_backbone(result: RunResult) -> None:
    assert torch.tensor(row_of(result, "synthetic", "same_position").predictions.similarity).isnan().all()
    assert row_of(result, "synthetic", "rgb").predictions.similarity.max() <= 1


def save_linear(folder: Path, features: BackboneFeatures, channels: int = 16, blocks: tuple[int, ...] = (1, 0)) -> None:
    torch.manual_seed(0)
    probe = LinearProbe(channels, blocks, width=8)
    backbone = load_backbone(features.backbone, device="cpu")
    facts = describe_probe(
        probe,
        features={"blocks": list(blocks), "timestep": 300, "modulation": "layer_norm"},
        backbone=backbone.settings(),
        training={},
    )
    save_probe(folder, probe.state_dict(), facts)


def test_probes_keep_their_own_blocks_timestep_and_modulation(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    save_linear(tmp_path / "linear", features)
    task = CorrespondenceTask(features, ["adaln", "rgb"], [str(tmp_path / "linear")], run_dir=str(tmp_path))
    trainer().test(task, pairs, verbose=False)
    result = task.result()
    assert [row.name for row in result.datasets[0].rows] == ["adaln", "linear", "rgb"]
    row = row_of(result, "synthetic", "linear")
    assert (row.kind, row.parameters) == ("probe", 2 * (16 * 8 + 8))
    extractor = FeatureExtractor(
        load_backbone(features.backbone), blocks=[0, 1], timestep=300, modulation="layer_norm", image_size=32
    )
    torch.manual_seed(0)
    probe = LinearProbe(16, [1, 0], width=8)
    pair, dataset = pairs.test["synthetic"][0], pairs.test["synthetic"]
    with torch.no_grad():
        a, b = (
            probe(extractor(image_of(extractor, dataset, side.image_id), [side.image_id]))[0]
            for side in (pair.source, pair.target)
        )
    points = pair.source.keypoints[pair.visible]
    found, _ = match_keypoints(a, b, points, pair.source.size, pair.target.size)
    own = (row.predictions.pair_index == 0) & row.predictions.present
    assert list(zip(row.predictions.x[own].tolist(), row.predictions.y[own].tolist(), strict=True)) == [
        tuple(point) for point in found.tolist()
    ]


def test_scalars_and_hyperparameters_reach_tensorboard(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    task = CorrespondenceTask(features, ["adaln"], statistics={"warped": "per_image"}, run_dir=str(tmp_path))
    logger = TensorBoardLogger(tmp_path, name="tb", default_hp_metric=False)
    trainer(logger=logger).test(task, pairs, verbose=False)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    metric = task.scores[1].pck["adaln"].compute()
    (scalar,) = events.Scalars("warped/pck_0.10/adaln")
    assert scalar.value == pytest.approx(float(metric["per_image"]["0.10"]))
    assert (Path(logger.log_dir) / "hparams.yaml").is_file()


def test_what_cannot_work_is_refused_before_anything_is_computed(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FeatureExtractor, "tapped", None)

    def refused(pattern: str, task: CorrespondenceTask, data: PairDataModule = pairs) -> None:
        with pytest.raises(InputError, match=pattern):
            trainer().test(task, data, verbose=False)

    run_dir = str(tmp_path / "run")
    (tmp_path / "file").write_text("")
    refused("run_dir", CorrespondenceTask(features, run_dir=str(tmp_path / "file" / "run")))
    refused("block", CorrespondenceTask(replace(features, blocks=[9]), run_dir=run_dir))
    refused("one block", CorrespondenceTask(replace(features, blocks=[0, 1]), run_dir=run_dir))
    refused("statistics", CorrespondenceTask(features, statistics={"spair": "per_image"}, run_dir=run_dir))
    refused("probe", CorrespondenceTask(features, ["raw"], [str(tmp_path / "none")], run_dir=run_dir))
    save_linear(tmp_path / "wide", features, channels=24)
    refused(
        "24 channels and small has 16", CorrespondenceTask(features, ["raw"], [str(tmp_path / "wide")], run_dir=run_dir)
    )
    no_calibration = PairDataModule(test={"synthetic": SyntheticPairs("test", 2, 32)})
    refused("calibration", CorrespondenceTask(features, run_dir=run_dir), no_calibration)


def test_a_probe_of_another_backbone_is_refused(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    save_linear(tmp_path / "linear", features)
    probe = LinearProbe(16, [0], width=8)
    stranger = {"name": "other", "class": "FluxTransformer2DModel", "weights_sha256": "0" * 64}
    facts = describe_probe(probe, features={"blocks": [0], "timestep": 1}, backbone=stranger, training={})
    save_probe(tmp_path / "linear", probe.state_dict(), facts)
    task = CorrespondenceTask(features, ["raw"], [str(tmp_path / "linear")], run_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"another backbone \(other: weights_sha256 differ"):
        trainer().test(task, pairs, verbose=False)


def test_results_need_a_test(features: BackboneFeatures) -> None:
    with pytest.raises(InputError, match=r"trainer\.test"):
        CorrespondenceTask(features).result()
