"""The one loop from sources to sinks.

Pictures are read, segmented and written batch by batch. One that fails is named in the summary,
and the rest goes on. An interruption (Ctrl-C) ends the loop between two pictures: what is written
of a picture is written whole, and areas.csv holds exactly the pictures that were finished.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType

import numpy as np
from numpy.typing import NDArray

from errseg.batches import batched
from errseg.errors import ErrsegError
from errseg.images import DEFAULT_MAX_PIXELS
from errseg.records import (
    UNLABELLED,
    UNLABELLED_CLASS_ID,
    UNLABELLED_NAME,
    Batch,
    Failure,
    Frame,
    ImageArray,
    Segmentation,
)
from errseg.sinks import Sink
from errseg.sources import SourceFile, read_frames
from errseg.summary import ClassTotal, PictureWarning, Progress, RunSummary, StageSeconds

Segment = Callable[[Sequence[ImageArray]], list[Segmentation]]
"""Pictures in, one `Segmentation` per picture out; a `Segmenter` is one."""

OUTPUT_FILES = "output files"
"""`Failure.source` where not a picture but a file of the whole run could not be completed."""

_log = logging.getLogger(__name__)


def run(
    segment: Segment,
    class_names: Sequence[str],
    sources: Sequence[SourceFile],
    sinks: Sequence[Sink],
    *,
    failures: Sequence[Failure] = (),
    batch_size: int = 1,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunSummary:
    """Segment every source and hand each result to every sink, in the order of the sources.

    Args:
        segment: the model.
        class_names: T names, in vocabulary order.
        sources: as `find_sources` gives them.
        sinks: closed at the end, whatever happens. A picture that one of them refuses is not shown
            to those after it.
        failures: inputs found missing before; they count as failed.
        batch_size: pictures that go through the model together.
        max_pixels: larger pictures are not read.
        on_progress: called at the start and after every picture.

    Returns:
        The summary, also after KeyboardInterrupt.

    Raises:
        UsageError: `batch_size` is below 1. Everything else ends up among the failures.
    """
    loop = _Loop(segment, class_names, len(sources) + len(failures), sinks, on_progress)
    batches = batched(loop.timed_reading(read_frames(sources, max_pixels)), batch_size)
    interrupted = False
    try:
        for failure in failures:
            loop.fail(failure)
        loop.report()
        for item in batches:
            if isinstance(item, Failure):
                loop.fail(item)
                loop.report()
            else:
                loop.process(item)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        try:
            with _interrupt_held_back():
                loop.close_sinks()
        except KeyboardInterrupt:
            interrupted = True
    return loop.summary(interrupted)


class _Loop:
    """Counts, times and collects while a run goes on."""

    def __init__(
        self,
        segment: Segment,
        class_names: Sequence[str],
        total: int,
        sinks: Sequence[Sink],
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._segment, self._class_names, self._total = segment, class_names, total
        self._sinks, self._on_progress = sinks, on_progress
        self._start = time.perf_counter()
        self._read = self._model = self._write = 0.0
        self._done = self._failed = 0
        self._failures: list[Failure] = []
        self._warnings: list[PictureWarning] = []
        self._pixels = np.zeros(UNLABELLED + 1, np.int64)
        self._pictures = np.zeros(UNLABELLED + 1, np.int64)
        self._one_by_one = False

    def timed_reading(self, frames: Iterable[Frame | Failure]) -> Iterator[Frame | Failure]:
        """The frames, with the time spent waiting for them counted."""
        stream = iter(frames)
        while True:
            start = time.perf_counter()
            item = next(stream, None)
            self._read += time.perf_counter() - start
            if item is None:
                return
            yield item

    def process(self, batch: Batch) -> None:
        """Segment a batch and write its results."""
        together = self._segment_together(batch)
        for index, frame in enumerate(batch.frames):
            self._warnings += [PictureWarning(frame.source, text) for text in frame.warnings]
            try:
                result = together[index] if together else self._timed_segment([frame.image])[0]
                with _interrupt_held_back():
                    self._write_one(frame, result)
                    self._done += 1
            except Exception as error:  # whatever it is costs one picture, not the run
                _log.debug("%s failed", frame.source, exc_info=error)
                self.fail(Failure(frame.source, _message_of(error)))
            self.report()

    def _segment_together(self, batch: Batch) -> list[Segmentation] | None:
        """None where it fails: then one by one, so that only the picture at fault is lost."""
        if len(batch.frames) == 1 or self._one_by_one:
            return None
        try:
            return self._timed_segment(batch.images)
        except Exception as error:
            _log.debug("a batch failed, going on one by one", exc_info=error)
            if _is_out_of_memory(error):
                self._one_by_one = True
                text = f"{len(batch.frames)} pictures at once need too much memory; one by one now"
                self._warnings.append(PictureWarning(batch.frames[0].source, text))
            return None

    def _timed_segment(self, images: Sequence[ImageArray]) -> list[Segmentation]:
        start = time.perf_counter()
        try:
            return self._segment(images)
        finally:
            self._model += time.perf_counter() - start

    def _write_one(self, frame: Frame, result: Segmentation) -> None:
        start = time.perf_counter()
        try:
            for sink in self._sinks:
                sink.write(frame, result)
            counts = np.bincount(result.labels.ravel(), minlength=len(self._pixels))
            self._pixels += counts
            self._pictures += counts > 0
        finally:
            self._write += time.perf_counter() - start

    def fail(self, failure: Failure) -> None:
        self._failures.append(failure)
        self._failed += 1

    def report(self) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(self._done, self._failed, self._total, self._elapsed()))

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def close_sinks(self) -> None:
        """Close every sink, also after one that fails."""
        start = time.perf_counter()
        for sink in self._sinks:
            try:
                sink.close()
            except ErrsegError as error:
                self._failures.append(Failure(OUTPUT_FILES, str(error)))
        self._write += time.perf_counter() - start

    def summary(self, interrupted: bool) -> RunSummary:
        return RunSummary(
            done=self._done,
            failed=self._failed,
            skipped=self._total - self._done - self._failed,
            failures=tuple(self._failures),
            warnings=tuple(self._warnings),
            seconds=StageSeconds(self._read, self._model, self._write, self._elapsed()),
            areas=_totals(self._pixels, self._pictures, self._class_names),
            interrupted=interrupted,
        )


def _totals(
    pixels: NDArray[np.int64], pictures: NDArray[np.int64], names: Sequence[str]
) -> tuple[ClassTotal, ...]:
    """Totals of the classes with any pixel; both counts are (65536,), by value in label maps."""
    every = max(int(pixels.sum()), 1)
    seen = sorted(
        np.flatnonzero(pixels).tolist(), key=lambda value: (value == UNLABELLED, -pixels[value])
    )
    return tuple(
        ClassTotal(
            class_id=UNLABELLED_CLASS_ID if value == UNLABELLED else value,
            name=UNLABELLED_NAME if value == UNLABELLED else names[value],
            pixels=int(pixels[value]),
            fraction=float(pixels[value] / every),
            pictures=int(pictures[value]),
        )
        for value in seen
    )


def _message_of(error: Exception) -> str:
    """Words for the user; of errors that errseg does not know, their kind as well."""
    if isinstance(error, ErrsegError):
        return str(error)
    if _is_out_of_memory(error):
        return "not enough memory for this picture; make it smaller or choose another device"
    words = " ".join(str(error).split())
    return f"unexpected {type(error).__name__} ({words}); --debug shows where it comes from"


def _is_out_of_memory(error: Exception) -> bool:
    """Torch has a class of its own for CUDA only; elsewhere the words have to do."""
    text = str(error).lower()
    words = ("out of memory", "not enough memory", "allocate memory")
    return isinstance(error, MemoryError) or any(word in text for word in words)


@contextlib.contextmanager
def _interrupt_held_back() -> Iterator[None]:
    """Ctrl-C within the block takes effect at its end. Only the main thread ever receives it."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    held: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda _, frame: held.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if held:
        handler(signal.SIGINT, held[0])
