"""Ctrl-C and SIGTERM: the first lets the batch in hand be finished, the second ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from errseg_cli.output import say

EXIT_BY_SIGNAL = 128
"""Exit codes after a signal are this plus its number: 130 SIGINT, 143 SIGTERM, 141 SIGPIPE."""


class StopRequest:
    """Whether the run is to end early, and which exit code that gives.

    Attributes:
        event: set when it is.
        signal_number: 0 as long as nobody asked.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal_number = 0

    def ask(self, signal_number: int) -> None:
        """End the run after the batch in hand."""
        self.signal_number = self.signal_number or signal_number
        self.event.set()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within the block, signals ask for an end instead of raising. In the main thread only."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if request.event.is_set():
            # files appear whole or not at all: nothing needs tidying up
            os._exit(EXIT_BY_SIGNAL + number)
        request.ask(number)
        say("errseg: finishing the batch in hand; once more ends at once")

    handled = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, on_signal) for number in handled]
    try:
        yield request
    finally:
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)
