"""Writing behind: results are rendered and written in threads while the model goes on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Generic, TypeVar

R = TypeVar("R")


@dataclass(frozen=True)
class _Waiting(Generic[R]):
    """A job under way and what follows it, or an action alone."""

    future: Future[R] | None
    size: int
    finish: Callable[[Callable[[], R]], None]


class WriteBehind(Generic[R]):
    """Runs jobs in threads and what follows them here, in order, within a bound of bytes."""

    def __init__(self, threads: Executor, max_bytes: int) -> None:
        """
        Args:
            threads: where jobs run.
            max_bytes: of all jobs under way; one may be under way whatever its size.
        """
        self._threads, self._max_bytes = threads, max_bytes
        self._waiting: deque[_Waiting[R]] = deque()
        self._bytes = 0
        self.waited_s = 0.0
        """Seconds spent waiting for jobs to end."""

    def submit(
        self, job: Callable[[], R], size: int, finish: Callable[[Callable[[], R]], None]
    ) -> None:
        """Start a job; wait first until there is room for it.

        Args:
            size: bytes that the job holds in memory.
            finish: called here, after everything submitted before, with a function that gives the
                job's result or raises its error.
        """
        while self._waiting and self._bytes + size > self._max_bytes:
            self._finish_first()
        self._waiting.append(_Waiting(self._threads.submit(job), size, finish))
        self._bytes += size
        while self._waiting and self._is_done(self._waiting[0]):
            self._finish_first()

    def then(self, action: Callable[[], None]) -> None:
        """Call an action after everything submitted before."""
        self._waiting.append(_Waiting(None, 0, lambda result: action()))
        while self._waiting and self._is_done(self._waiting[0]):
            self._finish_first()

    def drain(self) -> None:
        """Wait for everything submitted."""
        while self._waiting:
            self._finish_first()

    def _is_done(self, item: _Waiting[R]) -> bool:
        return item.future is None or item.future.done()

    def _finish_first(self) -> None:
        item = self._waiting[0]
        if item.future is not None:
            # waited for before it leaves the queue: an interruption must not lose it
            start = time.perf_counter()
            item.future.exception()
            self.waited_s += time.perf_counter() - start
        self._waiting.popleft()
        self._bytes -= item.size
        item.finish(lambda: _result(item))


def _result(item: _Waiting[R]) -> R:
    assert item.future is not None
    return item.future.result()
