"""Shared by every test: one thread, no network, and where the optional real data are."""

import gc
import os
from pathlib import Path

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


HEAVY = ("test_cli.py", "test_partial_loading.py", "test_families.py", "test_killed_training.py", "test_description.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: workers take whole files, and one that starts last would keep the other waiting."""
    items.sort(key=lambda item: item.path.name not in HEAVY)


def pytest_collection_finish() -> None:
    """What is imported by now stays for the whole run: garbage collection need not look at it again and again."""
    gc.collect()
    gc.freeze()
