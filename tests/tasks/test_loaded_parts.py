"""A run loads of its backbones what its rows and probes need, and nothing that it finds depends on that."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import lightning as L
import pytest
import torch

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.errors import InputError
from ditf_probe.probes import LayerAggregation, read_facts
from ditf_probe.tasks import CorrespondenceTask, ProbeTask, models
from ditf_probe.tasks.models import Models, loaded_part
from ditf_probe.tasks.settings import BackboneFeatures

Make = Callable[..., L.Trainer]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int | None, str | None]]:
    """`last_block` and `last_tap` of every backbone that is loaded."""
    load, seen = models.load_backbone, []

    def recorded(name: str, **options: Any) -> Backbone:
        seen.append((options.get("last_block"), options.get("last_tap")))
        return load(name, **options)

    monkeypatch.setattr(models, "load_backbone", recorded)
    return seen


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ([(1, "mlp")], (1, "mlp")),
        ([(1, "mlp"), (0, "query")], (1, "mlp")),
        ([(1, "mlp"), (-1, "attention")], (3, "attention")),
        ([(1, "mlp"), (-3, "attention")], (1, None)),
        ([(0, "attention"), (99, "mlp")], (0, "attention")),
        ([(3, "mlp")], (3, None)),  # has no such tap, which is for the row to refuse
        ([(-5, "mlp")], None),
    ],
)
def test_the_last_block_and_its_tap(
    asked: list[tuple[int, Any]], part: tuple[int, str | None] | None, features: BackboneFeatures
) -> None:
    """The small backbone has blocks 0 and 1 with both AdaLN layers, and 2 and 3 with one."""
    requests = [replace(features, blocks=[block], tap=tap) for block, tap in asked]
    expected = {} if part is None else dict(zip(("last_block", "last_tap"), part, strict=True))
    assert loaded_part(features, requests) == expected
    one = replace(features, blocks=[block for block, _ in asked], tap=asked[0][1])
    assert loaded_part(one, [one]).get("last_block") == expected.get("last_block")


def test_what_is_loaded_whole(features: BackboneFeatures, tmp_path: Path) -> None:
    for options in ({"last_block": 3}, {"last_tap": "mlp"}):
        chosen = replace(features, options=options)
        assert loaded_part(chosen, [chosen]) == {}
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    for backbone in ("timm/vit_tiny_patch16_224", str(tmp_path), "no such thing"):
        other = replace(features, backbone=backbone)
        assert loaded_part(other, [other]) == {}


def test_blocks_of_a_single_file_are_counted_in_its_config(features: BackboneFeatures, tmp_path: Path) -> None:
    name = "DiTTransformer2DModel"
    diffusers.DiTTransformer2DModel(**FAMILIES[name].tiny).save_config(tmp_path)
    single = replace(features, blocks=[-2], backbone="model.safetensors", options={"config": str(tmp_path)})
    assert loaded_part(single, [single]) == {"last_block": 1, "last_tap": "mlp"}


def test_a_comparison_finds_the_same(
    features: BackboneFeatures, loads: list[Any], pairs: PairDataModule, trainer: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Another size shares the backbone, another dtype does not."""
    others = {
        "later": replace(features, blocks=[-2], tap="attention", image_size=48),
        "half": replace(features, blocks=[0], dtype="bfloat16"),
    }
    found = []
    for known in (True, False):
        if not known:
            monkeypatch.setattr(CorrespondenceTask, "requests", lambda self: None)
        task = CorrespondenceTask(features, ["adaln", "untrained"], others=others, run_dir=str(tmp_path))
        trainer().test(task, pairs, verbose=False)
        found.append(task)
        assert set(loads) == ({(2, "attention"), (0, "mlp")} if known else {(None, None)})
        loads.clear()
    assert found[0].settings() == found[1].settings()
    for here, there in zip(*(task.result().datasets for task in found), strict=True):
        for one, other in zip(here.rows, there.rows, strict=True):
            assert (one.predictions.x == other.predictions.x).all()
            assert (one.predictions.similarity == other.predictions.similarity).all()


def test_a_training_and_the_evaluation_of_its_probe(
    features: BackboneFeatures, loads: list[Any], pairs: PairDataModule, trainer: Make, tmp_path: Path
) -> None:
    build = {"mix": lambda channels, blocks: LayerAggregation(channels, blocks, width=8)}
    features = replace(features, tap="attention")
    task = ProbeTask(features, build, probe_blocks={"mix": [0, 2]}, run_dir=str(tmp_path))
    trainer(max_epochs=1).fit(task, pairs)
    assert set(loads) == {(2, "attention")}
    folder = tmp_path / "probes" / "mix"
    assert read_facts(folder).backbone == load_backbone(features.backbone, device="cpu").settings()
    loads.clear()
    zero_shot = replace(features, tap="mlp")  # of block 1; the probe keeps its tap
    evaluation = CorrespondenceTask(zero_shot, ["adaln"], [str(folder)], run_dir=str(tmp_path))
    trainer().test(evaluation, pairs, verbose=False)
    assert set(loads) == {(2, "attention")}


def test_options_of_the_user_come_first(features: BackboneFeatures, loads: list[Any]) -> None:
    chosen = replace(features, options={"last_block": 0})
    backbone = Models("cpu", [chosen])[chosen]
    assert loads == [(0, None)]
    with pytest.raises(InputError, match="loaded up to block 0"):
        backbone(torch.rand(1, 3, 8, 8), blocks=[1], timestep=0)
