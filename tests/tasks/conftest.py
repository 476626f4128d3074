"""A backbone of a few thousand weights on disk, small pairs, a trainer that leaves nothing behind, and processes."""

import contextlib
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
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


@pytest.fixture(scope="session")
def features(weights: Path) -> BackboneFeatures:
    """Block 1 of the small backbone on images of 32 pixels."""
    return BackboneFeatures(blocks=[1], timestep=200, image_size=32, backbone=str(weights))


@pytest.fixture(scope="session")
def make_pairs() -> Callable[[], PairDataModule]:
    """Makes a few drawn pairs to train on, and two test sets."""
    return lambda: PairDataModule(
        train=SyntheticPairs("train", 6, 32),
        val=SyntheticPairs("train", 5, 32),  # pairs of the training, so that a score rises within a few steps
        test={"synthetic": SyntheticPairs("test", 5, 32), "warped": WarpedPhotos(num_pairs=2, image_size=48)},
        calibration=SyntheticPairs("train", 4, 32),
        batch_size=2,
    )


@pytest.fixture
def pairs(make_pairs: Callable[[], PairDataModule]) -> PairDataModule:
    """A few drawn pairs to train on, and two test sets."""
    return make_pairs()


@pytest.fixture(scope="session")
def make_trainer() -> Callable[..., L.Trainer]:
    """Makes quiet trainers on the CPU, with a folder each."""

    def make(folder: Path, **options: Any) -> L.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        quiet |= {"accelerator": "cpu", "enable_checkpointing": False, "default_root_dir": folder}
        return L.Trainer(**(quiet | options))

    return make


@pytest.fixture
def trainer(make_trainer: Callable[..., L.Trainer], tmp_path: Path) -> Callable[..., L.Trainer]:
    """Makes quiet trainers on the CPU."""
    return partial(make_trainer, tmp_path)


class Fresh:
    """Calls functions in processes that may train: torch refuses to in forks of one that has, as this one may have.

    They are forks of a fork that is made before the first test, when everything is imported and nothing has run.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("fork")
        self._here, self._there = self._context.Pipe()
        self._server = self._context.Process(target=self._serve)
        self._server.start()
        self._there.close()

    def __call__(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What a function returns there."""
        self._here.send((function, arguments, options))
        failure, result = self._here.recv()
        assert failure is None, failure
        return result

    def close(self) -> None:
        self._server.kill()
        self._server.join()

    def _serve(self) -> None:
        self._here.close()
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        with open(os.devnull, "w") as nowhere, contextlib.suppress(EOFError):
            sys.stdout = sys.stderr = nowhere  # what goes wrong is in the answer
            while True:
                process = self._context.Process(target=self._answer, args=self._there.recv())
                process.start()
                process.join()
                if process.exitcode:
                    self._there.send((f"the process ended with {process.exitcode}", None))

    def _answer(self, function: Callable[..., Any], arguments: Any, options: Any) -> None:
        try:
            answer = None, function(*arguments, **options)
        except Exception:
            answer = traceback.format_exc(), None
        self._there.send(answer)


FRESH = pytest.StashKey[Fresh]()


def pytest_collection_finish(session: pytest.Session) -> None:
    asked = any("fresh" in getattr(item, "fixturenames", ()) for item in session.items)
    if asked and not session.config.option.collectonly:
        session.config.stash[FRESH] = Fresh()
        session.config.add_cleanup(session.config.stash[FRESH].close)


@pytest.fixture(scope="session")
def fresh(pytestconfig: pytest.Config) -> Fresh:
    return pytestconfig.stash[FRESH]


def _on_two_ranks(work: Callable[..., Any], *arguments: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start: Callable[..., Any] = start_processes
    start(_rank, args=(port, work, arguments), nprocs=2, start_method="fork")


def _rank(rank: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    work(*arguments)


@pytest.fixture(scope="session")
def on_two_ranks() -> Callable[..., None]:
    """Calls `work(*arguments)` in two processes, which Lightning takes for the two ranks of one run over gloo."""
    return _on_two_ranks
