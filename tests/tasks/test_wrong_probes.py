"""Heads of other blocks, widths, modulations, timesteps, taps and backbones are refused by name."""

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.features.settings import FeatureSettings
from ditf_probe.probes import (
    PROBE_SETTINGS,
    LayerAggregation,
    LinearProbe,
    Probe,
    ProbeFacts,
    TimestepAggregation,
    check_features,
    describe_probe,
    save_probe,
)
from ditf_probe.tasks import CorrespondenceTask, ProbeTask
from ditf_probe.tasks.held_probes import check_backbone
from ditf_probe.tasks.settings import BackboneFeatures

Make = Callable[..., L.Trainer]


@pytest.fixture
def backbone(features: BackboneFeatures) -> Backbone:
    return load_backbone(features.backbone, device="cpu")


def facts_of(probe: Probe, features: BackboneFeatures, backbone: Backbone, **changes: Any) -> ProbeFacts:
    settings = asdict(replace(features, **{"blocks": probe.blocks, **changes}))
    return describe_probe(probe, features=settings, backbone=backbone.settings(), training={})


def test_what_fits_is_not_refused(features: BackboneFeatures, backbone: Backbone) -> None:
    check_backbone("p", facts_of(LinearProbe(16, [1, 0]), features, backbone), backbone)
    check_backbone("p", facts_of(TimestepAggregation(16, [1], 2), features, backbone, timestep=[5, 9]), backbone)
    check_backbone("p", facts_of(LayerAggregation(16, [3]), features, backbone, tap="attention"), backbone)


@pytest.mark.parametrize(
    ("probe", "changes", "words"),
    [
        (LinearProbe(16, [1, 0]), {"blocks": [1]}, r"takes blocks \[1, 0\] and its features are those of blocks \[1\]"),
        (LinearProbe(16, [1, 7]), {}, r"takes block 7 and small has 0 to 3"),
        (LinearProbe(24, [1]), {}, r"takes 24 channels and small has 16"),
        (TimestepAggregation(16, [1], 3), {"timestep": [5, 9]}, r"takes 3 timesteps and its features have 2"),
        (TimestepAggregation(16, [1], 3), {}, r"takes 3 timesteps and its features have 1"),
        (LayerAggregation(16, [1], num_timesteps=2), {"timestep": [5]}, r"takes 2 timesteps and its features have 1"),
        (LinearProbe(16, [2]), {"tap": "mlp"}, r"takes the tap mlp of block 2, which in small has attention, query"),
    ],
)
def test_folders_that_do_not_fit_the_backbone_or_themselves(
    features: BackboneFeatures, backbone: Backbone, probe: Probe, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_backbone("mine", facts_of(probe, features, backbone, **changes), backbone)
    assert (caught.value.argument, caught.value.value) == ("probe_folders", "mine")


def test_other_weights_and_a_backbone_without_adaln(
    features: BackboneFeatures, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = facts_of(LinearProbe(16, [1]), features, backbone)
    stranger = replace(facts, backbone=facts.backbone | {"name": "other", "weights_sha256": "0" * 64})
    with pytest.raises(InputError, match=r"another backbone \(other: weights_sha256 differ\)"):
        check_backbone("mine", stranger, backbone)
    monkeypatch.setattr(backbone, "has_adaln", False)
    with pytest.raises(InputError, match="AdaLN features, which small has not"):
        check_backbone("mine", facts, backbone)
    check_backbone("mine", replace(facts, features=facts.features | {"modulation": "none"}), backbone)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blocks": [0]}, r"blocks \[1\] and these features have \[0\]"),
        ({"timestep": 300}, r"timestep 200 and these features have 300"),
        ({"timestep": [200]}, r"timestep 200 and these features have \[200\]"),
        ({"tap": "attention"}, r"tap 'mlp' and these features have 'attention'"),
        ({"modulation": "layer_norm"}, r"modulation 'adaln' and these features have 'layer_norm'"),
        ({"discard": "pre_norm"}, r"discard 'none' and these features have 'pre_norm'"),
        ({"position_debias": "mean"}, r"position_debias 'none' and these features have 'mean'"),
        ({"modulation_condition": "t"}, r"modulation_condition 't\+c' and these features have 't'"),
    ],
)
def test_features_that_a_head_was_not_trained_on(
    features: BackboneFeatures, backbone: Backbone, changes: dict[str, Any], words: str
) -> None:
    facts = facts_of(LinearProbe(16, [1]), features, backbone)
    check_features("init_from", "mine", facts, asdict(features))
    with pytest.raises(InputError, match=f"trained with {words}, use the same") as caught:
        check_features("init_from", "mine", facts, asdict(replace(features, **changes)))
    assert (caught.value.argument, caught.value.value) == ("init_from", "mine")


def test_every_setting_of_features_binds_a_head_or_is_known_to_be_free() -> None:
    free = {"ensemble", "seed", "image_size", "resize", "multiple", "filter", "padding"}
    assert sorted([*PROBE_SETTINGS, "blocks", *free]) == sorted(field.name for field in fields(FeatureSettings))


def test_settings_that_change_nothing_may_differ(features: BackboneFeatures, backbone: Backbone) -> None:
    facts = facts_of(LinearProbe(16, [1]), features, backbone)
    free = {"image_size": 64, "seed": 7, "prompt": "a photo", "massive_ratio": 3.0, "debias_components": 2}
    check_features("init_from", "mine", facts, asdict(replace(features, **free)))
    discarding = replace(features, discard="pre_norm", massive_channels=[1, 2])
    facts = facts_of(LinearProbe(16, [1]), discarding, backbone)
    with pytest.raises(InputError, match=r"massive_channels \[1, 2\] and these features have \[2\]"):
        check_features("init_from", "mine", facts, asdict(replace(discarding, massive_channels=[2])))
    svd = replace(features, position_debias="svd")
    with pytest.raises(InputError, match="debias_components 20 and these features have 2,"):
        check_features(
            "x", "mine", facts_of(LinearProbe(16, [1]), svd, backbone), asdict(replace(svd, debias_components=2))
        )


def test_they_are_refused_before_anything_is_computed(
    features: BackboneFeatures,
    backbone: Backbone,
    pairs: PairDataModule,
    trainer: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FeatureExtractor, "tapped", None)
    probe = LinearProbe(16, [1], width=8)
    facts = facts_of(probe, features, backbone)
    save_probe(tmp_path / "warm", probe.state_dict(), facts)
    save_probe(tmp_path / "odd", probe.state_dict(), replace(facts, features=facts.features | {"blocks": [0]}))
    run_dir = str(tmp_path / "run")
    task = CorrespondenceTask(features, ["raw"], [str(tmp_path / "odd")], run_dir=run_dir)
    with pytest.raises(InputError, match=r"probe_folders.*takes blocks \[1\]"):
        trainer().test(task, pairs, verbose=False)

    def fit(head: Callable[[int, Any], Probe], settings: BackboneFeatures, **options: Any) -> None:
        trainer(max_epochs=1).fit(ProbeTask(settings, {"head": head}, run_dir=run_dir, **options), pairs)

    warm: dict[str, Any] = {"init_from": {"head": str(tmp_path / "warm")}}
    with pytest.raises(InputError, match="modulation 'adaln' and these features have 'none'"):
        fit(lambda channels, blocks: LinearProbe(channels, blocks, 8), replace(features, modulation="none"), **warm)
    with pytest.raises(InputError, match=r"blocks \[1\] and these features have \[0\]"):
        fit(lambda channels, blocks: LinearProbe(channels, blocks, 8), features, probe_blocks={"head": [0]}, **warm)
    with pytest.raises(InputError, match=r"probes.*takes 3 timesteps and its features have 1"):
        fit(lambda channels, blocks: TimestepAggregation(channels, blocks, 3), features)
