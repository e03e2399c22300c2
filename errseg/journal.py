"""The journal of a run: what is finished, line by line, so that a killed run can go on.

    <out>/.errseg/journal.jsonl    one line per finished picture, frame, video segment and video
    <out>/.errseg/videos/…         segments of videos that are not finished

A line is appended only after all files that it stands for have their names. A line cut off by a
kill is dropped when the journal is opened again. While a run holds its journal, no other run can.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from errseg.errors import OutputError, WriteError
from errseg.files import atomic_write, write_error
from errseg.outputs import JOURNAL_FILE, WORK_FOLDER
from errseg.records import ClassArea


@dataclass(frozen=True)
class Stamp:
    """What tells a source file from a changed one: its size in bytes and its modification time."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path | None) -> Stamp | None:
        """The stamp of a file; None where there is no file to look at."""
        try:
            status = None if path is None else path.stat()
        except OSError:
            return None
        return None if status is None else cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class FrameEntry:
    """One finished picture, or frame of a video.

    Attributes:
        source, frame, time_s: as in `Frame`.
        width, height: in pixels.
        areas: as `Segmentation.areas` gave them.
        stamp: of the source; None for frames of videos, whose end carries it.
        warnings: as in `Frame`.
        of_video: whether it is a frame of a video.
    """

    source: str
    frame: int
    time_s: float
    width: int
    height: int
    areas: tuple[ClassArea, ...]
    stamp: Stamp | None = None
    warnings: tuple[str, ...] = ()
    of_video: bool = False


@dataclass(frozen=True)
class SegmentEntry:
    """A video is finished up to here.

    Attributes:
        segments: how many segments are whole files.
        next_frame: index of the first frame after them.
        stamp: of the source.
    """

    source: str
    segments: int
    next_frame: int
    stamp: Stamp | None


@dataclass(frozen=True)
class EndEntry:
    """A video is finished.

    Attributes:
        stamp: of the source.
        failure: why it gave less than it should; empty if it gave everything.
        warnings: what was changed or assumed.
    """

    source: str
    stamp: Stamp | None
    failure: str = ""
    warnings: tuple[str, ...] = ()


Entry = FrameEntry | SegmentEntry | EndEntry


class Journal:
    """The journal of one output folder, held by one run."""

    def __init__(self, out: Path) -> None:
        """Open the journal, making it where it is missing; a line cut off at its end is removed.

        Raises:
            OutputError: another run holds it.
            WriteError: it cannot be made or written.
        """
        self.out = out
        self._path = out / JOURNAL_FILE
        self._lock = _locked_folder(out / WORK_FOLDER)
        try:
            self._file = self._path.open("ab", buffering=0)
            os.truncate(self._path, _whole_lines_bytes(self._path))
        except OSError as error:
            self._let_go()
            raise write_error(self._path, error) from error

    def append(self, entry: Entry) -> None:
        """Add an entry.

        Raises:
            WriteError: it cannot be written, or the journal is no longer in its folder.
        """
        line = _line_of(entry)
        try:
            before = os.fstat(self._file.fileno())
            if not os.path.samestat(before, self._path.stat()):
                raise FileNotFoundError(None, "it was replaced")
            written = self._file.write(line)
            if written != len(line):
                # the rest would not fit either, and half a line would hide the next one
                os.truncate(self._path, before.st_size)
                raise WriteError(f"cannot write {str(self._path)!r}: the disk is full")
        except OSError as error:
            raise write_error(self._path, error) from error

    def keep(self, wanted: Callable[[Entry], bool]) -> None:
        """Forget all other entries."""
        self._rewrite(line for line, entry in _read(self._path) if wanted(entry))

    def sort(self, position: Callable[[Entry], int]) -> None:
        """Bring the entries into the order of the positions; within one, they stay as they are."""
        keyed = []
        offset = 0
        for line, entry in _read(self._path):
            keyed.append((position(entry), offset, len(line)))
            offset += len(line)
        if all(before <= after for before, after in itertools.pairwise(keyed)):
            return
        keyed.sort()
        with self._path.open("rb") as file:
            self._rewrite(_piece(file, offset, size) for _, offset, size in keyed)

    def forget_all(self) -> None:
        """Forget an earlier run, and the segments of its unfinished videos."""
        shutil.rmtree(self.out / WORK_FOLDER / "videos", ignore_errors=True)
        self._rewrite(iter(()))

    def entries(self) -> Iterator[Entry]:
        """All entries, from the file: a long run's do not fit into memory."""
        return (entry for _, entry in _read(self._path))

    def close(self) -> None:
        """Let go of the journal; a second call does nothing."""
        if not self._file.closed:
            self._file.close()
            self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _rewrite(self, lines: Iterator[bytes]) -> None:
        with atomic_write(self._path) as file:
            file.writelines(lines)
        self._file.close()
        self._file = self._path.open("ab", buffering=0)


def _locked_folder(folder: Path) -> int | None:
    """A handle that holds the folder for this run as long as it is open; None without locks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        import fcntl
    except ImportError:  # Windows: two runs into one folder are not told apart there
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise OutputError(
            f"another run is writing to {str(folder.parent)!r}: wait for its end or choose another "
            "output folder"
        ) from error
    except OSError:  # a file system without locks
        return handle
    return handle


def _whole_lines_bytes(path: Path) -> int:
    """Bytes up to and including the last line end."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            start = max(0, position - 65536)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            position = start
    return 0


def _piece(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _read(path: Path) -> Iterator[tuple[bytes, Entry]]:
    with path.open("rb") as file:
        for line in file:
            yield line, _entry_of(line, path)


# Short keys: a two-hour video has 200 000 lines.
_KINDS: dict[str, type[FrameEntry] | type[SegmentEntry] | type[EndEntry]] = {
    "frame": FrameEntry,
    "segment": SegmentEntry,
    "end": EndEntry,
}


def _line_of(entry: Entry) -> bytes:
    kind = next(name for name, cls in _KINDS.items() if isinstance(entry, cls))
    values: dict[str, object] = {"kind": kind, "source": entry.source}
    for name, value in vars(entry).items():
        values[name] = value
    if isinstance(entry, FrameEntry):
        values["areas"] = [[a.class_id, a.pixels, a.fraction, a.mean_score] for a in entry.areas]
    values["stamp"] = entry.stamp and [entry.stamp.size, entry.stamp.mtime_ns]
    # ASCII only: names that are not UTF-8 survive as escaped surrogates
    return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


def _entry_of(line: bytes, path: Path) -> Entry:
    try:
        values: dict[str, Any] = json.loads(line)
        cls = _KINDS[values.pop("kind")]
        if "areas" in values:
            values["areas"] = tuple(ClassArea(*area) for area in values["areas"])
        if values.get("stamp") is not None:
            values["stamp"] = Stamp(*values["stamp"])
        if "warnings" in values:
            values["warnings"] = tuple(values["warnings"])
        return cls(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputError(
            f"{str(path)!r} holds a line that no run wrote ({line[:60]!r}): choose another output "
            "folder, or pass --overwrite to start anew"
        ) from error
