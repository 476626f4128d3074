"""Protocols from the image to the record of a test: predictions worked out apart, settings, scoring and pairs."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.backbones.loading import load_backbone
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.matching import match_prepared
from ditf_probe.probes import LinearProbe
from ditf_probe.protocols import Protocol
from ditf_probe.tasks import CorrespondenceTask, ProbeTask
from ditf_probe.tasks.records import RunResult
from ditf_probe.tasks.rows import Fusion
from ditf_probe.tasks.settings import BackboneFeatures

Make = Callable[..., L.Trainer]
SIZES = {"wide": (30, 40), "tall": (50, 35)}
KEYPOINTS = torch.tensor([[3.0, 4.0], [17.6, 12.3], [33.0, 27.0], [8.0, 21.0]])


class TwoPhotos(PairDataset):
    """Photos of noise, wide and tall; the first keypoint is not visible in the target."""

    name, unit = "two", "pair"

    def __init__(self, pairs: int = 1) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return self.pairs

    def __getitem__(self, index: int) -> Pair:
        everywhere, seen = torch.tensor([True] * 4), torch.tensor([False, True, True, True])
        box = torch.tensor([0.0, 0.0, 20.0, 30.0])
        source = Side("wide", SIZES["wide"], KEYPOINTS, everywhere, box)
        target = Side("tall", SIZES["tall"], KEYPOINTS.flip(1), seen, box)
        return Pair(index, f"category {index % 2}", str(index), source, target)

    def image(self, image_id: str) -> Tensor:
        generator = torch.Generator().manual_seed(ord(image_id[0]))
        coarse = torch.rand(1, 3, 6, 6, generator=generator) * 255
        return F.interpolate(coarse, SIZES[image_id], mode="bicubic")[0].clamp(0, 255).to(torch.uint8)


def run(trainer: Make, task: CorrespondenceTask, pairs: int = 1) -> RunResult:
    trainer().test(task, PairDataModule(test={"two": TwoPhotos(pairs)}, calibration=TwoPhotos()), verbose=False)
    return task.result()


def found(result: RunResult, row: str = "adaln") -> dict[int, tuple[float, float]]:
    """Predictions of the first pair by keypoint, of those that both images show."""
    (chosen,) = (r for r in result.datasets[0].rows if r.name == row)
    p = chosen.predictions.where(chosen.predictions.present)
    lines = zip(p.pair_index, p.keypoint, p.x, p.y, strict=True)
    return {int(k): (float(x), float(y)) for pair, k, x, y in lines if pair == 0 and k > 0}


def adaln(features: BackboneFeatures, prepared: np.ndarray[Any, Any], image_id: str) -> Tensor:
    """The feature map of an image that is prepared already, `(C, h, w)`."""
    backbone = load_backbone(features.backbone, device="cpu")
    extractor = FeatureExtractor(backbone, blocks=[1], timestep=200)
    image = torch.from_numpy(prepared.copy()).permute(2, 0, 1)[None].float() / 255
    return extractor.features(extractor.tapped(image, [image_id]))[1][0].double()


def as_pil(image_id: str) -> Image.Image:
    return Image.fromarray(TwoPhotos().image(image_id).permute(1, 2, 0).numpy())


def test_dift_by_hand(features: BackboneFeatures, trainer: Make, tmp_path: Path) -> None:
    """Stretched to a square, upsampled to the original size, read at int(x), int(y), the best of all pixels."""
    task = CorrespondenceTask(features, ["adaln"], run_dir=str(tmp_path), protocol=Protocol("dift", image_size=32))
    predictions = found(run(trainer, task))
    maps = {}
    for name, size in SIZES.items():
        feature = adaln(features, np.asarray(as_pil(name).resize((32, 32))), name)
        maps[name] = F.interpolate(feature[None], size, mode="bilinear")[0]
    assert set(predictions) == {1, 2, 3}
    for k, (x, y) in predictions.items():
        vector = maps["wide"][:, int(KEYPOINTS[k, 1]), int(KEYPOINTS[k, 0])]
        cosine = F.cosine_similarity(vector[:, None, None], maps["tall"], dim=0)
        assert cosine[int(y), int(x)] == pytest.approx(float(cosine.max()), abs=1e-6)


def test_geoaware_by_hand(features: BackboneFeatures, trainer: Make, tmp_path: Path) -> None:
    """8 x 8 patches of 4 pixels: zeros around the image, the patch of the keypoint, a masked window of 11 patches."""
    protocol = Protocol("geoaware", cells=8, window=5)
    task = CorrespondenceTask(features, ["adaln"], run_dir=str(tmp_path), protocol=protocol)
    predictions = found(run(trainer, task))
    maps, scale, offset = {}, {"wide": 32 / 40, "tall": 32 / 50}, {"wide": (0, 4), "tall": (5, 0)}  # x, y
    for name, size in {"wide": (32, 24), "tall": (22, 32)}.items():  # 35 * 32 / 50 = 22.4
        canvas = np.zeros((32, 32, 3), dtype=np.uint8)
        x, y = offset[name]
        canvas[y : y + size[1], x : x + size[0]] = np.asarray(as_pil(name).resize(size, Image.Resampling.LANCZOS))
        maps[name] = F.normalize(adaln(features, canvas, name), dim=0)
    assert set(predictions) == {1, 2, 3}
    for k, place in predictions.items():
        column, row = (int((float(KEYPOINTS[k, i]) * scale["wide"] + offset["wide"][i]) // 4) for i in (0, 1))
        cosine = torch.einsum("c,chw->hw", maps["wide"][:, row, column], maps["tall"])
        best_row, best_column = divmod(int(cosine.argmax()), 8)
        weights = torch.zeros(8, 8, dtype=torch.float64)
        for r in range(8):
            for c in range(8):
                inside = max(abs(r - best_row), abs(c - best_column)) <= 2
                weights[r, c] = math.exp((float(cosine[r, c]) if inside else 0.0) / 0.02)
        weights /= weights.sum()
        patch = float((weights.sum(0) * torch.arange(8)).sum()), float((weights.sum(1) * torch.arange(8)).sum())
        # GeoAware keeps one scale for both axes; here the side of 22.4 pixels was rounded to 22.
        sides = (22 / 35, 32 / 50)
        expected = [(4 * patch[i] + 2 - offset["tall"][i]) / sides[i] for i in (0, 1)]
        assert place == pytest.approx(expected, abs=1e-3)


def test_protocols_differ(features: BackboneFeatures, trainer: Make, tmp_path: Path) -> None:
    rows = {}
    for name in ("dift", "geoaware", "sd4match", "probe3d", "ditf-code"):
        task = CorrespondenceTask(features, ["adaln"], run_dir=str(tmp_path), protocol=Protocol(name, image_size=32))
        rows[name] = tuple(sorted(found(run(trainer, task)).items()))
    assert len(set(rows.values())) == 5


def test_the_default_protocol_leaves_everything_to_the_task(
    features: BackboneFeatures, trainer: Make, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"rounding": "integer", "strict": True, "alphas": (0.10, 0.2)}
    options |= {"statistics": {"two": "per_image"}, "run_dir": str(tmp_path)}
    task = CorrespondenceTask(features, ["adaln"], **options)
    result = run(trainer, task)
    assert task.features == features
    assert result.datasets[0].statistic == "per_image"
    assert result.settings["scoring"] == {"alphas": [0.10, 0.2], "strict": True}
    protocol = result.settings["protocol"]
    assert (protocol["name"], protocol["changed"], protocol["replaced"]) == ("default", [], {})
    assert (protocol["rounding"], protocol["matching"], protocol["strict"]) == ("integer", "argmax_pixel", True)
    assert (protocol["threshold"], protocol["pairs_per_category"]) == ("dataset", 0)


def test_a_protocol_is_recorded_whole_with_what_it_replaced(
    features: BackboneFeatures, trainer: Make, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"rounding": "integer", "alphas": (0.10,), "statistics": {"two": "per_point"}}
    protocol = Protocol("geoaware", cells=8)
    task = CorrespondenceTask(features, ["adaln"], run_dir=str(tmp_path), protocol=protocol, **options)
    result = run(trainer, task)
    found = json.loads(json.dumps(result.settings["protocol"]))
    assert (found["name"], found["changed"]) == ("geoaware", ["cells"])
    assert (found["window"], found["mask"], found["cells"], found["strict"]) == (11, "zero", 8, True)
    assert found["replaced"] == {
        "features.image_size": 32,
        "features.resize": "stretch",
        "features.filter": "bicubic",
        "rounding": "integer",
        "strict": False,
        "alphas": [0.10],
        "statistics": {"two": "per_point"},
    }
    assert result.settings["scoring"]["strict"]
    assert result.datasets[0].statistic == "per_image"
    (model,) = result.settings["models"]
    assert (model["image_size"], model["resize"], model["filter"]) == (32, "letterbox", "lanczos")


def test_threshold_and_pairs_of_the_protocol(features: BackboneFeatures, trainer: Make, tmp_path: Path) -> None:
    bases = {}
    for threshold in ("bbox", "image", "canvas", "keypoints"):
        protocol = Protocol("default", threshold=threshold, pairs_per_category=1)
        task = CorrespondenceTask(features, ["adaln", "same_position"], run_dir=str(tmp_path), protocol=protocol)
        result = run(trainer, task, pairs=6)
        assert result.datasets[0].threshold == threshold
        assert len(result.datasets[0].pairs) == 2  # one of each category
        assert result.settings["data"]["two"]["pairs_per_category"] == 1
        bases[threshold] = {float(b) for row in result.datasets[0].rows for b in row.predictions.threshold_base}
    # The target is 35 x 50; its visible keypoints span x 12.3 to 27 and y 8 to 33.
    assert bases == {"bbox": {30.0}, "image": {50.0}, "canvas": {50.0}, "keypoints": {25.0}}
    # The next test of the same data module is over all pairs again.
    module = PairDataModule(test={"two": TwoPhotos(6)})
    for count, expected in ((1, 2), (0, 6)):
        module.limit_test(count)
        assert len(module.test["two"]) == expected


def test_a_canvas_can_be_longer_than_its_image(features: BackboneFeatures, trainer: Make, tmp_path: Path) -> None:
    protocol = Protocol("default", image_size=[32, 64], resize="pad", threshold="canvas")
    task = CorrespondenceTask(features, ["adaln", "same_position"], run_dir=str(tmp_path), protocol=protocol)
    (dataset,) = run(trainer, task).datasets
    # 50 x 35 pixels become 32 x 24 on a canvas of 32 x 64: a scale of 0.64.
    assert {float(b) for row in dataset.rows for b in row.predictions.threshold_base} == {100.0}


def test_fused_rows_search_the_whole_canvas_too(features: BackboneFeatures, trainer: Make, tmp_path: Path) -> None:
    options: dict[str, Any] = {"fusions": {"both": Fusion(["adaln", "raw"])}, "run_dir": str(tmp_path)}
    task = CorrespondenceTask(features, ["raw", "adaln", "rgb"], protocol=Protocol("geoaware", cells=8), **options)
    result = run(trainer, task)
    assert len({tuple(found(result, row).items()) for row in ("raw", "adaln", "rgb", "both")}) == 4


def test_parts_of_a_fusion_agree_on_the_canvas(features: BackboneFeatures, trainer: Make, tmp_path: Path) -> None:
    other = BackboneFeatures(**(vars(features) | {"resize": "letterbox"}))
    options: dict[str, Any] = {"others": {"more": other}, "fusions": {"both": Fusion(["adaln", "more"])}}
    task = CorrespondenceTask(features, ["adaln"], run_dir=str(tmp_path), **options)
    with pytest.raises(InputError, match=r"fusions\.both\.parts.*letterbox"):
        run(trainer, task)


def linear(channels: int, blocks: Any) -> LinearProbe:
    return LinearProbe(channels, blocks, width=4)


def test_training_follows_the_matching_rule_and_refuses_a_letterbox(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = []

    def spy(pairs: Any) -> Any:
        rules.extend(source.rule for source, _, _ in pairs)
        return match_prepared(pairs)

    monkeypatch.setattr("ditf_probe.tasks.matchers.match_prepared", spy)
    protocol = Protocol("sd4match", image_size=32)
    task = ProbeTask(features, {"linear": linear}, run_dir=str(tmp_path), protocol=protocol)
    trainer(max_epochs=1, num_sanity_val_steps=0).fit(task, pairs)
    assert {rule.kind for rule in rules} == {"kernel_softargmax"}
    boxed = ProbeTask(features, {"linear": linear}, run_dir=str(tmp_path), protocol=Protocol("geoaware", cells=8))
    with pytest.raises(InputError, match=r"`resize` is 'letterbox': train with pad"):
        trainer(max_epochs=1, num_sanity_val_steps=0).fit(boxed, pairs)
