"""A trained head and its backbone as one folder: it gives the numbers of the evaluation, and refuses what differs."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from ditf_probe import ProbedBackbone, load_backbone
from ditf_probe.backbones.spec import tiny_spec
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.pairs import PairDataset
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.data.warped import WarpedPhotos
from ditf_probe.errors import InputError
from ditf_probe.features.kept_calibration import keep, restore
from ditf_probe.probes import LayerAggregation, LinearProbe, load_probe, read_facts, save_probe
from ditf_probe.tasks import ProbeTask
from ditf_probe.tasks.settings import BackboneFeatures

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def probed_by(features: BackboneFeatures, head: nn.Module | None = None) -> ProbedBackbone:
    torch.manual_seed(0)
    head = LayerAggregation(16, features.blocks, width=8) if head is None else head
    return ProbedBackbone(head, load_backbone(features.backbone, device="cpu"), features, {"epoch": 3})


def small(path: Path, **changes: Any) -> Path:
    options: dict[str, Any] = {"width": 16, "blocks": 4, "seed": 1} | changes
    spec = tiny_spec("flux", ["a", "b"], head_dim=8, double_blocks=2, image_size=32, **{
        name: options[name] for name in ("width", "blocks")
    })  # fmt: skip
    TinyDenoiser.untrained(spec, seed=options["seed"]).save(path)
    return path


def matched(task: ProbeTask, number: int) -> Tensor:
    """What the evaluation found with the probe on a data set: `(R, 2)` and the cosine."""
    (row,) = [row for row in task.result().datasets[number].rows if row.name == "mix"]
    found = row.predictions
    return torch.stack([torch.from_numpy(column) for column in (found.x, found.y, found.similarity)], -1)


def matched_by_hand(probed: ProbedBackbone, dataset: PairDataset) -> Tensor:
    found = []
    for pair in (dataset[index] for index in range(len(dataset))):
        source, target = (dataset.image(side.image_id) for side in (pair.source, pair.target))
        keypoints = pair.source.keypoints[pair.source.visible]
        ids = (pair.source.image_id, pair.target.image_id)
        predictions, similarity = probed.match(source, target, keypoints, image_ids=ids)
        found.append(torch.cat([predictions, similarity[:, None]], -1))
    return torch.cat(found)


@pytest.mark.parametrize("resize", ["stretch", "pad_end"])
def test_a_trained_folder_gives_the_predictions_of_the_evaluation(
    resize: Any, features: BackboneFeatures, tmp_path: Path
) -> None:
    tests: dict[str, PairDataset] = {"synthetic": SyntheticPairs("test", 3, 32)}
    tests["warped"] = WarpedPhotos(num_pairs=2, image_size=48)
    train = SyntheticPairs("train", 4, 32)
    pairs = PairDataModule(train=train, val=train, test=tests, batch_size=2)
    calibrated = {"discard": "pre_norm", "massive_ratio": 1.2, "position_debias": "mean"}
    settings = replace(features, blocks=[1], resize=resize, **calibrated)
    options: dict[str, Any] = {"probe_blocks": {"mix": [0, 1]}, "rows": ["raw"], "run_dir": str(tmp_path)}
    factories = {"mix": lambda channels, blocks: LayerAggregation(channels, blocks, width=8)}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "enable_checkpointing": False, "default_root_dir": tmp_path}
    L.Trainer(max_epochs=1, **quiet).fit(ProbeTask(settings, factories, **options), pairs)
    folder = tmp_path / "probes" / "mix"
    task = ProbeTask(settings, factories, probe_folders=[str(folder)], **options)
    L.Trainer(**quiet).test(task, pairs, verbose=False)
    probed = ProbedBackbone.load(folder, device="cpu")
    assert any(probed.extractor.discarded(block) for block in (0, 1))
    probed.save(tmp_path / "again")
    again = ProbedBackbone.load(tmp_path / "again", device="cpu")
    for number, dataset in enumerate(tests.values()):
        assert torch.equal(matched_by_hand(probed, dataset), matched(task, number))
        assert torch.equal(matched_by_hand(again, dataset), matched(task, number))


def test_a_folder_holds_everything_but_the_backbone(features: BackboneFeatures, tmp_path: Path) -> None:
    settings = replace(features, discard="post_adaln", massive_ratio=1.2, position_debias="mean", ensemble=2)
    probed = probed_by(settings)
    probed.extractor.calibrate(torch.rand(4, 3, 32, 32), ["a", "b", "c", "d"])
    probed.save(tmp_path / "mine")
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == ["probe.safetensors", "probe.yaml"]
    facts = yaml.safe_load((tmp_path / "mine" / "probe.yaml").read_text())
    assert facts["features"]["backbone"] == features.backbone
    assert facts["backbone"]["weights_sha256"] == probed.backbone.settings()["weights_sha256"]
    assert facts["calibration"]["massive_channels"] == {
        str(block): probed.extractor.discarded(block) for block in (0, 1)
    }
    assert facts["training"] == {"epoch": 3}
    loaded = ProbedBackbone.load(tmp_path / "mine", device="cpu")
    assert loaded.extractor.settings() == probed.extractor.settings()
    assert torch.equal(loaded(IMAGES), probed(IMAGES))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.train().backbone.training
    elsewhere = shutil.copy(features.backbone, tmp_path / "elsewhere.safetensors")
    moved = ProbedBackbone.load(tmp_path / "mine", elsewhere, device="cpu")
    assert torch.equal(moved(IMAGES), probed(IMAGES))
    shared = ProbedBackbone.load(tmp_path / "mine", probed.backbone, changes={"ensemble": 1})
    assert shared.backbone is probed.backbone
    assert shared.extractor.ensemble == 1
    assert not torch.equal(shared(IMAGES), probed(IMAGES))


def test_a_calibration_of_other_blocks_is_refused(features: BackboneFeatures, tmp_path: Path) -> None:
    settings = replace(features, blocks=[1], position_debias="mean")
    probed = probed_by(settings, LinearProbe(16, [1]))
    probed.extractor.calibrate(IMAGES)
    facts, tensors = keep(probed.extractor, [1])
    assert facts is not None
    assert "position_means/adaln+none/1" in tensors
    assert not any("layer_norm" in name or name.endswith("/0") for name in tensors)
    wider = probed_by(replace(settings, blocks=[0, 1]))
    with pytest.raises(InputError, match=r"folder.*calibration without block 0"):
        restore(wider.extractor, facts, tensors, "folder")
    with pytest.raises(InputError, match=r"folder.*without 'position_means/adaln.none/1'"):
        restore(probed.extractor, facts, {name: x for name, x in tensors.items() if "means" not in name}, "folder")
    with pytest.raises(InputError, match=r"folder.*without 'massive_channels'"):
        restore(probed.extractor, {"num_images": 3, "position_means": {}}, {}, "folder")


def test_gradients_reach_the_head_alone(features: BackboneFeatures) -> None:
    probed = probed_by(features)
    probed(IMAGES).square().sum().backward()
    assert all(parameter.grad is not None for parameter in probed.head.parameters())
    assert all(parameter.grad is None for parameter in probed.backbone.parameters())


def test_another_backbone_is_refused_by_name(features: BackboneFeatures, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    probed_by(features).save(folder)
    other = {"weights_sha256 differ": {"seed": 2}, "takes 16 channels and .* has 24": {"width": 24}}
    for number, (words, changes) in enumerate(other.items()):
        with pytest.raises(InputError, match=f"folder.*mine.*{words}"):
            ProbedBackbone.load(folder, small(tmp_path / f"other{number}.safetensors", **changes), device="cpu")
    deep = tmp_path / "deep"
    probed_by(replace(features, blocks=[0, 3], tap="attention")).save(deep)
    with pytest.raises(InputError, match=r"folder.*deep.*shallow has 0"):
        ProbedBackbone.load(deep, load_backbone(small(tmp_path / "shallow.safetensors", blocks=3), device="cpu"))
    with pytest.raises(InputError, match=r"backbone.*no/such"):
        ProbedBackbone.load(folder, "no/such/model")


@pytest.mark.parametrize(
    ("name", "value"),
    [("modulation", "none"), ("blocks", [1]), ("timestep", 100), ("tap", "attention"), ("discard", "pre_norm")],
)
def test_what_the_head_was_trained_on_cannot_be_changed(
    name: str, value: Any, features: BackboneFeatures, tmp_path: Path
) -> None:
    probed_by(features).save(tmp_path)
    with pytest.raises(InputError, match=f"changes.{name}.*trained on {getattr(features, name)!r}".replace("[", r"\[")):
        ProbedBackbone.load(tmp_path, changes={name: value})
    with pytest.raises(InputError, match=r"changes.*no_such"):
        ProbedBackbone.load(tmp_path, changes={"no_such": 1})


def test_a_tuple_says_what_a_list_says(features: BackboneFeatures, tmp_path: Path) -> None:
    probed = probed_by(replace(features, timestep=[50, 100]))
    probed.save(tmp_path)
    again = ProbedBackbone.load(tmp_path, changes={"timestep": (50, 100), "blocks": tuple(features.blocks)})
    assert again.settings == probed.settings
    with pytest.raises(InputError, match=r"changes.timestep.*trained on \[50, 100\]"):
        ProbedBackbone.load(tmp_path, changes={"timestep": (100, 50)})


def test_a_head_that_does_not_fit_is_refused(features: BackboneFeatures, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"blocks.*\[0, 1\].*also needs \[2\]"):
        probed_by(features, LinearProbe(16, [1, 2]))
    with pytest.raises(InputError, match=r"channels.*12.*has 16 at block 0"):
        probed_by(features, LinearProbe(12, [0]))
    with pytest.raises(InputError, match=r"Conv2d.*channels and blocks"):
        probed_by(features, nn.Conv2d(16, 8, 1))
    probed_by(features).save(tmp_path)
    head, facts = load_probe(tmp_path)
    save_probe(tmp_path, head.state_dict(), replace(facts, features=facts.features | {"blocks": [1]}))
    with pytest.raises(InputError, match=r"folder.*uses blocks \[0, 1\], its features are of \[1\]"):
        ProbedBackbone.load(tmp_path)


def test_a_folder_of_the_past_or_the_future(features: BackboneFeatures, tmp_path: Path) -> None:
    probed = probed_by(features)
    probed.save(tmp_path)
    head, facts = load_probe(tmp_path)
    assert facts.calibration is None
    save_probe(tmp_path, head.state_dict(), replace(facts, features=facts.features | {"brightness": 2}))
    assert read_facts(tmp_path).features["brightness"] == 2
    with pytest.raises(InputError, match="setting brightness is not known"):
        ProbedBackbone.load(tmp_path)


def test_the_example_of_the_documentation_runs(
    features: BackboneFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "probes.md").read_text().split("## Using a trained probe")[1]
    use, export = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[:2]
    monkeypatch.chdir(tmp_path)
    for name in ("source", "target"):
        Image.effect_noise((320, 240), 90).convert("RGB").save(f"{name}.jpg")
    probed = probed_by(replace(features, blocks=[1]), LinearProbe(16, [1], width=8))
    probed.save(tmp_path / "runs" / "quickstart" / "probes" / "linear")
    names: dict[str, Any] = {}
    exec(compile(use, "probes.md", "exec"), names)
    assert names["predictions"].shape == (2, 2)
    assert names["maps"].shape == (2, 8, 8, 8)
    names["probed"].export_head("head.pt2")
    names["maps_of_block_3"] = torch.rand(2, 16, 5, 6)
    exec(compile(export, "probes.md", "exec"), names)
    torch.testing.assert_close(names["descriptors"], probed.head({1: names["maps_of_block_3"]}))
