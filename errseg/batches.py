"""Frames -> Batches, in order, with failures passed on as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from errseg.errors import UsageError
from errseg.records import Batch, Failure, Frame


def batched(stream: Iterable[Frame | Failure], batch_size: int) -> Iterator[Batch | Failure]:
    """Group frames, `batch_size` at a time; the last batch may be shorter.

    A failure is passed on at once: it neither fills a place in a batch nor closes one, so it may
    overtake frames that came before it. The stream is read no further than the next batch needs.

    Args:
        stream: frames of any sizes, and failures.
        batch_size: frames per batch, at least 1.

    Raises:
        UsageError: `batch_size` is below 1 (raised by the call itself).
    """
    if batch_size < 1:
        raise UsageError(f"Batch size {batch_size}: expected at least 1. Give a larger one.")
    return _batches(stream, batch_size)


def _batches(stream: Iterable[Frame | Failure], batch_size: int) -> Iterator[Batch | Failure]:
    waiting: list[Frame] = []
    for item in stream:
        if isinstance(item, Failure):
            yield item
            continue
        waiting.append(item)
        if len(waiting) == batch_size:
            yield Batch(tuple(waiting))
            waiting = []
    if waiting:
        yield Batch(tuple(waiting))
