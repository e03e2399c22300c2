"""Segments of a video, joined into one file: their packets are copied, with sound if wanted."""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from errseg.errors import WriteError
from errseg.sound import SoundError, SoundTrack, reason

_MAX_TIME_SCALE = 1_000_000
"""Ticks per second that an mp4 is given at most: its 32-bit durations then hold 71 minutes."""

_MIN_TIME_SCALE = 10_000
"""Players round the last frame's duration to a tick: ticks must be short."""

_DEFAULT_RATE = Fraction(25)
"""Frames per second that an only frame is taken to come at."""


@dataclass(frozen=True)
class Joining:
    """What becomes one file.

    Attributes:
        segments: at least one, in order.
        container: format of the file.
        time_base: seconds per unit of the frames' times.
        rate: frames per second, for the duration of an only frame; None if unknown.
    """

    segments: Sequence[Path]
    container: str
    time_base: Fraction
    rate: Fraction | None

    def write(self, part: Path, audio_from: Path | None, end_s: float | None) -> tuple[str, ...]:
        """Write `part`, with the sound of `audio_from` until `end_s`.

        Returns:
            What was changed or lost, in words for the user.
        """
        if audio_from is None:
            self._mux(part, None)
            return ()
        start_s = _first_pts_s(self.segments[0])
        try:
            with SoundTrack(audio_from, start_s, end_s) as sound:
                self._mux(part, sound)
                return tuple(sound.warnings)
        except SoundError as error:
            self._mux(part, None)
            return (f"sound left out: {error}",)

    def _mux(self, part: Path, sound: SoundTrack | None) -> None:
        options = {"fflags": "+bitexact"}
        if self.container == "mp4":
            options["movflags"] = "faststart"
            options["video_track_timescale"] = str(_time_scale(self.time_base))
        try:
            with av.open(
                f"file:{part}", "w", format=self.container, container_options=options
            ) as out:
                with open_segment(self.segments[0]) as first:
                    template = first.streams.video[0]
                    stream = out.add_stream_from_template(template)
                    # one header serves the whole file
                    header = template.codec_context.extradata
                packets = [_joined(self.segments, stream, header, self.rate)]
                if sound is not None:
                    packets.append(sound.add_to(out))
                for packet in heapq.merge(*packets, key=_seconds):
                    out.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            # The file system's errors are nobody's fault; of the rest, the sound is to blame first.
            if sound is None or isinstance(error, OSError):
                raise
            raise SoundError(reason(error)) from error


def open_segment(path: Path) -> InputContainer:
    return av.open(f"file:{path}", format="nut")


def lost_segments(folder: Path, what: str) -> WriteError:
    """The error for segments that are not what was written."""
    return WriteError(
        f"cannot go on with the video in {str(folder)!r}: {what}; remove that folder and run "
        f"again, then the video is written from its first frame"
    )


def _packets(segment: Path, header: bytes | None = None) -> Iterator[av.Packet[Any]]:
    """A segment's packets, which must go with `header` if that is given."""
    with open_segment(segment) as container:
        stream = container.streams.video[0]
        if header not in (None, stream.codec_context.extradata):
            what = f"segment {segment.name} was encoded by another version, or in another way"
            raise lost_segments(segment.parent, what)
        for packet in container.demux(stream):
            if packet.pts is not None:
                yield packet


def _first_pts_s(segment: Path) -> Fraction:
    packet = next(_packets(segment))
    return Fraction(packet.pts or 0) * packet.time_base


def _joined(
    segments: Sequence[Path], stream: VideoStream, header: bytes | None, rate: Fraction | None
) -> Iterator[av.Packet[Any]]:
    """All packets in order for `stream`, their times from 0, each as long as the gap after it."""
    gaps = array("q")
    last = None
    start = last_pts = 0
    for packet in itertools.chain.from_iterable(_packets(path, header) for path in segments):
        assert packet.pts is not None  # `_packets` sees to it
        if last is None:
            start = packet.pts
        pts = packet.pts - start
        if last is not None:
            gaps.append(pts - last_pts)
            if gaps[-1] <= 0:
                raise lost_segments(
                    segments[0].parent, "its segments do not follow one another in time"
                )
            last.duration = gaps[-1]
            yield last
        packet.pts = packet.dts = last_pts = pts
        packet.stream = stream
        last = packet
    if last is not None:
        lone = 1 / (rate or _DEFAULT_RATE) / last.time_base
        last.duration = round(statistics.median(gaps) if gaps else lone)
        yield last


def _seconds(packet: av.Packet[Any]) -> float:
    return float((packet.dts or 0) * packet.time_base)


def _time_scale(time_base: Fraction) -> int:
    """Ticks per second of an mp4 that hold `time_base` exactly, if they are not too short."""
    ticks = time_base.denominator
    return min(ticks * math.ceil(_MIN_TIME_SCALE / ticks), _MAX_TIME_SCALE)
