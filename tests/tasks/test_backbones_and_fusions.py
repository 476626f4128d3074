"""Further backbones and fused rows: what is planned, what is loaded when, and what is refused."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from ditf_probe.backbones.base import Backbone, Norm, Tap, TappedBlock
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.errors import InputError
from ditf_probe.features.fusion import fuse, joint_pca
from ditf_probe.probes import LinearProbe, describe_probe, save_probe
from ditf_probe.tasks import CorrespondenceTask, models
from ditf_probe.tasks.backbone_files import read_backbones, read_features
from ditf_probe.tasks.fused_matcher import FusedMatcher
from ditf_probe.tasks.matchers import FeatureMatcher
from ditf_probe.tasks.models import Models
from ditf_probe.tasks.planning import calibrate, plan, streams_of
from ditf_probe.tasks.rows import Fusion, chosen_rows
from ditf_probe.tasks.settings import BackboneFeatures

Make = Callable[..., L.Trainer]


class Pixels(Backbone):
    """Patch means in place of a vision transformer: no noise, no AdaLN; or of a UNet, with noise."""

    has_adaln = False

    def __init__(self, num_timesteps: int = 0) -> None:
        super().__init__()
        self.name, self.num_blocks, self.channels, self.stride = "pixels", 2, 3, 8
        self.num_timesteps = num_timesteps

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def taps(self, block: int) -> tuple[Tap, ...]:
        return ("attention", "mlp")

    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def untrained(self, seed: int = 0) -> Backbone:
        return Pixels(self.num_timesteps)

    def forward(self, images: Tensor, *, blocks: Sequence[int], **options: Any) -> dict[int, TappedBlock]:
        means = torch.nn.functional.avg_pool2d(images, self.stride)
        grid = (means.shape[2], means.shape[3])
        return {b: TappedBlock(means.flatten(2).mT, None, None, None, Norm(), grid) for b in blocks}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backbones that are loaded, in order; "pixels" is one of them, and must be loaded to be described."""
    load, names = models.load_backbone, []

    def recorded(name: str, **options: Any) -> Backbone:
        if options.get("loaded", "all") == "all":
            names.append(Path(name).stem)
        elif name == "pixels":
            raise InputError("loaded", options["loaded"], "it does not take it")
        return Pixels() if name == "pixels" else load(name, **options)

    monkeypatch.setattr(models, "load_backbone", recorded)
    return names


@pytest.fixture
def pixels() -> BackboneFeatures:
    """What a row asks of `Pixels`: an image size and a resize of its own."""
    return BackboneFeatures([1], 0, modulation="none", image_size=40, resize="pad", backbone="pixels")


def test_equal_passes_are_shared_and_others_are_not(
    features: BackboneFeatures, pixels: BackboneFeatures, loaded: list[str]
) -> None:
    others = {
        "same pass": replace(features, blocks=[0], modulation="layer_norm"),
        "pixels": pixels,
        "other size": replace(features, image_size=64),
        "other time": replace(features, timestep=20),
        "other dtype": replace(features, dtype="bfloat16"),
    }
    matchers = plan(Models("cpu"), features, chosen_rows(["raw", "adaln", "same_position"]), (), others)
    assert [matcher.row.name for matcher in matchers] == ["raw", "adaln", *others, "same_position"]
    streams = {matcher.row.name: matcher.streams for matcher in matchers}
    assert streams["raw"] == streams["adaln"] == streams["same pass"]
    assert streams["same pass"][0].extractor.blocks == [1, 0]
    assert streams["same_position"] == ()
    apart = ("raw", "pixels", "other size", "other time", "other dtype")
    assert len({id(streams[name][0]) for name in apart}) == 5
    # Three backbones, of which two can be checked without being loaded.
    assert loaded == ["pixels"]
    backbones = [stream.extractor.backbone for stream in streams_of(matchers)]
    assert [backbones.index(backbone) for backbone in backbones] == [0, 0, 0, 3, 4]


def test_a_backbone_is_loaded_once_per_data_set(
    features: BackboneFeatures, pixels: BackboneFeatures, loaded: list[str], pairs: PairDataModule, trainer: Make,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    others = {"pixels": pixels, "again": replace(features, timestep=20)}
    trainer().test(CorrespondenceTask(features, ["adaln"], others=others, run_dir=str(tmp_path)), pairs, verbose=False)
    assert loaded == ["pixels", "small"]  # small ones stay
    loaded.clear()
    monkeypatch.setattr("ditf_probe.tasks.models.ROOM", 0)
    task = CorrespondenceTask(features, ["adaln"], others=others, run_dir=str(tmp_path))
    trainer().test(task, pairs, verbose=False)
    # One to check its settings, then both for each of two data sets.
    assert loaded == ["pixels", "small", "pixels", "small", "pixels"]
    task = CorrespondenceTask(features, ["adaln", "raw"], others={"again": others["again"]}, run_dir=str(tmp_path))
    loaded.clear()
    trainer().test(task, pairs, verbose=False)
    assert loaded == ["small"]


def test_only_what_must_be_found_is_calibrated(features: BackboneFeatures, pixels: BackboneFeatures) -> None:
    others = {
        "found": replace(features, discard="post_adaln", timestep=1),
        "given": replace(features, discard="post_adaln", massive_channels=[3, 5]),
    }
    matchers = plan(Models("cpu"), features, [], (), others)
    calibrate(matchers, SyntheticPairs("train", 2, 32))
    calibrated = {m.row.name: s.extractor.calibration is not None for m in matchers for s in m.streams}
    assert calibrated == {"found": True, "given": False}
    assert matchers[1].note() == ("small, block 1, t = 200", "2 channels")


def test_a_fused_row_puts_the_maps_of_its_parts_together(
    features: BackboneFeatures, pixels: BackboneFeatures, loaded: list[str]
) -> None:
    dataset = SyntheticPairs("test", 1, 50)
    fusion = Fusion(["adaln", "pixels"], [2.0, 1.0], [4, None], [6, 7])
    *parts, fused = plan(Models("cpu"), features, chosen_rows(["adaln"]), (), {"pixels": pixels}, {"both": fusion})
    assert isinstance(fused, FusedMatcher)
    assert (fused.row.kind, fused.parameters) == ("zero-shot", 0)
    for stream in streams_of([fused]):
        stream.open(dataset)
    maps = [part.maps(dataset[0]) for part in parts if isinstance(part, FeatureMatcher)]
    reduced = joint_pca(*maps[0], 4)
    for found, first, second in zip(fused.maps(dataset[0]), reduced, maps[1], strict=True):
        assert torch.equal(found, fuse([first, second], [2.0, 1.0], (6, 7)))
        assert found.shape == (4 + 3, 6, 7)
    assert fused.note() == ("adaln by joint PCA to 4 channels",)


def test_probes_and_controls_can_be_parts(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    backbone = Models("cpu")[features]
    probe = LinearProbe(16, [1], width=8)
    facts = describe_probe(probe, features={"blocks": [1], "timestep": 200}, backbone=backbone.settings(), training={})
    save_probe(tmp_path / "linear", probe.state_dict(), facts)
    fusions = {
        "probed": Fusion(["adaln", "linear", "rgb"]),
        "control": Fusion(["rgb", "untrained"]),
    }
    rows = ["adaln", "rgb", "untrained"]
    task = CorrespondenceTask(features, rows, [str(tmp_path / "linear")], run_dir=str(tmp_path), fusions=fusions)
    trainer().test(task, pairs, verbose=False)
    found = {row.name: row for row in task.result().datasets[0].rows}
    assert list(found) == ["adaln", "probed", "control", "linear", "rgb", "untrained"]
    assert (found["probed"].kind, found["probed"].parameters) == ("probe", 16 * 8 + 8)
    assert (found["control"].kind, found["control"].parameters) == ("control", 0)


@pytest.mark.parametrize("num_timesteps", [0, 999])
def test_rows_of_a_backbone_without_adaln(
    num_timesteps: int, pixels: BackboneFeatures, pairs: PairDataModule, trainer: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A vision transformer, or the UNet of DIFT: what needs AdaLN is refused before an image is computed."""
    monkeypatch.setattr(models, "load_backbone", lambda name, **options: Pixels(num_timesteps))
    run_dir, rows = str(tmp_path), ["raw", "layer_norm", "untrained"]
    task = CorrespondenceTask(pixels, rows, run_dir=run_dir)
    trainer().test(task, pairs, verbose=False)
    raw, _, untrained = task.result().datasets[0].rows
    assert [row["modulation"] for row in task.settings()["rows"].values()] == ["none", "layer_norm", "none"]
    assert (raw.predictions.x == untrained.predictions.x).all()  # the same model here
    monkeypatch.setattr(Pixels, "forward", None)
    with pytest.raises(InputError, match=r"`rows` is \['adaln'\]: pixels has no AdaLN, leave these rows out"):
        trainer().test(CorrespondenceTask(pixels, ["raw", "adaln", "untrained"], run_dir=run_dir), pairs, verbose=False)
    others = {"vit": replace(pixels, modulation="adaln")}
    task = CorrespondenceTask(pixels, ["raw"], others=others, run_dir=run_dir)
    with pytest.raises(InputError, match=r"`others\.vit\.modulation` is 'adaln': pixels has no AdaLN, use none"):
        trainer().test(task, pairs, verbose=False)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"backbone": "/no/such/model"}, r"`others\.more\.backbone` is '/no/such/model'"),
        ({"blocks": [99]}, r"`others\.more\.blocks` is 99"),
        ({"blocks": [0, 1]}, r"`others\.more\.blocks` is \[0, 1\].* one block"),
        ({"timestep": 5000}, r"`others\.more\.timestep` is 5000"),
        ({"tap": "both"}, r"`others\.more\.tap` is 'both'"),
        ({"bank_dtype": "int8"}, r"`others\.more\.dtype` is 'int8'"),
    ],
)
def test_what_a_further_backbone_does_not_have(
    change: dict[str, Any], pattern: str, features: BackboneFeatures
) -> None:
    with pytest.raises(InputError, match=pattern):
        plan(Models("cpu"), features, chosen_rows(["raw"]), (), {"more": replace(features, **change)})


def test_backbone_files(tmp_path: Path, features: BackboneFeatures) -> None:
    preset = str(CONFIGS / "backbone" / "ditf_tiny.yaml")
    found = read_backbones([preset], {"more": features})
    assert found == {"more": features, "ditf_tiny": read_features(preset)}
    assert (found["ditf_tiny"].backbone, found["ditf_tiny"].image_size) == ("ditf-tiny", 64)
    with pytest.raises(InputError, match="rename the file"):
        read_backbones([preset, preset], {})
    with pytest.raises(InputError, match="rename the file"):
        read_backbones([preset], {"ditf_tiny": features})


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "exist"),
        ("blocks: [1\n", "pars"),
        ("blocks: [1]\n", "timestep"),
        ("blocks: [1]\ntimestep: 5\nno_such_setting: 1\n", "no_such_setting"),
        ("blocks: [1]\ntimestep: late\n", "late"),
        ("- blocks\n", "blocks"),
        ("", "config"),
    ],
)
def test_a_bad_backbone_file(text: str | None, word: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=rf"(?i)`backbone` is '\S+bad\.yaml': give a file such as .*{word}") as found:
        read_features(file)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("fusion", "pattern"),
    [
        (Fusion(["adaln"]), r"parts` is \['adaln'\]: name at least two"),
        (Fusion(["adaln", "dino"]), r"parts` is 'dino': name rows with features, raw, adaln, more"),
        (Fusion(["adaln", "rgb"]), "parts` is 'rgb'"),  # not in this table
        (Fusion(["adaln", "same_position"]), "parts` is 'same_position'"),
        (Fusion(["adaln", "both"]), "parts` is 'both'"),
        (Fusion(["adaln", "raw"], weights=[1]), r"weights` is \[1\]"),
        (Fusion(["adaln", "raw"], weights=[1, -1]), r"weights` is \[1, -1\]"),
        (Fusion(["adaln", "raw"], weights=[math.inf, 1]), r"weights` is \[inf, 1\]"),
        (Fusion(["adaln", "raw"], joint_pca=[0, None]), r"joint_pca` is \[0, None\]"),
        (Fusion(["adaln", "raw"], joint_pca=[8]), r"joint_pca` is \[8\]"),
        (Fusion(["adaln", "raw"], grid=[4]), r"grid` is \[4\]"),
        (Fusion(["adaln", "raw"], grid="finer"), "grid` is 'finer'"),  # type: ignore[arg-type]
    ],
)
def test_an_impossible_fusion(fusion: Fusion, pattern: str, features: BackboneFeatures) -> None:
    with pytest.raises(InputError, match=r"fusions\.both\." + pattern):
        CorrespondenceTask(
            features, ["raw", "adaln", "same_position"], others={"more": features}, fusions={"both": fusion}
        )


def test_names_that_meet(features: BackboneFeatures) -> None:
    both = Fusion(["adaln", "raw"])
    with pytest.raises(InputError, match="`others` is 'untrained'"):
        CorrespondenceTask(features, ["raw"], others={"untrained": features})
    with pytest.raises(InputError, match="`others` is 'linear'"):
        CorrespondenceTask(features, ["raw"], ["probes/linear"], others={"linear": features})
    for name in ("adaln", "more", "linear"):
        with pytest.raises(InputError, match=f"`fusions` is '{name}'"):
            CorrespondenceTask(
                features, ["raw", "adaln"], ["probes/linear"], others={"more": features}, fusions={name: both}
            )
