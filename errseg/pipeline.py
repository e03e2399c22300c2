"""The one loop from sources to sinks.

Three things happen at once: a thread reads ahead, the caller's thread runs the model, and a few
threads render and write behind it; in between are bounded queues. Results are committed (videos
encoded, the journal and the totals kept) in the caller's thread, in the order of the frames. A
picture that fails is named in the summary, and the rest goes on. Setting `stop` ends the run after
the batch in hand: everything written is whole, and the journal says what is.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import TypeVar

from errseg.ahead import ReadAhead
from errseg.batches import batched
from errseg.behind import WriteBehind
from errseg.errors import ErrsegError, WriteError
from errseg.halving import HalvingModel, Segment, message_of
from errseg.journal import EndEntry, FrameEntry, SegmentEntry, Stamp
from errseg.plan import FrameResult, Listeners, Plan
from errseg.reading import read_frames
from errseg.records import Batch, EndOfVideo, Failure, Frame, Segmentation
from errseg.sinks import Rendered, Sink
from errseg.sources import SourceFile
from errseg.summary import PictureWarning, Progress, RunSummary, StageSeconds, Totals
from errseg.videos_in_hand import VideosInHand

T = TypeVar("T")

OUTPUT_FILES = "output files"
"""`Failure.source` where not a picture but a file of the whole run could not be completed."""

WRITE_FAILURES_IN_A_ROW = 10
"""After so many the run is ended: the disk is full or the folder gone, and stays so."""

_AHEAD_BYTES = 256 << 20
_BEHIND_BYTES = 512 << 20
_LABEL_AND_SCORE_BYTES = 6
"""Of one pixel, as `Segmentation` holds them."""

_log = logging.getLogger(__name__)


def run(
    segment: Segment,
    class_names: Sequence[str],
    sources: Sequence[SourceFile],
    sinks: Sequence[Sink],
    plan: Plan | None = None,
    *,
    listeners: Listeners | None = None,
    stop: threading.Event | None = None,
) -> RunSummary:
    """Segment every source and hand each result to every sink, in the order of the sources.

    Args:
        segment: the model.
        class_names: T names, in vocabulary order.
        sources: as `find_sources` gives them.
        sinks: closed at the end, whatever happens. A picture that one of them refuses is not shown
            to those after it.
        plan: everything else.
        listeners: whom to tell what.
        stop: set by another thread or a signal handler, ends the run after the batch in hand.

    Returns:
        The summary, also after `stop` and Ctrl-C.

    Raises:
        UsageError: the batch size is below 1. Everything else is among the failures.
    """
    plan = plan or Plan()
    stop = stop or threading.Event()
    loop = _Loop(segment, sources, sinks, plan=plan, listeners=listeners or Listeners(), stop=stop)
    ahead = ReadAhead(
        loop.frames(sources),
        _bytes_of,
        max_items=2 * plan.batch_size + 1,
        max_bytes=_AHEAD_BYTES,
        stop=stop,
    )
    try:
        with _interrupt_asks(stop), ThreadPoolExecutor(plan.writers, "errseg-writer") as threads:
            behind: WriteBehind[_Product] = WriteBehind(threads, _BEHIND_BYTES)
            loop.work(batched(loop.timed(ahead), plan.batch_size), behind)
    finally:
        ahead.close()
        loop.close_sinks()
    return loop.summary(class_names)


@contextlib.contextmanager
def _interrupt_asks(stop: threading.Event) -> Iterator[None]:
    """Within the block the first Ctrl-C sets `stop`, and the second raises KeyboardInterrupt.

    A handler that the program has set itself is left alone.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _bytes_of(item: Frame | EndOfVideo | Failure) -> int:
    return item.image.nbytes if isinstance(item, Frame) else 0


@dataclass(frozen=True)
class _Product:
    """What the writing threads made of one frame."""

    entry: FrameEntry
    rendered: list[Rendered]


class _Loop:
    """Counts, times and collects while a run goes on."""

    def __init__(
        self,
        segment: Segment,
        sources: Sequence[SourceFile],
        sinks: Sequence[Sink],
        *,
        plan: Plan,
        listeners: Listeners,
        stop: threading.Event,
    ) -> None:
        steadily = None if plan.steadying is None else plan.steadying.segment
        self._model = HalvingModel(segment, steadily)
        self._sinks, self._plan, self._listeners, self._stop = sinks, plan, listeners, stop
        self._paths = {source.source: source.path for source in sources}
        self._total = len(sources) + len(plan.failures)
        self._start = time.perf_counter()
        self._read = self._write = 0.0
        self._done = self._failed = self._frames = self._earlier = self._earlier_done = 0
        self._part = 0.0
        self._failures: list[Failure] = []
        self._warnings: list[PictureWarning] = []
        self._totals = Totals()
        self._refused_in_a_row = 0
        self._stamps: dict[str, Stamp | None] = {}
        self._videos = VideosInHand(sinks, plan, self._paths, self._stamps)

    # --- reading, in the reader's thread ------------------------------------------------------

    def frames(
        self, sources: Sequence[SourceFile]
    ) -> Generator[Frame | EndOfVideo | Failure, None, None]:
        """The frames that are to be segmented."""
        plan = self._plan
        starts = {source: entry.next_frame for source, entry in plan.earlier.videos.items()}
        yield from read_frames(
            self._stamped(sources),
            plan.reading,
            first_index=lambda source: starts.get(source.source, 0),
            stdin=plan.stdin,
        )

    def _stamped(self, sources: Sequence[SourceFile]) -> Iterator[SourceFile]:
        for source in sources:
            if source.source not in self._plan.earlier.finished:
                # before it is read: a file changed later must not pass for the one that was read
                self._stamps[source.source] = Stamp.of(source.path)
                yield source

    # --- the loop -----------------------------------------------------------------------------

    def timed(self, items: Iterator[T]) -> Iterator[T]:
        """The items, with the time spent waiting for them counted."""
        while True:
            start = time.perf_counter()
            item = next(items, None)
            self._read += time.perf_counter() - start
            if item is None:
                return
            yield item

    def work(
        self, items: Iterator[Batch | EndOfVideo | Failure], behind: WriteBehind[_Product]
    ) -> None:
        """Everything, until the items end or a stop is wanted."""
        self._take_over()
        for failure in self._plan.failures:
            self._fail(failure)
        self._report()
        for item in items:
            if isinstance(item, Batch):
                self._segment(item, behind)
            elif isinstance(item, EndOfVideo):
                behind.then(partial(self._end_video, item))
            else:
                self._fail(item)
                self._report()
            if self._stop.is_set():
                break
        behind.drain()
        self._write += behind.waited_s

    def _take_over(self) -> None:
        """Count what an earlier run did."""
        earlier = self._plan.earlier
        self._done = self._earlier_done = len(earlier.finished & self._paths.keys())
        journal = self._plan.journal
        if journal is None:
            return
        self._videos.take_over(journal.out)
        for entry in journal.entries():
            if isinstance(entry, FrameEntry):
                self._totals.add(entry.areas)
                self._frames += 1
            elif isinstance(entry, EndEntry) and entry.failure and entry.source in self._paths:
                self._done -= 1
                self._fail(Failure(entry.source, entry.failure))
            if not isinstance(entry, SegmentEntry):
                self._warn(entry.source, entry.warnings)
        self._earlier = self._frames

    def _segment(self, batch: Batch, behind: WriteBehind[_Product]) -> None:
        first = batch.frames[0]
        video = None if first.video is None else self._videos.of(first.source)
        if video is not None and video.lost:
            return
        if video is not None and video.segment_is_full:
            # not before a next frame is there: a resumed video always has one to go on with
            behind.then(self._writing()(self._videos.begin_segment(first.source)))
        results = self._model(batch.images, None if video is None else video.steady)
        for frame, result in zip(batch.frames, results, strict=True):
            if isinstance(result, Exception):
                behind.then(partial(self._fail_frame, frame, result))
            else:
                size = frame.image.nbytes + result.labels.size * _LABEL_AND_SCORE_BYTES
                behind.submit(
                    partial(self._render, frame, result), size, partial(self._commit, frame)
                )
        if video is not None:
            video.count(batch)

    # --- in the writing threads ---------------------------------------------------------------

    def _render(self, frame: Frame, result: Segmentation) -> _Product:
        rendered = [sink.render(frame, result) for sink in self._sinks]
        height, width = result.labels.shape
        warnings = frame.warnings + tuple(item.warning for item in rendered if item.warning)
        entry = FrameEntry(
            frame.source,
            frame.index,
            frame.time_s,
            width,
            height,
            tuple(result.areas()),
            None if frame.video else self._stamps.get(frame.source),
            warnings,
            frame.video is not None,
        )
        return _Product(entry, rendered)

    # --- what follows, in order, in the caller's thread ----------------------------------------

    def _commit(self, frame: Frame, product: Callable[[], _Product]) -> None:
        of_video = frame.video is not None
        if of_video and self._videos.of(frame.source).lost:
            return
        try:
            with self._writing():
                entry, rendered = product().entry, product().rendered
                for sink, item in zip(self._sinks, rendered, strict=True):
                    sink.commit(frame, item)
                if self._plan.journal is not None:
                    self._plan.journal.append(entry)
        except Exception as error:
            self._fail_frame(frame, error)
            return
        self._refused_in_a_row = 0
        self._frames += 1
        self._done += not of_video
        self._totals.add(entry.areas)
        self._warn(frame.source, entry.warnings)
        duration = frame.video and frame.video.duration_s
        self._part = min(1.0, frame.time_s / duration) if duration else 0.0
        paths = {
            sink.kind: str(item.path)
            for sink, item in zip(self._sinks, rendered, strict=True)
            if item.path is not None
        }
        self._listeners.result(FrameResult(entry, paths))
        self._report()

    def _fail_frame(self, frame: Frame, error: Exception) -> None:
        _log.debug("%s failed", frame.source, exc_info=error)
        message = message_of(error)
        if isinstance(error, WriteError):
            self._count_refusal()
        if frame.video is None:
            self._fail(Failure(frame.source, message))
            self._report()
            return
        video = self._videos.of(frame.source)
        video.fail_frame(frame.index, message)
        if isinstance(error, WriteError):
            video.lost = message

    def _count_refusal(self) -> None:
        self._refused_in_a_row += 1
        if self._refused_in_a_row == WRITE_FAILURES_IN_A_ROW:
            self._stop.set()
            text = f"{WRITE_FAILURES_IN_A_ROW} results in a row could not be written: the run ended"
            self._failures.append(Failure(OUTPUT_FILES, text))

    def _end_video(self, end: EndOfVideo) -> None:
        with self._writing():
            ended = self._videos.end(end)
        self._part = 0.0
        if ended.entry is not None:
            self._warn(end.source, ended.entry.warnings)
        if ended.failure:
            self._fail(Failure(end.source, ended.failure))
        else:
            self._done += 1
        if ended.entry is not None:
            self._listeners.result(FrameResult(ended.entry, ended.paths))
        self._report()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Counts the time spent in the block as writing."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._write += time.perf_counter() - start

    def _fail(self, failure: Failure) -> None:
        self._failures.append(failure)
        self._failed += 1
        self._listeners.failure(failure)

    def _warn(self, source: str, texts: Sequence[str]) -> None:
        self._warnings += [PictureWarning(source, text) for text in texts]

    def _report(self) -> None:
        self._listeners.progress(
            Progress(
                self._done,
                self._failed,
                self._total,
                self._elapsed(),
                self._frames - self._earlier,
                self._earlier_done,
                self._part,
            )
        )

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def close_sinks(self) -> None:
        """Close every sink, also after one that fails."""
        for sink in self._sinks:
            try:
                sink.close()
            except ErrsegError as error:
                self._failures.append(Failure(OUTPUT_FILES, str(error)))

    def summary(self, class_names: Sequence[str]) -> RunSummary:
        skipped = self._total - self._done - self._failed
        notes = [PictureWarning(OUTPUT_FILES, note) for note in self._model.notes]
        return RunSummary(
            done=self._done,
            failed=self._failed,
            skipped=skipped,
            frames=self._frames,
            earlier=self._earlier,
            failures=tuple(self._failures),
            warnings=tuple(self._warnings + notes),
            seconds=StageSeconds(self._read, self._model.seconds, self._write, self._elapsed()),
            areas=self._totals.by_class(class_names),
            interrupted=skipped > 0,
        )
