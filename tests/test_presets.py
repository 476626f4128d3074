"""Presets of backbones: every file parses, and those of the paper carry its settings."""

from pathlib import Path

import pytest
import yaml

from ditf_probe.cli import evaluate
from ditf_probe.configs_folder import CONFIGS

PRESETS = sorted((CONFIGS / "backbone").glob("*.yaml"))
# arXiv 2505.18584: block, timestep, AdaLN; massive channels where it names them.
PAPER = {
    "pixart_alpha": (14, 141, "mlp", "auto"),
    "sd3_medium": (9, 340, "mlp", [810]),
    "sd35_large": (23, 380, "mlp", [676]),
    "flux_dev": (28, 260, "attention", [154, 1446]),
}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        evaluate(
            ["test", "--config", str(CONFIGS / "quickstart.yaml"), "--model.init_args.features", str(path)]
            + ["--print_config"]
        )
    assert end.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["features"]
    for key, value in yaml.safe_load(path.read_text()).items():
        assert printed[key] == value


@pytest.mark.parametrize("name", PAPER)
def test_settings_of_the_paper(name: str) -> None:
    preset = yaml.safe_load((CONFIGS / "backbone" / f"{name}.yaml").read_text())
    found = (*preset["blocks"], preset["timestep"], preset["tap"], preset["massive_channels"])
    assert found == PAPER[name]
    assert (preset["modulation"], preset["discard"], preset["image_size"]) == ("adaln", "post_adaln", 960)
