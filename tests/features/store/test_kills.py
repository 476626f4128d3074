"""A writer that is killed at any instant loses at most the batch in flight, and what it leaves serves nothing wrong."""

import multiprocessing
import os
import random
import signal
import threading
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ditf_probe.features.store import FeatureStore
from ditf_probe.features.store.behind import WriteBehind
from ditf_probe.features.store.care import rubbish, verify

KILLS, BATCH = 50, 4


def write_on(root: Path, definition: dict[str, Any], streams: Any, first: int, told: Connection) -> None:
    """Writes batch after batch, and tells of each once it is written."""
    torch.set_num_threads(1)
    store = FeatureStore(root, definition)
    told.send(None)
    for start in range(first, first + 10_000, BATCH):
        streams.write(store, range(start, start + BATCH), [3, 4])
        told.send(start)


def kill_one(
    root: Path, definition: dict[str, Any], streams: Any, first: int, delay: float, write: Any = write_on
) -> list[int]:
    """Starts a writer, kills it after a while, and returns the first number of every batch that it told of."""
    context = multiprocessing.get_context("fork")
    heard, told = context.Pipe(duplex=False)
    process = context.Process(target=write, args=(root, definition, streams, first, told))
    process.start()
    told.close()
    heard.recv()
    time.sleep(delay)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    batches = []
    try:
        while True:
            batches.append(heard.recv())
    except EOFError:
        return batches


def test_fifty_kills(tmp_path: Path, definition: dict[str, Any], streams: Any) -> None:
    draw = random.Random(0)
    kept: set[int] = set()
    written = 0
    for attempt in range(KILLS):
        first = attempt * 10_000
        batches = kill_one(tmp_path, definition, streams, first, draw.uniform(0, 0.06))
        store = FeatureStore(tmp_path, definition)
        there = {int(key.removeprefix("image")) for key in store.entries()}
        told = {start + row for start in batches for row in range(BATCH)}
        new = there - kept
        assert kept <= there, "what was written before is there"
        assert told <= new, "what the writer told of is there"
        assert len(new - told) in (0, BATCH), "at most the batch in flight is in doubt, and it is whole"
        assert store.damaged == []
        streams.check(store, sorted(new), [3, 4])
        kept, written = there, written + len(batches)
    assert written > KILLS / 2, "the writers came to write something"
    store = FeatureStore(tmp_path, definition)
    assert all(problem is None for _, problem in verify(store.folder))
    left = rubbish(store.folder, grace_minutes=0)
    assert any(path.name.startswith(".") for path, _ in left), "some of the kills came in the middle of a file"
    for path, reason in left:
        assert reason in ("was left unfinished by a writer", "lists no shard that is there")
        path.unlink()
    assert not list(store.folder.glob(".*"))
    streams.check(FeatureStore(tmp_path, definition), sorted(kept)[::7], [3, 4])


def write_behind(root: Path, definition: dict[str, Any], streams: Any, first: int, told: Connection) -> None:
    """As `write_on`, each batch in a thread while the next one is made; tells of what is made, and of what is written.

    A batch takes as long to make as to write, as far as that can be said.
    """
    torch.set_num_threads(1)
    store, lock = FeatureStore(root, definition), threading.Lock()

    def tell(what: Any) -> None:
        with lock:
            told.send(what)

    def write(numbers: range, blocks: Any) -> None:
        store.write([f"image{n}" for n in numbers], [streams.size] * BATCH, blocks)
        tell(("written", numbers.start))

    told.send(None)
    with WriteBehind() as behind:
        for start in range(first, first + 10_000, BATCH):
            numbers = range(start, start + BATCH)
            blocks = streams.blocks(numbers, [3, 4])
            tell(("made", start))
            behind.put(partial(write, numbers, blocks))


def test_a_writer_in_the_background_loses_two_batches_at_most(
    tmp_path: Path, definition: dict[str, Any], streams: Any
) -> None:
    """The one that is being written and the one that is being computed, or waits to be written."""
    draw = random.Random(1)
    lost, total = [], 0
    for attempt in range(20):
        first = attempt * 10_000
        told: Any = kill_one(tmp_path, definition, streams, first, draw.uniform(0, 0.06), write_behind)
        made, written = ([start for kind, start in told if kind == name] for name in ("made", "written"))
        store = FeatureStore(tmp_path, definition)
        there = {int(key.removeprefix("image")) for key in store.entries()} & set(range(first, first + 10_000))
        assert {start + row for start in written for row in range(BATCH)} <= there
        assert there == set(range(first, first + len(there))), "written in order"
        assert len(there) % BATCH == 0
        assert store.damaged == []
        streams.check(store, sorted(there), [3, 4])
        lost.append(len(made) - len(there) // BATCH)
        total += len(written)
    assert max(lost) <= 2
    assert total > 10


def test_nothing_is_read_while_it_is_written(tmp_path: Path, definition: dict[str, Any], streams: Any) -> None:
    """A reader beside two writers sees whole entries only, ever more of them."""
    context = multiprocessing.get_context("fork")
    writers = []
    for number in range(2):
        heard, told = context.Pipe(duplex=False)
        arguments = (tmp_path, definition, streams, 10_000 * number, told)
        writers.append((context.Process(target=write_on, args=arguments), heard))
    try:
        for process, heard in writers:
            process.start()
            heard.recv()
        store, seen = FeatureStore(tmp_path, definition), 0
        deadline = time.monotonic() + 60
        while seen < 200 and time.monotonic() < deadline:
            store.refresh()
            streams.check(store, [int(key.removeprefix("image")) for key in store.entries()[seen:]], [3, 4])
            assert len(store) >= seen
            seen = len(store)
        assert seen >= 200
        assert store.damaged == []
    finally:
        for process, _ in writers:
            process.kill()
            process.join()
