"""The sound of a video, as packets for another file that shows a span of the same video.

Sound that an mp4 holds is copied as it is, other sound is encoded anew as AAC. Damaged sound ends
where the damage begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

COPIED_CODECS = frozenset(
    {"aac", "mp3", "mp3float", "ac3", "eac3", "opus", "libopus", "flac", "alac"}
)
"""What an mp4 holds and players know, by the names of libav's decoders."""

_AAC_RATES_HZ = (48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_AAC_BITS_PER_S_PER_CHANNEL = 96_000

_Item = TypeVar("_Item")


class SoundError(Exception):
    """Sound that cannot be used at all; the message says why. Never leaves the library."""


class SoundTrack:
    """The first sound track of a video file, over a span of the video.

    Use it as a context manager: it keeps the file open.

    Args:
        source: the video file.
        start_s: where the span begins, in seconds from the video's first picture; packets count
            their time from here.
        end_s: where it ends, likewise; None for the end of the sound.

    Attributes:
        warnings: what was changed or lost, in words for the user; complete once the packets of
            `add_to` are used up.

    Raises:
        SoundError: the file cannot be read.
    """

    def __init__(self, source: Path, start_s: Fraction, end_s: float | None) -> None:
        self.warnings: list[str] = []
        self._length_s = math.inf if end_s is None else end_s - float(start_s)
        self._reached_s = 0.0
        try:
            self._zero_s = _first_picture_s(source) + start_s
            self._container = _open(source)
        except av.FFmpegError as error:
            raise SoundError(reason(error)) from error
        tracks = self._container.streams.audio
        self._track: AudioStream | None = tracks[0] if tracks else None
        if len(tracks) > 1:
            self.warnings.append(f"only the first of {len(tracks)} sound tracks kept")

    def __enter__(self) -> SoundTrack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._container.close()

    def add_to(self, target: OutputContainer) -> Iterator[av.Packet[Any]]:
        """Adds a sound stream to `target`, whose header is not written yet.

        Returns:
            Its packets in order, none if the source has no sound. Times count from `start_s`; the
            first may be a little before it, because a decoder needs a run-up.

        Raises:
            SoundError: the sound cannot be put into `target`.
        """
        if self._track is None:
            return iter(())
        if self._track.codec_context is None or not self._track.rate:
            raise SoundError("its coding is unknown")
        codec = self._track.codec_context.name
        try:
            if codec in COPIED_CODECS:
                return self._copied(target, self._track)
            self.warnings.append(f"sound encoded anew as AAC: an mp4 does not hold {codec}")
            return self._encoded(target, self._track)
        except (av.FFmpegError, ValueError) as error:
            raise SoundError(reason(error)) from error

    def _copied(self, target: OutputContainer, track: AudioStream) -> Iterator[av.Packet[Any]]:
        stream = target.add_stream_from_template(track)

        def packets() -> Iterator[av.Packet[Any]]:
            for packet in self._until_damage(self._in_span(track)):
                packet.stream = stream
                yield packet

        return packets()

    def _encoded(self, target: OutputContainer, track: AudioStream) -> Iterator[av.Packet[Any]]:
        stream = target.add_stream("aac", rate=_aac_rate(track.rate))
        stream.layout = "mono" if track.channels == 1 else "stereo"
        stream.bit_rate = _AAC_BITS_PER_S_PER_CHANNEL * stream.channels

        def packets() -> Iterator[av.Packet[Any]]:
            for frame in self._until_damage(self._decoded(track)):
                yield from stream.encode(frame)
            yield from stream.encode(None)

        return packets()

    def _decoded(self, track: AudioStream) -> Iterator[AudioFrame]:
        broken = 0
        for packet in self._in_span(track):
            try:
                yield from track.decode(packet)
            except av.InvalidDataError:
                broken += 1
        yield from track.decode(None)
        if broken:
            self.warnings.append(f"{broken} damaged pieces of sound left out")

    def _in_span(self, track: AudioStream) -> Iterator[av.Packet[Any]]:
        """The packets that sound within the span, with the run-up; their times counted anew."""
        tick_s = Fraction(1, track.rate)
        last = None
        for packet in _packets(self._container, track):
            if packet.pts is None or (last is not None and packet.pts <= last):
                continue
            last = packet.pts
            begin_s = packet.pts * packet.time_base - self._zero_s
            length_s = (packet.duration or 0) * packet.time_base
            if begin_s >= self._length_s:
                return
            # One packet of run-up: the first that a decoder gets comes out damped.
            if begin_s + 2 * length_s > 0:
                self._reached_s = max(0.0, float(begin_s))
                # Own ticks may be as long as a packet (AVI), too coarse for another start.
                packet.pts = packet.dts = round(begin_s / tick_s)
                packet.duration = round(length_s / tick_s)
                packet.time_base = tick_s
                yield packet

    def _until_damage(self, items: Iterator[_Item]) -> Iterator[_Item]:
        try:
            yield from items
        except av.FFmpegError as error:
            self.warnings.append(
                f"sound ends at {self._reached_s:.1f} s, where it is damaged ({reason(error)})"
            )


def reason(error: Exception) -> str:
    """What went wrong, in libav's own words, without the file's name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _open(source: Path) -> InputContainer:
    # Without "file:" a name such as "pipe:0" would be taken for a protocol.
    return av.open(f"file:{source}", metadata_errors="replace")


def _packets(
    container: InputContainer, stream: AudioStream | VideoStream
) -> Iterator[av.Packet[Any]]:
    try:
        yield from container.demux(stream)
    except IndexError:
        # PyAV trips after the last packet if a stream has appeared in the middle of the file.
        return


def _first_picture_s(source: Path) -> Fraction:
    """When the first picture is shown on the file's own clock, which need not begin at 0."""
    with _open(source) as container:
        for stream in container.streams.video:
            if stream.disposition & Disposition.attached_pic:
                continue
            for packet in _packets(container, stream):
                for frame in _decoded_pictures(stream, packet):
                    if frame.pts is not None and frame.time_base is not None:
                        return frame.pts * frame.time_base
            break
    return Fraction(0)


def _decoded_pictures(stream: VideoStream, packet: av.Packet[Any]) -> list[av.VideoFrame]:
    try:
        return [frame for frame in stream.decode(packet) if not frame.is_corrupt]
    except av.InvalidDataError:
        return []


def _aac_rate(rate_hz: int) -> int:
    """The lowest rate of AAC that loses nothing, at most 48 kHz."""
    return min((rate for rate in _AAC_RATES_HZ if rate >= rate_hz), default=_AAC_RATES_HZ[0])
