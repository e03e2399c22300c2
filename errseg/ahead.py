"""Reading ahead: the next frames are decoded in a thread while the model works on earlier ones."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

from errseg.errors import ErrsegError

T = TypeVar("T")

_LOOK_S = 1.0
"""How often a waiting consumer looks whether it is still worth it."""


class ReadAhead(Generic[T]):
    """Takes items from a generator in a thread of its own, never more than fit the bounds."""

    def __init__(
        self,
        items: Generator[T, None, None],
        size_of: Callable[[T], int],
        *,
        max_items: int,
        max_bytes: int,
        stop: threading.Event | None = None,
    ) -> None:
        """
        Args:
            items: run in the thread, and closed there.
            size_of: bytes of an item.
            max_items, max_bytes: of the items waiting; one item may wait whatever its size.
            stop: once it is set, nothing is waited for any more.
        """
        self._items, self._size_of = items, size_of
        self._max_items, self._max_bytes = max_items, max_bytes
        self._stop = stop or threading.Event()
        self._waiting: deque[T] = deque()
        self._bytes = 0
        self._error: BaseException | None = None
        self._ended = self._closed = False
        self._changed = threading.Condition()
        # a daemon: a read that never returns must not keep the process from ending
        self._thread = threading.Thread(target=self._read, name="errseg-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next item; errors of the generator come out here, after the items before them."""
        with self._changed:
            while not self._waiting and not self._ended:
                if self._stop.is_set():
                    raise StopIteration
                self._changed.wait(_LOOK_S)
                if not self._thread.is_alive() and not self._waiting and not self._ended:
                    raise ErrsegError("the thread that reads died without a word; run again")
            if self._waiting:
                item = self._waiting.popleft()
                self._bytes -= self._size_of(item)
                self._changed.notify_all()
                return item
            if self._error is not None:
                error, self._error = self._error, None
                raise error
        raise StopIteration

    def close(self) -> None:
        """Let the thread end after the item that it is reading; nothing waits for it."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._bytes = 0
            self._changed.notify_all()

    def _read(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    break
            self._items.close()
        except BaseException as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _put(self, item: T) -> bool:
        """Whether the item was wanted."""
        size = self._size_of(item)
        with self._changed:
            while self._waiting and not self._closed and not self._fits(size):
                self._changed.wait()
            if not self._closed:
                self._waiting.append(item)
                self._bytes += size
                self._changed.notify_all()
            return not self._closed

    def _fits(self, size: int) -> bool:
        return len(self._waiting) < self._max_items and self._bytes + size <= self._max_bytes
