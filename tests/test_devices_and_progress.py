"""What "auto" means, and when a bar appears."""

import io
from collections.abc import Iterator

import pytest
import torch
from rich.console import Console

from ditf_probe import progress as module
from ditf_probe.devices import resolve_device, resolve_dtype
from ditf_probe.errors import InputError
from ditf_probe.progress import progress


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device() == resolve_device("auto")
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        assert resolve_device().type == "cpu"
    for name in ("gpu", "cuda:99"):
        with pytest.raises(InputError, match="device"):
            resolve_device(name)


def test_dtypes() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) == torch.float32
    assert resolve_dtype("bfloat16", cpu) == resolve_dtype(torch.bfloat16, cpu) == torch.bfloat16
    for dtype in ("float8", torch.int8):
        with pytest.raises(InputError, match="dtype"):
            resolve_dtype(dtype, cpu)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    written = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=written, width=100))
    return written


def test_quick_work_shows_no_bar(screen: io.StringIO) -> None:
    with progress("reading", 3) as advance:
        for _ in range(3):
            advance(1)
    assert screen.getvalue() == ""


def test_long_work_shows_how_far_and_how_fast(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with progress("reading", 4, unit="photos") as advance:
        advance(1)
        advance(2)
    assert "reading" in screen.getvalue()
    assert "3/4" in screen.getvalue()
    assert "photos/s" in screen.getvalue()


def test_other_ranks_are_silent(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with progress("reading", 1) as advance:
        advance(1)
    assert screen.getvalue() == ""


def test_the_bar_ends_with_an_exception(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)

    def fail() -> None:
        with progress("reading", 2) as advance:
            advance(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "1/2" in screen.getvalue()
