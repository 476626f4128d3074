"""Presets of the baselines: parsed as a run parses them, with options that their backbones take."""

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from ditf_probe.backbones.checks import check_options
from ditf_probe.backbones.timm_loading import build_model, check_name, read_model
from ditf_probe.backbones.unet import DIFTBackbone
from ditf_probe.backbones.vit import TimmBackbone
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.tasks.settings import BackboneFeatures

VITS, DIFTS = ("dinov2_base", "dinov3_base"), ("dift_sd21", "dift_sd15")


def preset(name: str) -> BackboneFeatures:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--features", type=BackboneFeatures)
    path: Path = CONFIGS / "backbone" / f"{name}.yaml"
    features = parser.instantiate_classes(parser.parse_args([f"--features={path}"])).features
    assert isinstance(features, BackboneFeatures)
    return features


@pytest.mark.parametrize("name", VITS)
def test_vision_transformers(name: str) -> None:
    """The model itself with narrower layers, so that block, size and options are proven to fit."""
    features = preset(name)
    model = features.backbone.removeprefix("timm/")
    check_name(model)
    check_options(features.options, read_model, TimmBackbone)
    backbone = TimmBackbone(build_model(model, embed_dim=48, num_heads=4), **features.options)
    extractor = FeatureExtractor(backbone, **features.extractor_options())
    assert (extractor.blocks, backbone.num_blocks, backbone.norm) == ([11], 12, True)
    assert extractor.size_rule.image_size % backbone.stride == 0
    assert features.modulation == "none"


@pytest.mark.parametrize("name", DIFTS)
def test_dift(name: str) -> None:
    features = preset(name)
    check_options(features.options, DIFTBackbone)
    assert (features.blocks, features.timestep, features.ensemble, features.image_size) == ([1], 261, 8, 768)
    assert features.modulation == "none"
