"""What the README shows works as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ditf_probe.configs_folder import CONFIGS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code.splitlines()) <= 12
    monkeypatch.chdir(tmp_path)
    for name, size in (("source", (320, 240)), ("target", (300, 200))):
        noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"{name}.jpg")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    predictions, similarity = names["predictions"], names["similarity"]
    assert isinstance(predictions, torch.Tensor)
    assert predictions.shape == (2, 2)
    assert isinstance(similarity, torch.Tensor)
    assert bool(((predictions >= 0) & (predictions < torch.tensor([300, 200]))).all())


def test_the_python_example_names_the_committed_preset() -> None:
    preset = yaml.safe_load((CONFIGS / "backbone" / "ditf_tiny.yaml").read_text())
    (block,) = preset["blocks"]
    assert f"blocks=[{block}], timestep={preset['timestep']}, image_size={preset['image_size']}" in README


def test_links_and_make_targets_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for name in set(re.findall(r"`make (\w+)", README)):
        assert re.search(rf"^{name}:", makefile, flags=re.MULTILINE), name
