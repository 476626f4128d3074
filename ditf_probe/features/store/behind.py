"""Writing while computing: one batch goes to disk in a thread of its own as the next one is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self


class WriteBehind:
    """Runs one write at a time in a thread of its own; who brings the next one waits for it.

    So two batches are in flight at most, the one that is written and the one that is computed, and memory does not grow
    where the disk is slower than the model. An error comes up where the next write is brought, or at `wait`; nothing is
    written after it. As a context manager it waits at the end.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[object] | None = None

    def put(self, write: Callable[[], object]) -> None:
        """Waits for the last write, and starts another one.

        Args:
            write: What is to be run.

        Raises:
            Exception: That of the last write; this one is not started.
        """
        self.wait()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._last = self._thread.submit(write)

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            Exception: That of the last write, once.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Waits until everything is written, and ends the thread.

        Raises:
            Exception: That of the last write, if nobody has seen it.
        """
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception:
            if error is None:  # otherwise the first error is the one to see
                raise
