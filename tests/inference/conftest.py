"""A backbone of a few thousand weights on disk, and the settings of its features."""

from pathlib import Path

import pytest

from ditf_probe.backbones.spec import tiny_spec
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.tasks.settings import BackboneFeatures


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser of width 16 with four blocks, never trained."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    spec = tiny_spec("flux", ["a", "b"], width=16, head_dim=8, blocks=4, double_blocks=2, image_size=32)
    TinyDenoiser.untrained(spec, seed=1).save(path)
    return path


@pytest.fixture
def features(weights: Path) -> BackboneFeatures:
    """Blocks 0 and 1 of the small backbone on images of 32 pixels."""
    return BackboneFeatures(blocks=[0, 1], timestep=200, image_size=32, backbone=str(weights), batch_size=1)
