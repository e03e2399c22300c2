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
import re
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av

from errseg.errors import UsageError, WriteError
from errseg.files import atomic_write, hidden_name, write_error
from errseg.video_codecs import (
    CODECS,
    Codec,
    Picture,
    Shape,
    check_encoder,
    new_stream,
    write_errors,
)
from errseg.video_joining import Joining, lost_segments, open_segment

_SEGMENT_NAME = re.compile(r"(\d{6})\.([0-9a-f]{8})\.nut")
_HIDDEN_NAME = re.compile(r"\.[0-9a-f]{16}\.part")
_CRC_CHUNK_BYTES = 1 << 20


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
        self._codec = CODECS[codec]
        self._time_base = time_base
        self._rate = rate
        self._last_pts: int | None = None
        self._open: _OpenSegment | None = None
        self._failure: WriteError | None = None
        check_encoder(self._codec.encoder)
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
        shape = Shape(frame.width, frame.height, frame.format.name)
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
        with atomic_write(target) as file, write_errors(target):
            joining = Joining(self._segments, self._codec.container, self._time_base, self._rate)
            return joining.write(Path(file.name), audio_from, end_s)

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


class _OpenSegment:
    """A segment that grows under a hidden name."""

    def __init__(
        self,
        folder: Path,
        codec: Codec,
        shape: Shape,
        time_base: Fraction,
        rate: Fraction | None,
    ) -> None:
        self._folder = folder
        self._part = hidden_name(folder / "segment")
        with write_errors(folder):
            self._container = av.open(
                f"file:{self._part}",
                "w",
                format="nut",
                container_options={"fflags": "+bitexact"},
            )
            self._stream = new_stream(self._container, codec, shape, time_base, rate)
            # Writes the header, so that what cannot be written is found out now.
            self._container.start_encoding()

    def add(self, frame: av.VideoFrame) -> None:
        with write_errors(self._folder):
            self._container.mux(self._stream.encode(frame))

    def finish(self, number: int) -> Path:
        """Completes the file, whose path it returns."""
        with write_errors(self._folder):
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
            raise lost_segments(folder, f"segment {number} of {count} is missing")
    return [kept[number] for number in range(count)]


def _check_segment(path: Path) -> None:
    """Raises WriteError if a segment is not what was written."""
    try:
        damaged = f"{_crc(path):08x}" != path.suffixes[0][1:]
    except FileNotFoundError:
        raise lost_segments(path.parent, f"segment {path.name} is missing") from None
    if damaged:
        raise lost_segments(path.parent, f"segment {path.name} is damaged")


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CRC_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _shape_of(segment: Path) -> Shape:
    with write_errors(segment), open_segment(segment) as container:
        context = container.streams.video[0].codec_context
        return Shape(context.width, context.height, str(context.pix_fmt))
