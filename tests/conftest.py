"""Shared by every test: one thread, no network, and where the optional real data are."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # its threads would not be there after a fork, and be waited for


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; a fresh clone does without."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED}, which this machine does not have")
    return SHARED


@pytest.fixture(scope="session")
def made_parsers() -> dict[tuple[str, ...], dict[str, Any]]:
    return {}


@pytest.fixture
def parsers_once(made_parsers: dict[tuple[str, ...], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser of `train.py` or `eval.py` is made once for each verb, for tests that only parse."""
    from lightning.pytorch.cli import LightningCLI

    make = LightningCLI.setup_parser

    def make_once(self: LightningCLI, *arguments: Any) -> None:
        key = type(self).__name__, *self.subcommands()
        if key not in made_parsers:
            before = set(vars(self))
            make(self, *arguments)
            made_parsers[key] = {name: value for name, value in vars(self).items() if name not in before}
        vars(self).update(made_parsers[key])

    monkeypatch.setattr(LightningCLI, "setup_parser", make_once)


# By what they take, the longest first; the last file to start should be a short one.
HEAVY = (
    "test_kills.py",  # its forks are those of a process that is small as yet
    "test_cli.py",
    "test_families.py",
    "test_partial_loading.py",
    "test_heads_learn.py",
    "test_findings.py",
    "test_training.py",
    "test_training_craft.py",
    "test_quantised_and_offloaded.py",
    "test_stored_runs.py",
    "test_scaling_model.py",
    "test_training_ranks.py",
    "test_plans.py",
    "test_whole_runs.py",
    "test_ablation.py",
    "test_search_terms.py",
    "test_adapted_backbones.py",
    "test_propagation.py",
    "test_selection.py",
    "test_several_backbones.py",
    "test_killed_training.py",
    "test_ranks.py",
    "test_description.py",
    "test_ablation_ranks.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: workers take whole files, and one that starts last would keep the other waiting."""
    places = {name: place for place, name in enumerate(HEAVY)}
    items.sort(key=lambda item: places.get(item.path.name, len(HEAVY)))


gc.disable()  # while tests are collected: nearly all that they import stays


def pytest_collection_finish() -> None:
    """What is imported by now stays for the whole run: garbage collection need not look at it again and again."""
    gc.enable()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def set_aside_uncounted() -> Iterator[None]:
    """A command asks whether anything is set aside; to count the million objects takes a third of its parsing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "get_freeze_count", lambda: 1)
        yield


@pytest.fixture(autouse=True, scope="module")
def imports_set_aside() -> Iterator[None]:
    """So it is with what the tests of a file have imported."""
    yield
    gc.collect()
    gc.freeze()
