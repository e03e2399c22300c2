"""Where the time of a picture goes: the parts of the way from picture to label map, by name."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextvars import ContextVar

STAGES = ("preprocess", "encoder", "cost", "crm", "escf", "decoder", "resize")
"""In the order in which a picture goes through them."""


class Stopwatch:
    """Seconds by stage.

    Attributes:
        seconds: since it was made or cleared, of the stages that ran.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            wait: returns when the device has done what it was given.
        """
        self.seconds: dict[str, float] = defaultdict(float)
        self._wait = wait

    @contextlib.contextmanager
    def _timing(self, name: str) -> Iterator[None]:
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] += time.perf_counter() - start


_watch: ContextVar[Stopwatch | None] = ContextVar("errseg-stopwatch", default=None)


def stage(name: str) -> contextlib.AbstractContextManager[None]:
    """What runs within is the stage `name`; costs nothing where nobody watches."""
    watch = _watch.get()
    return contextlib.nullcontext() if watch is None else watch._timing(name)


@contextlib.contextmanager
def watched(stopwatch: Stopwatch) -> Iterator[None]:
    """Stages that run within, on this thread, are timed."""
    token = _watch.set(stopwatch)
    try:
        yield
    finally:
        _watch.reset(token)
