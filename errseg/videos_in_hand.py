"""The videos that a run is in the middle of: where each one stands, and how it is completed.

A video's results are written in segments, so that a run that is killed loses at most one. Its
frames may fail one by one; a result that cannot be written loses the video, and what follows of it
is left out. All of it happens in the thread that runs the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from errseg.errors import ErrsegError
from errseg.files import write_bytes_atomic
from errseg.halving import Steady
from errseg.journal import EndEntry, SegmentEntry, Stamp
from errseg.outputs import steady_path, video_work_folder
from errseg.plan import Plan
from errseg.records import Batch, EndOfVideo
from errseg.sinks import Sink, Sound

SEGMENT_FRAMES = 240
"""A killed video loses at most so many frames; a multiple of the usual batch sizes."""


@dataclass
class Video:
    """A video in hand.

    Attributes:
        segments: finished ones, an earlier run's included.
        frames: given to the model since the last segment ended.
        next_frame: index of the first frame not yet given to the model.
        steady: carried from frame to frame; None where frames are segmented like pictures.
        failed, first_failure: frames that failed, and the first of them in words.
        lost: why nothing more of it is written; empty while all is well.
    """

    segments: int = 0
    frames: int = 0
    next_frame: int = 0
    steady: Steady | None = None
    failed: int = 0
    first_failure: str = ""
    lost: str = ""

    @property
    def segment_is_full(self) -> bool:
        return self.frames >= SEGMENT_FRAMES

    def count(self, batch: Batch) -> None:
        """The frames of a batch were given to the model."""
        self.frames += len(batch.frames)
        self.next_frame = batch.frames[-1].index + 1

    def fail_frame(self, index: int, message: str) -> None:
        self.failed += 1
        self.first_failure = self.first_failure or f"frame {index}: {message}"

    def failure(self, of_reading: str) -> str:
        """Why the video gave less than it should, in words; empty if it gave everything."""
        parts = [of_reading] if of_reading else []
        if self.failed:
            parts.append(f"{self.failed} frames failed, the first was {self.first_failure}")
        return "; ".join(parts)


@dataclass(frozen=True)
class VideoEnd:
    """How a video ended.

    Attributes:
        entry: as the journal has it; None for a video that was lost, which is not finished.
        paths: its files, relative to the output folder, by kind.
        failure: why it gave less than it should; empty if it gave everything.
    """

    entry: EndEntry | None
    paths: Mapping[str, str]
    failure: str


class VideosInHand:
    """The videos in hand, by source."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        plan: Plan,
        paths: Mapping[str, Path | None],
        stamps: Mapping[str, Stamp | None],
    ) -> None:
        """
        Args:
            paths, stamps: of the sources; the reader may add stamps while the run goes on.
        """
        self._sinks, self._plan, self._paths, self._stamps = sinks, plan, paths, stamps
        self._videos: dict[str, Video] = {}

    def take_over(self, out: Path) -> None:
        """Go on with the videos that an earlier run left unfinished in its output folder."""
        for source, begun in self._plan.earlier.videos.items():
            video = self._videos[source] = self._new(begun.segments)
            video.next_frame = begun.next_frame
            if video.steady is not None:
                state = steady_path(out, source, begun.segments)
                video.steady.from_bytes(state.read_bytes())

    def of(self, source: str) -> Video:
        """The video of a source, which may be one that begins."""
        if source not in self._videos:
            self._videos[source] = self._new(0)
        return self._videos[source]

    def _new(self, segments: int) -> Video:
        steadying = self._plan.steadying
        return Video(segments, steady=None if steadying is None else steadying.new())

    def begin_segment(self, source: str) -> Callable[[], None]:
        """Let the frames that follow go into a segment of their own.

        Returns:
            What ends the segment before it, once all its frames are committed. The state that it
            keeps is that of now.
        """
        video = self.of(source)
        video.frames = 0
        state = None if video.steady is None else video.steady.to_bytes()
        return partial(self._end_segment, source, video, video.next_frame, state)

    def _end_segment(self, source: str, video: Video, next_frame: int, state: bytes | None) -> None:
        journal = self._plan.journal
        if video.lost or journal is None:
            return
        try:
            for sink in self._sinks:
                sink.end_segment(source)
            video.segments += 1
            if state is not None:
                write_bytes_atomic(steady_path(journal.out, source, video.segments), state)
            stamp = self._stamps.get(source)
            journal.append(SegmentEntry(source, video.segments, next_frame, stamp))
        except ErrsegError as error:
            video.lost = str(error)

    def end(self, end: EndOfVideo) -> VideoEnd:
        """Complete a video, once all its frames are committed."""
        video = self._videos.pop(end.source, None) or Video()
        journal = self._plan.journal
        paths: dict[str, str] = {}
        if not video.lost:
            try:
                warnings = (*end.warnings, *self._complete(end.source, paths))
            except ErrsegError as error:
                video.lost = str(error)
        if video.lost:
            return VideoEnd(None, {}, video.lost)
        failure = video.failure(end.failure)
        entry = EndEntry(end.source, self._stamps.get(end.source), failure, warnings)
        if journal is not None:
            journal.append(entry)
            shutil.rmtree(video_work_folder(journal.out, end.source), ignore_errors=True)
        return VideoEnd(entry, paths, failure)

    def _complete(self, source: str, paths: dict[str, str]) -> Sequence[str]:
        """Complete a video's files, filling in `paths`; what was changed, in words."""
        sound = Sound(self._paths.get(source), self._plan.reading.end_s)
        warnings: list[str] = []
        for sink in self._sinks:
            path, texts = sink.end_video(source, sound)
            warnings += texts
            if path is not None:
                paths[sink.kind] = str(path)
        return warnings
