"""Several backbones and their fusion in one table, from the command line to its files."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DiTTransformer2DModel, FluxTransformer2DModel
from torch import nn

import ditf_probe
from ditf_probe import FeatureExtractor, SyntheticPairs, load_backbone, match_keypoints
from ditf_probe.cli import evaluate
from ditf_probe.comparison.predictions_files import read_predictions
from ditf_probe.features.fusion import fuse, joint_pca
from ditf_probe.metrics.predictions import COLUMNS
from ditf_probe.tasks.records import RowResult

TINY = {"backbone": "ditf-tiny", "blocks": [3], "timestep": 100, "image_size": 64}
DIT = {"blocks": [1], "timestep": 50, "image_size": [32, 48], "discard": "post_adaln", "massive_ratio": 2.0}
FLUX = {"blocks": [-1], "timestep": 260, "tap": "attention", "image_size": 48, "resize": "pad", "ensemble": 2}
DINO = {"backbone": "timm/test_vit", "options": {"pretrained": False, "norm": True}, "blocks": [-1], "timestep": 0}
DINO |= {"modulation": "none", "image_size": 64}
DATA = {"split": "test", "num_pairs": 6, "image_size": 80}
FUSIONS = {
    "tiny+flux": {"parts": ["adaln", "flux"], "joint_pca": [24, None]},
    "tiny+dino": {"parts": ["adaln", "dino"]},
    "all": {"parts": ["dit", "flux", "raw"], "weights": [1, 0.5, 2], "grid": "coarsest"},
}


def saved(model: nn.Module, folder: Path) -> None:
    """Saves a model with random weights in every layer, also in those that diffusers initialises with zeros."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def presets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A DiT of pixels and a FLUX with an autoencoder, as folders, and a file for each."""
    folder = tmp_path_factory.mktemp("backbones")
    heads = {"num_attention_heads": 2, "attention_head_dim": 16}
    pixels = {"in_channels": 3, "out_channels": 3, "patch_size": 4, "sample_size": 16}
    saved(DiTTransformer2DModel(num_layers=2, num_embeds_ada_norm=5, **pixels, **heads), folder / "dit_weights")
    widths = {"joint_attention_dim": 24, "pooled_projection_dim": 20, "axes_dims_rope": [4, 6, 6]}
    flux = FluxTransformer2DModel(in_channels=16, num_layers=1, num_single_layers=2, **widths, **heads)
    saved(flux, folder / "flux_weights" / "transformer")
    stages = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(**stages, block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4)
    saved(vae, folder / "flux_weights" / "vae")
    for name, settings in (("dit", DIT), ("flux", FLUX)):
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"backbone": str(folder / f"{name}_weights"), **settings}))
    return {name: folder / f"{name}.yaml" for name in ("dit", "flux")}


def compare(run_dir: Path, *words: str, features: Any = TINY, **options: Any) -> dict[str, RowResult]:
    """The rows that `eval.py test` finds."""
    model = {"class_path": "ditf_probe.tasks.CorrespondenceTask", "init_args": {"features": features} | options}
    drawn = "ditf_probe.data.synthetic.SyntheticPairs"
    calibration = {"class_path": drawn, "init_args": {"split": "train", "num_pairs": 3}}
    test = {"synthetic": {"class_path": drawn, "init_args": DATA}}
    data = {"calibration": calibration, "test": test, "batch_size": 4}
    data = {"class_path": "ditf_probe.data.datamodule.PairDataModule", "init_args": data}
    file = run_dir.parent / f"{run_dir.name}.yaml"
    trainer = {"callbacks": []}  # neither progress bar nor pictures
    file.write_text(yaml.safe_dump({"trainer": trainer, "model": model, "data": data}, sort_keys=False))
    evaluate(["test", "--config", str(file), "--run_dir", str(run_dir), *words])
    return {row.name: row for row in read_predictions(run_dir).datasets[0].rows}


@pytest.fixture(scope="module")
def together(presets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, RowResult]]:
    run_dir = tmp_path_factory.mktemp("runs") / "together"
    given = {"others": {"dit": yaml.safe_load(presets["dit"].read_text()), "dino": DINO}, "fusions": FUSIONS}
    rows = ["raw", "adaln", "same_position", "rgb"]
    return run_dir, compare(run_dir, "--backbone", str(presets["flux"]), rows=rows, **given)


def assert_same_predictions(one: RowResult, two: RowResult) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one.predictions, name), getattr(two.predictions, name), err_msg=name)
    assert (one.kind, one.parameters) == (two.kind, two.parameters)


def test_each_row_is_that_of_its_backbone_alone(
    together: tuple[Path, dict[str, RowResult]], presets: dict[str, Path], tmp_path: Path
) -> None:
    _, rows = together
    assert list(rows) == [
        "raw", "adaln", "dit", "dino", "flux", "tiny+flux", "tiny+dino", "all", "same_position", "rgb",
    ]  # fmt: skip
    alone = compare(tmp_path / "tiny", rows=["raw", "adaln", "rgb"])
    for name in ("raw", "adaln", "rgb"):
        assert_same_predictions(rows[name], alone[name])
    alone = compare(tmp_path / "dit", features=str(presets["dit"]), rows=["adaln", "adaln+discard_post"])
    assert_same_predictions(rows["dit"], alone["adaln+discard_post"])
    assert rows["dit"].predictions.x.tolist() != alone["adaln"].predictions.x.tolist()
    alone = compare(tmp_path / "dino", features=DINO, rows=["raw"])
    assert_same_predictions(rows["dino"], alone["raw"])
    alone = compare(tmp_path / "flux", features=str(presets["flux"]), rows=["adaln"])
    assert_same_predictions(rows["flux"], alone["adaln"])


def test_the_files_say_what_the_rows_are(together: tuple[Path, dict[str, RowResult]]) -> None:
    run_dir, _ = together
    comparison = json.loads((run_dir / "comparison.json").read_text())
    schema = json.loads((Path(ditf_probe.__file__).parent / "comparison.schema.json").read_text())
    jsonschema.validate(comparison, schema)
    rows = {row["name"]: row for row in comparison["datasets"]["synthetic"]["rows"]}
    for name in ("dit", "dino", "flux", *FUSIONS):
        assert (rows[name]["kind"], rows[name]["parameters"], rows[name]["delta"]["reference"]) == (
            "zero-shot", 0, "adaln",
        )  # fmt: skip
    settings = comparison["settings"]
    models = {name: settings["models"][settings["rows"][name]["model"]] for name in ("adaln", "dit", "flux")}
    assert [model["backbone"]["name"] for model in models.values()] == ["ditf-tiny", "dit_weights", "flux_weights"]
    assert (models["flux"]["resize"], models["flux"]["ensemble"], models["dit"]["timestep"]) == ("pad", 2, 50)
    assert settings["rows"]["flux"]["blocks"] == [2]
    discarded = models["dit"]["massive_channels"]["1"]
    assert len(discarded) > 0
    assert rows["dit"]["notes"][:2] == [
        "dit_weights, block 1, t = 50",
        f"{len(discarded)} channel{'s' * (len(discarded) != 1)}",
    ]
    assert rows["tiny+flux"]["notes"][0] == "adaln by joint PCA to 24 channels"
    fusion = settings["rows"]["tiny+flux"]
    assert fusion["source"] == "fusion"
    assert fusion["fusion"] == {
        "parts": ["adaln", "flux"], "weights": None, "joint_pca": [24, None], "grid": "finest",
    }  # fmt: skip
    before = (run_dir / "comparison.csv").read_bytes()
    evaluate(["--from-predictions", str(run_dir)])
    assert json.loads((run_dir / "comparison.json").read_text()) == comparison
    assert (run_dir / "comparison.csv").read_bytes() == before


def test_fused_rows_equal_the_public_functions(
    together: tuple[Path, dict[str, RowResult]], presets: dict[str, Path]
) -> None:
    _, rows = together
    settings = {"adaln": TINY, "flux": yaml.safe_load(presets["flux"].read_text())}
    extractors = {}
    for name, given in settings.items():
        options = dict(given)
        extractors[name] = FeatureExtractor(load_backbone(options.pop("backbone"), device="cpu"), **options)
    dataset, same, total = SyntheticPairs(**DATA), 0, 0
    for index in range(len(dataset)):
        pair = dataset[index]
        maps = {}
        for name, extractor in extractors.items():
            sides = [(dataset.image(side.image_id), side.image_id) for side in (pair.source, pair.target)]
            (block,) = extractor.blocks
            maps[name] = [extractor(extractor.prepare(image)[None], [i])[block][0] for image, i in sides]
        reduced = joint_pca(*maps["adaln"], 24)
        source, target = (fuse(parts) for parts in zip(reduced, maps["flux"], strict=True))
        points = pair.source.keypoints[pair.visible]
        expected, _ = match_keypoints(source, target, points, pair.source.size, pair.target.size)
        found = rows["tiny+flux"].predictions.where(rows["tiny+flux"].predictions.present)
        own = found.pair_index == index
        same += int(sum(map(tuple.__eq__, zip(found.x[own], found.y[own], strict=True), map(tuple, expected.tolist()))))
        total += len(points)
    assert total == rows["tiny+flux"].predictions.present.sum()
    assert same >= 0.95 * total  # a tie between pixels may fall either way with the batch size


def test_a_bad_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.yaml").write_text("backbone: /no/such/model\nblocks: [1]\ntimestep: 5\n")
    for file, names in (("none.yaml", ("`backbone`", "none.yaml")), ("other.yaml", ("`others.other.backbone`",))):
        with pytest.raises(SystemExit) as end:
            compare(tmp_path / "run", "--backbone", str(tmp_path / file), rows=["adaln"])
        assert end.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        for name in names:
            assert name in line
        assert not (tmp_path / "run" / "comparison.json").exists()
