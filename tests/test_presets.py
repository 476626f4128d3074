"""Presets of backbones: every file parses, and those of the paper carry its settings."""

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from ditf_probe.configs_folder import CONFIGS
from ditf_probe.tasks.settings import BackboneFeatures

PRESETS = sorted((CONFIGS / "backbone").glob("*.yaml"))
# arXiv 2505.18584: block, timestep, AdaLN; massive channels where it names them.
PAPER = {
    "pixart_alpha": (14, 141, "mlp", "auto"),
    "sd3_medium": (9, 340, "mlp", [810]),
    "sd35_large": (23, 380, "mlp", [676]),
    "flux_dev": (28, 260, "attention", [154, 1446]),
}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_parses(path: Path) -> None:
    """As part of a configuration file: names and types are checked, nothing is loaded."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--features", type=BackboneFeatures)
    written = yaml.safe_load(path.read_text())
    parsed = parser.parse_args(["--features", str(path)]).features
    assert {key: parsed[key] for key in written} == written
    with pytest.raises(ArgumentError, match="tmep"):
        parser.parse_args(["--features", str(path), "--features.tmep", "3"])


@pytest.mark.parametrize("name", PAPER)
def test_settings_of_the_paper(name: str) -> None:
    preset = yaml.safe_load((CONFIGS / "backbone" / f"{name}.yaml").read_text())
    found = (*preset["blocks"], preset["timestep"], preset["tap"], preset["massive_channels"])
    assert found == PAPER[name]
    assert (preset["modulation"], preset["discard"], preset["image_size"]) == ("adaln", "post_adaln", 960)
