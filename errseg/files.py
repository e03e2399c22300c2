"""Files that appear whole or not at all: written under a hidden name, then renamed into place.

A reader of the output folder, or a run killed half way, never shows half a file under its real
name. The hidden name starts with '.', ends with '.part' and lies in the same folder, so that the
rename stays on one file system. It is not derived from the real name, which may already be as long
as the file system allows.
"""

from __future__ import annotations

import contextlib
import errno
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from errseg.errors import WriteError

_PART_NAME = re.compile(r"\.[0-9a-f]{16}\.part")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Opens a binary file that takes the name `path` only once it is complete.

    Missing parent folders are made. A file already at `path` is replaced in one step, and stays as
    it was if the body raises anything at all.

    Raises:
        WriteError: for any OSError, the body's own included.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = hidden_name(path)
        try:
            with part.open("xb") as file:
                yield file
            part.replace(path)
        except BaseException:
            _remove_quietly(part)
            raise
    except OSError as error:
        raise write_error(path, error) from error


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all.

    Raises:
        WriteError: as `atomic_write`.
    """
    with atomic_write(path) as file:
        file.write(data)


class RecordFile:
    """A file that grows by whole records under a hidden name until `publish` names it `path`.

    Raises:
        WriteError: if the folder or the hidden file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = hidden_name(path)
        self._size = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a record that failed must not linger in a buffer and come out later.
            self._file = self._part.open("xb", buffering=0)
        except OSError as error:
            raise write_error(path, error) from error

    def append(self, record: bytes) -> None:
        """Adds `record`; if that fails half way, the next record or `publish` overwrites the half.

        Raises:
            WriteError: for any OSError.
        """
        try:
            self._file.seek(self._size)
            rest = memoryview(record)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise write_error(self._path, error) from error
        self._size += len(record)

    def publish(self) -> None:
        """Gives the file its name, with the whole records in it; a second call does nothing.

        Raises:
            WriteError: for any OSError; the hidden file is then removed.
        """
        if self._file.closed:
            return
        try:
            with self._file:
                self._file.truncate(self._size)
            self._part.replace(self._path)
        except OSError as error:
            _remove_quietly(self._part)
            raise write_error(self._path, error) from error


def remove_parts(folder: Path) -> None:
    """Remove the half-written files that a killed run left below `folder`."""
    for path in folder.rglob(".*.part"):
        if _PART_NAME.fullmatch(path.name):
            _remove_quietly(path)


def hidden_name(path: Path) -> Path:
    """A name beside `path` for a file that is not complete yet."""
    return path.with_name(f".{secrets.token_hex(8)}.part")


def _remove_quietly(path: Path) -> None:
    """The error that led here matters more than one met while tidying up."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> WriteError:
    """The words for an operating system's error met while writing `path`."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _DISK_FULL:
        advice = "the disk is full: free some space or choose another output folder"
    elif error.errno in _NOT_ALLOWED:
        advice = "choose an output folder that you may write to"
    else:
        advice = "check the path or choose another output folder"
    return WriteError(f"cannot write {str(path)!r} ({reason}): {advice}")
