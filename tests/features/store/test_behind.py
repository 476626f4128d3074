"""One write at a time beside the computation: in order, all of them, and errors where they can be seen."""

import threading
from typing import Any

import pytest

from ditf_probe.features.store.behind import WriteBehind


def test_writes_run_in_order_beside_the_caller() -> None:
    written: list[tuple[int, int]] = []
    with WriteBehind() as behind:
        for number in range(50):
            behind.put(lambda number=number: written.append((number, threading.get_ident())))  # type: ignore[misc]
    assert [number for number, _ in written] == list(range(50))
    assert len({thread for _, thread in written}) == 1
    assert written[0][1] != threading.get_ident()


def test_who_brings_the_next_write_waits_for_the_last() -> None:
    go, begun, second = threading.Event(), threading.Event(), threading.Event()
    behind = WriteBehind()

    def first() -> None:
        begun.set()
        assert go.wait(30)

    behind.put(first)
    assert begun.wait(30), "it runs while the caller goes on"
    brought = threading.Thread(target=lambda: (behind.put(second.set), None))
    brought.start()
    brought.join(0.05)
    assert brought.is_alive(), "two are in flight, and no third"
    assert not second.is_set()
    go.set()
    brought.join(30)
    behind.close()
    assert second.is_set()


def fail() -> None:
    raise OSError("the disk is full")


def test_an_error_comes_up_where_the_next_write_is_brought() -> None:
    written: list[int] = []
    behind = WriteBehind()
    behind.put(fail)
    with pytest.raises(OSError, match="disk is full"):
        behind.put(lambda: written.append(1))
    behind.close()
    assert written == []
    behind.put(lambda: written.append(2))  # it can be used again
    behind.close()
    assert written == [2]


def test_the_last_error_comes_up_at_the_end() -> None:
    with pytest.raises(OSError, match="disk is full"), WriteBehind() as behind:
        behind.put(fail)


def compute_and_fail(write: Any) -> None:
    with WriteBehind() as behind:
        behind.put(write)
        raise ValueError("computed")


def test_the_error_of_the_computation_comes_first() -> None:
    written: list[int] = []
    with pytest.raises(ValueError, match="computed"):
        compute_and_fail(lambda: written.append(1))
    assert written == [1], "what was brought is written"
    with pytest.raises(ValueError, match="computed"):
        compute_and_fail(fail)
