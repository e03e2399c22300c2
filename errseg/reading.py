"""Files, found by `sources`, -> the one stream of frames, read one at a time."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from errseg.errors import InputError
from errseg.images import read_image
from errseg.read_options import ReadOptions
from errseg.records import EndOfVideo, Failure, Frame
from errseg.sources import SourceFile

_PICTURE_STARTS = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II\*\0|MM\0\*|II\+\0|MM\0\+|P[1-6]\s|RIFF....WEBP"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51|....ftypavi[fs]",
    re.DOTALL,
)
_SNIFFED_BYTES = 64
_PIPED_PICTURE_BYTES = 1 << 30

_log = logging.getLogger(__name__)


def read_frames(
    sources: Iterable[SourceFile],
    options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    *,
    first_index: Callable[[SourceFile], int] = lambda source: 0,
    stdin: BinaryIO | None = None,
) -> Iterator[Frame | EndOfVideo | Failure]:
    """Read the sources one at a time, in order, as they are asked for.

    Args:
        sources: as `find_sources` gives them.
        options: what is read of them.
        first_index: frames of a video with a lower index are left out.
        stdin: standard input, for `pipe:`.

    Yields:
        The picture, or the frames of the video and its end; or one failure where reading ends.
    """
    for source in sources:
        try:
            yield from _frames_of(source, options, first_index(source), stdin)
        except InputError as error:
            yield Failure(source.source, str(error))
        except Exception as error:  # whatever it is costs one source, not the run
            _log.debug("%s failed", source.source, exc_info=error)
            words = " ".join(str(error).split())
            text = f"Cannot read {source.source!r}: unexpected {type(error).__name__} ({words})"
            yield Failure(source.source, text)


def _frames_of(
    source: SourceFile, options: ReadOptions, first_index: int, stdin: BinaryIO | None
) -> Iterator[Frame | EndOfVideo]:
    if source.path is None:
        return _from_pipe(source.source, options, first_index, stdin)
    if source.is_video:
        return _video(source.path, source.source, options, first_index)
    if source.is_picture:
        return _picture(source.path, source.source, options)
    return _either(source.path, source.source, options, first_index)


def _picture(file: Path | BinaryIO, source: str, options: ReadOptions) -> Iterator[Frame]:
    image, warnings = read_image(file, max_pixels=options.max_pixels)
    path = file if isinstance(file, Path) else None
    yield Frame(source, image, path=path, warnings=warnings)


def _video(
    file: Path | BinaryIO, source: str, options: ReadOptions, first_index: int
) -> Iterator[Frame | EndOfVideo]:
    from errseg.videos import read_video

    return read_video(file, source, options, first_index=first_index)


def _either(
    path: Path, source: str, options: ReadOptions, first_index: int
) -> Iterator[Frame | EndOfVideo]:
    """A file whose name does not say what it is."""
    try:
        yield from _picture(path, source, options)
    except InputError as error:
        frames = _video(path, source, options, first_index)
        try:
            first = next(frames)
        except InputError:
            raise error from None
        yield first
        yield from frames


class _Begun(io.RawIOBase):
    """A stream of which the beginning was read already."""

    def __init__(self, beginning: bytes, stream: BinaryIO) -> None:
        self._beginning, self._stream = beginning, stream

    def read(self, size: int = -1) -> bytes:
        if self._beginning:
            size = len(self._beginning) if size < 0 else size
            part, self._beginning = self._beginning[:size], self._beginning[size:]
            return part
        # what is there, rather than waiting until there is as much as was asked for
        some = getattr(self._stream, "read1", self._stream.read)
        data: bytes = some(size)
        return data


def _from_pipe(
    source: str, options: ReadOptions, first_index: int, stdin: BinaryIO | None
) -> Iterator[Frame | EndOfVideo]:
    beginning = b"" if stdin is None else stdin.read(_SNIFFED_BYTES)
    if stdin is None or not beginning:
        raise InputError("Cannot read standard input: it is empty; pipe a picture or video in")
    if not _PICTURE_STARTS.match(beginning):
        stream = _Begun(beginning, stdin)
        yield from _video(stream, source, options, first_index)  # type: ignore[arg-type]
        return
    data = beginning + stdin.read(_PIPED_PICTURE_BYTES)
    yield from _picture(io.BytesIO(data), source, options)
