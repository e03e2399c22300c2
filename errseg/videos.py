"""One video -> its frames, in order, by their time stamps, with PyAV.

Decoding always begins at the first frame, also where only a later part is wanted: the number of a
frame is only known by counting, and key frames are not to be trusted in damaged files.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.video.reformatter import Colorspace
from av.video.stream import VideoStream as AvStream

from errseg.errors import InputError
from errseg.read_options import ReadOptions
from errseg.records import EndOfVideo, Frame, ImageArray, VideoStream

ERRORS_IN_A_ROW = 500
"""After so many broken packets without a picture between them, the rest is given up."""

STANDARD_INPUT_NAME = "standard input"

_HD_HEIGHT = 720
_UNSPECIFIED_COLOUR = 2
"""Of `VideoFrame.colorspace`, as FFmpeg numbers it."""

_MISSING_FRAMES = 2.5
"""A video that ends so many frames before its time was cut short…"""

_UNSURE_S = 0.5
"""…or so many seconds, where the file does not say how long its last frame stays…"""

_LEAST_SLACK_S = 0.1
"""…and never fewer: a rate that varies is only known on the average."""

_STEP_BACK_S = 0.5
"""Time stamps that go back so far begin anew: recordings joined end to end."""

# Nothing else is tried: playlists, which are mere text, make FFmpeg open other files.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,mxf,nut,dv,ivf,h264,hevc,m4v,mjpeg"
)

_TS_TAIL_BYTES = 408
_TS_PACKET_STARTS = ((-188, -376), (-188, -380), (-204, -408))
"""Where the last two packets of a whole MPEG-TS begin: bare, with time codes, with parity bytes."""

_TICK_TOLERANCE_S = 1e-6


def read_video(
    file: Path | BinaryIO, source: str, options: ReadOptions, *, first_index: int = 0
) -> Iterator[Frame | EndOfVideo]:
    """Read a video.

    Frames keep their time stamps (also where the rate varies) and are turned as the file says.
    Broken frames are counted and left out; a file that is cut short gives what it holds. Both are
    in the failure of the `EndOfVideo` that comes last. Colours without a mark are taken for BT.709
    from 720 lines on, else for BT.601; pixels that are not square are kept as they are.

    Args:
        file: the file; or a binary stream, which is only read forwards.
        source: `Frame.source` of all frames.
        options: what is taken.
        first_index: frames with a lower index are decoded, but not given out.

    Yields:
        Frames, images (H, W, 3) uint8, RGB, 0..255, and after them an `EndOfVideo`.

    Raises:
        InputError: the file cannot be opened, holds no video or no whole frame, or is too large.
    """
    name = repr(os.fspath(file)) if isinstance(file, Path) else STANDARD_INPUT_NAME
    with contextlib.ExitStack() as stack:
        # FFmpeg gets a stream: it takes some names for addresses or patterns
        stream: BinaryIO | _Forwards
        if isinstance(file, Path):
            stream = stack.enter_context(_open_file(file, name))
        else:
            stream = _Forwards(file)
        container = stack.enter_context(_open_container(stream, name))
        reader = _Reader(container, name, source, options)
        yield from reader.frames(first_index)
        yield reader.end(_tail_of(stream))


class _Forwards:
    """A stream without the seeking that a pipe only pretends to have."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.tail = stream, b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.tail = (self.tail + data)[-_TS_TAIL_BYTES:]
        return data


def _tail_of(stream: BinaryIO | _Forwards) -> bytes:
    """Its last bytes; of a pipe, the last that were read."""
    if isinstance(stream, _Forwards):
        return stream.tail
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TS_TAIL_BYTES))
    return stream.read()


_FORWARDS_ADVICE = (
    "neither a picture nor a video that can be read forwards; send Matroska "
    "(ffmpeg … -f matroska -), MPEG-TS, or MP4 made with -movflags +faststart"
)
_FILE_ADVICE = (
    "no video, damaged at its beginning, or an MP4 cut short before the index at its end; "
    "copy or convert it again"
)


def _open_file(path: Path, name: str) -> BinaryIO:
    try:
        status = path.stat()  # before opening: to open a named pipe waits for its writer
        if stat.S_ISREG(status.st_mode) and status.st_size > 0:
            return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        detail = getattr(error, "strerror", None) or str(error)
        text = f"Cannot read {name}: {detail}; check the name and its permissions"
        raise InputError(text) from error
    if stat.S_ISREG(status.st_mode):
        reason = "empty file (0 bytes), expected a video; copy or convert it again"
    else:
        reason = "no file, but a folder, device or pipe; send a pipe to standard input (pipe:)"
    raise InputError(f"Cannot read {name}: {reason}")


def _open_container(stream: BinaryIO | _Forwards, name: str) -> InputContainer:
    try:
        return av.open(stream, "r", options={"format_whitelist": _CONTAINERS})
    except av.FFmpegError as error:
        advice = _FORWARDS_ADVICE if isinstance(stream, _Forwards) else _FILE_ADVICE
        raise InputError(f"Cannot read {name}: {advice}") from error
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        raise InputError(f"Cannot read {name}: {detail}; copy or convert it again") from error


class _Reader:
    """Counts while one video is read."""

    def __init__(
        self, container: InputContainer, name: str, source: str, options: ReadOptions
    ) -> None:
        self._container, self._name, self._source = container, name, source
        self._options = options
        self._stream = self._pick(container)
        self._time_base = self._stream.time_base or Fraction(1, 1000)
        rate = self._stream.average_rate or self._stream.guessed_rate
        self._rate = Fraction(rate) if rate else Fraction(25)
        self._info = VideoStream(
            self._time_base, Fraction(rate) if rate else None, self._expected_s()
        )
        self._origin: int | None = None
        self._last_pts = -1
        self._lead_s = self._last_duration_s = 0.0
        self._count = self._taken = self._broken = self._damaged = 0
        self._gave_up = self._ended_early = False

    def _pick(self, container: InputContainer) -> AvStream:
        streams = [s for s in container.streams.video if not _is_cover(s)]
        if not streams:
            raise InputError(f"Cannot read {self._name}: no video in it; name another file")
        stream = streams[0]
        if stream.codec_context is None:
            raise InputError(
                f"Cannot read {self._name}: its video has a format that is not known here, or is "
                "damaged; convert it to H.264"
            )
        pixels = stream.codec_context.width * stream.codec_context.height
        if pixels > self._options.max_pixels:
            raise InputError(
                f"Cannot read {self._name}: its frames have {pixels} pixels, expected at most "
                f"{self._options.max_pixels}; make it smaller or raise the limit (--max-pixels)"
            )
        stream.thread_type = "AUTO"
        # frames may be larger than the file says at its beginning: the decoder refuses them
        stream.codec_context.options = {"max_pixels": str(self._options.max_pixels)}
        # or it drops broken frames itself, and does not say so
        stream.codec_context.flags |= Flags.output_corrupt
        return stream

    def _expected_s(self) -> float | None:
        """How long the video says it is; None where it says nothing or means its sound."""
        stream = self._stream
        if stream.duration:
            return float(stream.duration * self._time_base)
        tag = _seconds_of(stream.metadata.get("DURATION", ""))
        if tag is not None:
            return tag - self._start_s()
        total = self._container.duration
        alone = len(self._container.streams) == 1
        return total / av.time_base - self._start_s() if alone and total else None

    def _start_s(self) -> float:
        """Where the first frame is: Matroska's durations are the time of its end."""
        start = self._container.start_time
        return 0.0 if start is None else start / av.time_base

    def frames(self, first_index: int) -> Iterator[Frame]:
        """The frames that are wanted."""
        wanted = _Sampling(self._options)
        for decoded in self._decoded():
            pts = self._pts_of(decoded)
            index, time_s = self._count, float(pts * self._time_base)
            self._count += 1
            if self._options.end_s is not None and time_s >= self._options.end_s:
                self._ended_early = True
                return
            if not wanted(index, time_s):
                continue
            self._taken += 1
            if index >= first_index:
                yield Frame(
                    self._source,
                    _as_rgb(decoded),
                    index=index,
                    time_s=time_s,
                    warnings=self._warnings(decoded) if self._taken == 1 else (),
                    video=self._info,
                    pts=pts,
                )

    def _decoded(self) -> Iterator[av.VideoFrame]:
        packets = self._container.demux(self._stream)
        in_a_row = 0
        while in_a_row < ERRORS_IN_A_ROW:
            try:
                packet = next(packets, None)
            except IndexError:
                return  # PyAV's slip at the end of a file in whose middle a stream appeared
            except (av.FFmpegError, OSError, ValueError):
                break
            if packet is None:
                return
            try:
                frames = packet.decode()
            except (av.FFmpegError, ValueError):
                self._broken += 1
                in_a_row += 1
                continue
            self._damaged += packet.is_corrupt
            for frame in frames:
                if frame.is_corrupt:
                    # before the first whole frame it is no loss: recordings may begin anywhere
                    self._broken += self._count > 0
                else:
                    in_a_row = 0
                    yield frame
        self._gave_up = True

    def _pts_of(self, frame: av.VideoFrame) -> int:
        """From the first frame on, strictly increasing; by the rate where the file has none."""
        step = max(1, round(1 / (self._rate * self._time_base)))
        if self._origin is None:
            self._origin = frame.pts or 0
            start = self._stream.start_time
            if start is not None:  # what could not be decoded before it was counted by the file
                self._lead_s = max(0.0, float((self._origin - start) * self._time_base))
        pts = self._last_pts + step if frame.pts is None else frame.pts - self._origin
        if (self._last_pts - pts) * self._time_base > _STEP_BACK_S:
            pts = self._last_pts + step
            self._origin = (frame.pts or 0) - pts
        if self._last_pts < 0:
            pts = 0
        self._last_pts = max(pts, self._last_pts + 1)
        self._last_duration_s = float((frame.duration or 0) * self._time_base)
        return self._last_pts

    def _warnings(self, frame: av.VideoFrame) -> tuple[str, ...]:
        said = []
        aspect = self._stream.sample_aspect_ratio
        if aspect and aspect != 1:
            said.append(f"pixels are not square ({aspect}), shown as stored")
        if frame.interlaced_frame:
            said.append("interlaced, shown as stored")
        return tuple(said)

    def _slack_s(self) -> float:
        frames = _MISSING_FRAMES / float(self._rate)
        return max(frames, _LEAST_SLACK_S if self._last_duration_s else _UNSURE_S)

    def end(self, tail: bytes) -> EndOfVideo:
        """What is to be said after the last frame; `tail` holds the last bytes of the file."""
        last_s = float(self._last_pts * self._time_base)
        self._refuse_nothing(last_s)
        parts = []
        cut = None if self._ended_early else self._cut(last_s, tail)
        if cut is not None:
            parts.append(f"cut short after {last_s:.1f} s{cut} ({self._count} frames)")
        if self._broken:
            frames = "frame is" if self._broken == 1 else "frames are"
            parts.append(f"{self._broken} broken {frames} missing")
        elif self._damaged and cut is None:
            frames = "frame" if self._damaged == 1 else "frames"
            parts.append(f"{self._damaged} {frames} may be wrong, as data are missing")
        failure = "; ".join(parts)
        if failure:
            failure = f"{self._name}: {failure}; copy or convert it again"
        return EndOfVideo(self._source, failure)

    def _refuse_nothing(self, last_s: float) -> None:
        if self._count == 0:
            is_file = self._name != STANDARD_INPUT_NAME
            reason = "no whole frame in it; copy or convert it again"
            raise InputError(f"Cannot read {self._name}: {reason if is_file else _FORWARDS_ADVICE}")
        if self._taken == 0 and self._ended_early:
            raise InputError(f"{self._name} has no frame in that time; choose a later --end")
        if self._taken == 0:
            raise InputError(
                f"{self._name} ends after {last_s:.1f} s, and nothing of it was asked for; "
                "choose an earlier --start"
            )

    def _cut(self, last_s: float, tail: bytes) -> str | None:
        """Of how much the file was cut short, in words; None if it was not."""
        expected = self._info.duration_s
        shown_until = self._lead_s + last_s + (self._last_duration_s or 1 / float(self._rate))
        if expected is not None and expected - shown_until > self._slack_s():
            return f" of {expected:.1f} s"
        # a transport stream does not say how long it is, but ends with a whole packet
        is_split = self._container.format.name == "mpegts" and not _ends_whole(tail)
        return "" if self._gave_up or is_split else None


class _Sampling:
    """Which frames are taken; asked of every frame, in order."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self._next_tick = 0

    def __call__(self, index: int, time_s: float) -> bool:
        options = self._options
        if time_s < options.start_s or index % options.every:
            return False
        if options.fps is None:
            return True
        ticks = (time_s + _TICK_TOLERANCE_S) * options.fps
        if ticks < self._next_tick:
            return False
        self._next_tick = math.floor(ticks) + 1
        return True


def _ends_whole(tail: bytes) -> bool:
    """Whether the last bytes of an MPEG-TS are two whole packets, which begin with "G"."""
    return any(tail[last:][:1] == tail[before:][:1] == b"G" for last, before in _TS_PACKET_STARTS)


def _is_cover(stream: AvStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _seconds_of(text: str) -> float | None:
    """Matroska's own "00:01:02.500000000"; None for anything else."""
    parts = text.split(":")
    try:
        hours, minutes, seconds = map(float, parts)
    except ValueError:
        return None
    return hours * 3600 + minutes * 60 + seconds


def _as_rgb(frame: av.VideoFrame) -> ImageArray:
    colours = None
    if frame.colorspace == _UNSPECIFIED_COLOUR:
        colours = Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
    image = frame.reformat(format="rgb24", src_colorspace=colours).to_ndarray()
    quarter_turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarter_turns), dtype=np.uint8)
