"""A backbone of a few thousand weights on disk, small pairs, and a trainer that leaves nothing behind."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.multiprocessing import start_processes

from ditf_probe.backbones.spec import tiny_spec
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.data.warped import WarpedPhotos
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
    """Block 1 of the small backbone on images of 32 pixels."""
    return BackboneFeatures(blocks=[1], timestep=200, image_size=32, backbone=str(weights))


@pytest.fixture
def pairs() -> PairDataModule:
    """A few drawn pairs to train on, and two test sets."""
    return PairDataModule(
        train=SyntheticPairs("train", 6, 32),
        val=SyntheticPairs("train", 5, 32),  # pairs of the training, so that a score rises within a few steps
        test={"synthetic": SyntheticPairs("test", 5, 32), "warped": WarpedPhotos(num_pairs=2, image_size=48)},
        calibration=SyntheticPairs("train", 4, 32),
        batch_size=2,
    )


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., L.Trainer]:
    """Makes quiet trainers on the CPU."""

    def make(**options: Any) -> L.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        quiet |= {"accelerator": "cpu", "enable_checkpointing": False, "default_root_dir": tmp_path}
        return L.Trainer(**(quiet | options))

    return make


@pytest.fixture(scope="session")
def fresh() -> str:
    """How to start processes that train: torch refuses to in forks of one that has trained, as this one may have.

    They are forks of a server that has imported the libraries, once for all of them, and done nothing else.
    """
    models = "diffusers.models.transformers.transformer_flux"
    multiprocessing.set_forkserver_preload(["pytest", "ditf_probe.cli", "torch.utils.tensorboard", models])
    return "forkserver"


@pytest.fixture(scope="session")
def on_two_ranks() -> Callable[..., None]:
    """Calls `work(*arguments)` in two processes, which Lightning takes for the two ranks of one run over gloo."""

    def run(work: Callable[..., Any], *arguments: Any, method: str = "fork") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start: Callable[..., Any] = start_processes
        start(_rank, args=(port, work, arguments), nprocs=2, start_method=method)

    return run


def _rank(rank: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    work(*arguments)
