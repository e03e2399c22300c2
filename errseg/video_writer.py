"""Videos of results, written so that a killed run can go on.

A video grows as segments: each has an encoder and a file of its own, which gets its name by rename
once it is complete. At the end the packets of all segments are copied into one file. A resumed run
writes the segments that are missing and so arrives at the same bytes as an undisturbed one; this is
promised for one machine and one version of PyAV.

The name of a segment, <number>.<CRC-32 of the file>.nut, tells later whether it is still what it
was. NUT, because it keeps every time base exactly.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import re
import statistics
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray

from errseg.errors import UsageError, WriteError
from errseg.files import atomic_write, hidden_name, write_error
from errseg.sound import SoundError, SoundTrack, reason

Picture = NDArray[np.uint8] | NDArray[np.uint16]

_SEGMENT_NAME = re.compile(r"(\d{6})\.([0-9a-f]{8})\.nut")
_HIDDEN_NAME = re.compile(r"\.[0-9a-f]{16}\.part")
_CRC_CHUNK_BYTES = 1 << 20

_MAX_TIME_SCALE = 1_000_000
"""Ticks per second that an mp4 is given at most: its 32-bit durations then hold 71 minutes."""

_MIN_TIME_SCALE = 10_000
"""Players round the last frame's duration to a tick: ticks must be short."""

_DEFAULT_RATE = Fraction(25)
"""Frames per second that an only frame is taken to come at."""

_BT709 = 1
"""ITU-T H.273: the number of BT.709 among matrices, primaries and transfer characteristics."""


@dataclass(frozen=True)
class _Shape:
    """What all frames of one video have in common: size in pixels, libav's pixel format."""

    width: int
    height: int
    pixels: str


class VideoSegments:
    """One video on its way: frames go in, segments lie in the work folder, `join` makes the file.

    Args:
        folder: work folder of this one video, made if missing. Segments from `segment` on and
            half-written ones are removed; other files are left alone.
        codec: "h264" for pictures (H.264, yuv420p, BT.709, plays in browsers), "ffv1" for label
            maps (lossless, 8- or 16-bit grey).
        time_base: seconds per unit of the frames' times.
        rate: frames per second, for the duration of an only frame; None if unknown.
        segment: so many segments of an earlier run are there and stay.

    Raises:
        WriteError: the folder cannot be made, a segment is missing or damaged, or this PyAV has no
            such encoder.
    """

    def __init__(
        self,
        folder: Path,
        codec: Literal["h264", "ffv1"],
        time_base: Fraction,
        rate: Fraction | None,
        *,
        segment: int = 0,
    ) -> None:
        self._folder = folder
        self._codec = _CODECS[codec]
        self._time_base = time_base
        self._rate = rate
        self._last_pts: int | None = None
        self._open: _OpenSegment | None = None
        self._failure: WriteError | None = None
        _check_encoder(self._codec.encoder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._segments = _kept_segments(folder, segment)
        except OSError as error:
            raise write_error(folder, error) from error
        self._shape = _shape_of(self._segments[0]) if self._segments else None

    def append(self, image: Picture, pts: int) -> None:
        """Adds a frame.

        Args:
            image: h264: (H, W, 3) uint8 RGB, 0..255; ffv1: (H, W) uint8 or uint16. The first frame
                of the video decides its size; h264 repeats the last column and row where a side is
                odd. A frame of another size is resized (label maps: nearest neighbour).
            pts: when it is shown, in units of the time base; greater than the frame's before.

        Raises:
            UsageError: `image` or `pts` is not of this kind.
            WriteError: it cannot be written. Nothing more can be then, but `close` keeps the
                finished segments.
        """
        self._check_usable()
        if self._last_pts is not None and pts <= self._last_pts:
            raise UsageError(f"times of frames must increase, but {pts} follows {self._last_pts}")
        frame = self._codec.to_frame(image, self._shape)
        shape = _Shape(frame.width, frame.height, frame.format.name)
        if self._shape not in (None, shape):
            raise UsageError(f"the video holds {self._shape} frames, and this one is {shape}")
        self._shape, self._last_pts = shape, pts
        frame.pts, frame.time_base = pts, self._time_base
        with self._remembering_failure():
            if self._open is None:
                self._open = _OpenSegment(
                    self._folder, self._codec, shape, self._time_base, self._rate
                )
            self._open.add(frame)

    def end_segment(self) -> None:
        """Makes the open segment, if any, a whole file; the next frame opens the next one.

        Raises:
            WriteError: it cannot be completed, or an earlier frame could not be written.
        """
        self._check_usable()
        if self._open is not None:
            with self._remembering_failure():
                self._segments.append(self._open.finish(len(self._segments)))
            self._open = None

    def join(
        self, target: Path, *, audio_from: Path | None = None, end_s: float | None = None
    ) -> tuple[str, ...]:
        """Ends the open segment and puts all segments into `target`, which appears whole.

        The video begins with its first frame at time 0. An mp4 (h264) keeps the gaps between
        frames exactly, for time bases down to a microsecond; Matroska (ffv1) rounds them to
        milliseconds. The last frame stays as long as frames usually do.

        Args:
            target: the file to write; missing parent folders are made.
            audio_from: the video that the frames came from, for its first sound track, from the
                moment of the first frame. `append` must have had times that count from that
                video's first picture. Only for h264.
            end_s: where the sound ends, in seconds from the source's first picture, exclusive; None
                for its own end.

        Returns:
            What was changed or lost, in words for the user. Sound that cannot be used never costs
            the picture.

        Raises:
            UsageError: sound was asked for label maps.
            WriteError: the file cannot be written, there are no frames, or a segment is damaged.
        """
        if audio_from is not None and self._codec.container != "mp4":
            raise UsageError("a video of label maps takes no sound: leave audio_from out")
        self.end_segment()
        if not self._segments:
            raise WriteError(f"cannot write {str(target)!r}: the video has no frames")
        for path in self._segments:
            _check_segment(path)
        with atomic_write(target) as file, _translated(target):
            return self._mux_with_sound(Path(file.name), audio_from, end_s)

    def remove(self) -> None:
        """Deletes the segments, and the work folder if nothing else is in it.

        Raises:
            WriteError: they cannot be deleted.
        """
        self.close()
        try:
            _kept_segments(self._folder, 0)
            if not any(self._folder.iterdir()):
                self._folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise write_error(self._folder, error) from error

    def close(self) -> None:
        """Leaves the finished segments and drops the open one; a second call does nothing."""
        if self._open is not None:
            self._open.abandon()
            self._open = None

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise WriteError(str(self._failure)) from self._failure

    @contextlib.contextmanager
    def _remembering_failure(self) -> Iterator[None]:
        """A frame that was lost must not be missing from the video without a word."""
        try:
            yield
        except WriteError as error:
            self._failure = error
            raise

    def _mux_with_sound(
        self, part: Path, source: Path | None, end_s: float | None
    ) -> tuple[str, ...]:
        if source is None:
            self._mux(part, None)
            return ()
        start_s = _first_pts_s(self._segments[0])
        try:
            with SoundTrack(source, start_s, end_s) as sound:
                self._mux(part, sound)
                return tuple(sound.warnings)
        except SoundError as error:
            self._mux(part, None)
            return (f"sound left out: {error}",)

    def _mux(self, part: Path, sound: SoundTrack | None) -> None:
        options = {"fflags": "+bitexact"}
        if self._codec.container == "mp4":
            options["movflags"] = "faststart"
            options["video_track_timescale"] = str(_time_scale(self._time_base))
        try:
            with av.open(
                f"file:{part}", "w", format=self._codec.container, container_options=options
            ) as out:
                with _open_segment(self._segments[0]) as first:
                    stream = out.add_stream_from_template(first.streams.video[0])
                packets = [_joined(self._segments, stream, self._rate)]
                if sound is not None:
                    packets.append(sound.add_to(out))
                for packet in heapq.merge(*packets, key=_seconds):
                    out.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            # The file system's errors are nobody's fault; of the rest, the sound is to blame first.
            if sound is None or isinstance(error, OSError):
                raise
            raise SoundError(reason(error)) from error


class _OpenSegment:
    """A segment that grows under a hidden name."""

    def __init__(
        self,
        folder: Path,
        codec: _Codec,
        shape: _Shape,
        time_base: Fraction,
        rate: Fraction | None,
    ) -> None:
        self._folder = folder
        self._part = hidden_name(folder / "segment")
        with _translated(folder):
            self._container = av.open(
                f"file:{self._part}",
                "w",
                format="nut",
                container_options={"fflags": "+bitexact"},
            )
            self._stream = _video_stream(self._container, codec, shape, time_base, rate)
            # Writes the header, so that what cannot be written is found out now.
            self._container.start_encoding()

    def add(self, frame: av.VideoFrame) -> None:
        with _translated(self._folder):
            self._container.mux(self._stream.encode(frame))

    def finish(self, number: int) -> Path:
        """Completes the file, whose path it returns."""
        with _translated(self._folder):
            self._container.mux(self._stream.encode(None))
            self._container.close()
            path = self._folder / f"{number:06}.{_crc(self._part):08x}.nut"
            self._part.replace(path)
        return path

    def abandon(self) -> None:
        """What fails while throwing something away does not matter."""
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):
            self._container.close()
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)


def _video_stream(
    container: OutputContainer,
    codec: _Codec,
    shape: _Shape,
    time_base: Fraction,
    rate: Fraction | None,
) -> VideoStream:
    stream = container.add_stream(codec.encoder, rate=rate, options=dict(codec.options))
    assert isinstance(stream, VideoStream)
    stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, shape.pixels
    stream.time_base = time_base
    context = stream.codec_context
    context.time_base = time_base
    context.thread_count = codec.threads
    if codec.encoder == "libx264":
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG
    return stream


def _kept_segments(folder: Path, count: int) -> list[Path]:
    """The first `count` segments; later ones and half-written ones are removed."""
    kept: dict[int, Path] = {}
    for path in list(folder.iterdir()):
        name = _SEGMENT_NAME.fullmatch(path.name)
        if name is not None and int(name[1]) < count:
            _check_segment(path)
            kept[int(name[1])] = path
        elif name is not None or _HIDDEN_NAME.fullmatch(path.name):
            path.unlink()
    for number in range(count):
        if number not in kept:
            raise _lost(folder, f"segment {number} of {count} is missing")
    return [kept[number] for number in range(count)]


def _check_segment(path: Path) -> None:
    """Raises WriteError if a segment is not what was written."""
    try:
        damaged = f"{_crc(path):08x}" != path.suffixes[0][1:]
    except FileNotFoundError:
        raise _lost(path.parent, f"segment {path.name} is missing") from None
    if damaged:
        raise _lost(path.parent, f"segment {path.name} is damaged")


def _lost(folder: Path, what: str) -> WriteError:
    return WriteError(
        f"cannot go on with the video in {str(folder)!r}: {what}; remove that folder and run "
        f"again, then the video is written from its first frame"
    )


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CRC_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _open_segment(path: Path) -> InputContainer:
    return av.open(f"file:{path}", format="nut")


def _shape_of(segment: Path) -> _Shape:
    with _translated(segment), _open_segment(segment) as container:
        context = container.streams.video[0].codec_context
        return _Shape(context.width, context.height, str(context.pix_fmt))


def _packets(segment: Path) -> Iterator[av.Packet[Any]]:
    with _open_segment(segment) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.pts is not None:
                yield packet


def _first_pts_s(segment: Path) -> Fraction:
    packet = next(_packets(segment))
    return Fraction(packet.pts or 0) * packet.time_base


def _joined(
    segments: Sequence[Path], stream: VideoStream, rate: Fraction | None
) -> Iterator[av.Packet[Any]]:
    """All packets in order for `stream`, their times from 0, each as long as the gap after it."""
    gaps = array("q")
    last = None
    start = last_pts = 0
    for packet in itertools.chain.from_iterable(map(_packets, segments)):
        assert packet.pts is not None  # `_packets` sees to it
        if last is None:
            start = packet.pts
        pts = packet.pts - start
        if last is not None:
            gaps.append(pts - last_pts)
            if gaps[-1] <= 0:
                raise _lost(segments[0].parent, "its segments do not follow one another in time")
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


def _picture_frame(image: Picture, shape: _Shape | None) -> av.VideoFrame:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise UsageError(f"expected an RGB picture (H, W, 3) uint8, got {_described(image)}")
    height, width = image.shape[:2]
    # An odd side is padded before all else: what a resumed run reads back is the even size.
    even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(even.astype(np.uint8, copy=False), format="rgb24")
    return frame.reformat(
        width=shape.width if shape else None,
        height=shape.height if shape else None,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
    )


def _label_frame(labels: Picture, shape: _Shape | None) -> av.VideoFrame:
    if labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16) or labels.size == 0:
        raise UsageError(f"expected labels (H, W) uint8 or uint16, got {_described(labels)}")
    if shape is not None and labels.shape != (shape.height, shape.width):
        rows = np.arange(shape.height) * labels.shape[0] // shape.height
        columns = np.arange(shape.width) * labels.shape[1] // shape.width
        labels = labels[np.ix_(rows, columns)]
    pixels = "gray" if labels.dtype == np.uint8 else "gray16le"
    return av.VideoFrame.from_ndarray(labels, format=pixels)


def _described(image: Picture) -> str:
    return f"{image.shape} {image.dtype}"


@dataclass(frozen=True)
class _Codec:
    """How one kind of video is encoded.

    Attributes:
        encoder: its name in libav.
        options: of the encoder.
        threads: fixed, since the bytes depend on their number.
        container: format of the finished video.
        to_frame: makes a frame, of the given shape if there is one.
    """

    encoder: str
    options: Mapping[str, str]
    threads: int
    container: str
    to_frame: Callable[[Picture, _Shape | None], av.VideoFrame]


_CODECS = {
    # No B-frames: packets come in the order of presentation.
    "h264": _Codec(
        "libx264", {"preset": "veryfast", "crf": "20", "bf": "0"}, 2, "mp4", _picture_frame
    ),
    # Every frame stands alone (g), so that any label map can be read by itself.
    "ffv1": _Codec("ffv1", {"level": "3", "g": "1", "slicecrc": "1"}, 1, "matroska", _label_frame),
}


def _check_encoder(name: str) -> None:
    try:
        av.Codec(name, "w")
    except ValueError as error:
        raise WriteError(
            f"cannot write this kind of video: this build of PyAV has no encoder {name!r}; "
            f"install the one from PyPI: pip install --force-reinstall --only-binary av av"
        ) from error


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error
    except (av.FFmpegError, ValueError) as error:
        raise WriteError(
            f"cannot write {str(path)!r} ({reason(error)}): the video encoder refuses it; choose "
            f"other outputs for this video"
        ) from error
