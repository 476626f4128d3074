"""Every run file names classes and arguments that are there."""

from pathlib import Path
from typing import Any

import pytest

from ditf_probe import cli
from ditf_probe.configs_folder import CONFIGS

RUNS = sorted(
    path for folder in (CONFIGS, CONFIGS / "pretrain") for path in folder.glob("*.yaml") if path.stem != "defaults"
)


class Parsed(Exception):
    """Raised once a configuration is read and before anything is built."""


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_run_file_parses(path: Path, tmp_path: Path) -> None:
    trains = "train.py fit" in path.read_text()
    base: type[cli.DiTFProbeCLI] = cli.TrainCLI if trains else cli.EvaluateCLI

    class ParseOnly(base):  # type: ignore[misc, valid-type]  # the base depends on the file
        def before_instantiate_classes(self) -> None:
            raise Parsed(self.config)

    verb = "fit" if trains else "test"
    with pytest.raises(Parsed) as caught:
        cli._run(ParseOnly, [verb, "--config", str(path), "--run_dir", str(tmp_path)])
    config: Any = caught.value.args[0][verb]
    assert config.run_dir == str(tmp_path)
    assert config.model.class_path.startswith("ditf_probe.tasks.")
