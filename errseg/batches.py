"""Frames -> Batches, in order, with failures passed on as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from errseg.errors import UsageError
from errseg.records import Batch, EndOfVideo, Failure, Frame


def batched(
    stream: Iterable[Frame | EndOfVideo | Failure], batch_size: int
) -> Iterator[Batch | EndOfVideo | Failure]:
    """Group frames, `batch_size` at a time; frames of two videos never come together.

    A failure is passed on at once and takes the place that its picture would have had: which
    pictures go through the model together depends on nothing but their order.

    Args:
        stream: frames of any sizes, ends of videos, and failures.
        batch_size: frames per batch, at least 1.

    Raises:
        UsageError: `batch_size` is below 1 (raised by the call itself).
    """
    if batch_size < 1:
        raise UsageError(f"Batch size {batch_size}: expected at least 1. Give a larger one.")
    return _batches(stream, batch_size)


def _batches(
    stream: Iterable[Frame | EndOfVideo | Failure], batch_size: int
) -> Iterator[Batch | EndOfVideo | Failure]:
    waiting: list[Frame] = []
    places = 0
    for item in stream:
        starts_another = isinstance(item, Frame) and waiting and _video(item) != _video(waiting[0])
        if waiting and (starts_another or isinstance(item, EndOfVideo)):
            yield Batch(tuple(waiting))
            waiting, places = [], 0
        if isinstance(item, Frame):
            waiting.append(item)
        else:
            yield item
        places = 0 if isinstance(item, EndOfVideo) else places + 1
        if places == batch_size:
            if waiting:
                yield Batch(tuple(waiting))
            waiting, places = [], 0
    if waiting:
        yield Batch(tuple(waiting))


def _video(frame: Frame) -> str | None:
    return None if frame.video is None else frame.source
