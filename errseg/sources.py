"""File, folder, glob, list, pipe -> which files there are, and what each is called.

Symbolic links are followed; a folder that contains itself through one is not entered again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from errseg.errors import UsageError
from errseg.images import IMAGE_SUFFIXES
from errseg.outputs import CLASSES_FILE, RUN_FILE
from errseg.records import Failure

STANDARD_INPUT = "-"
"""The input that stands for a list of paths."""

PIPE = "pipe:"
"""The input that stands for a picture or a video on standard input."""

PIPE_SOURCE = "stdin"

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}
    | {".wmv", ".flv", ".3gp", ".ogv"}
)
"""Suffixes, in lower case, of the videos taken from a folder."""

_TAKEN_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES

_GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True)
class SourceFile:
    """One file to read.

    Attributes:
        path: the file; None for standard input.
        source: POSIX path relative to the input root; names the outputs. Bytes of the name that
            are not UTF-8 stand in it as Python's surrogates (`os.fsdecode`).
    """

    path: Path | None
    source: str

    @property
    def is_video(self) -> bool:
        """Whether its name is that of a video."""
        return Path(self.source).suffix.lower() in VIDEO_SUFFIXES

    @property
    def is_picture(self) -> bool:
        """Whether its name is that of a picture; there are files that may be either."""
        return Path(self.source).suffix.lower() in IMAGE_SUFFIXES


@dataclass(frozen=True)
class _NamedFile:
    """A file given by name: what it is called depends on all the others given so."""

    path: Path


def find_sources(
    inputs: Sequence[str], *, listed: Iterable[str] | None = None, exclude: Path | None = None
) -> tuple[list[SourceFile], list[Failure]]:
    """Find every picture and video that the inputs name, in the order of the inputs.

    - A folder is walked: its files by name, then its folders by name, and so on down. Hidden files
      and folders are skipped, output folders of other runs, and files without a suffix of
      `IMAGE_SUFFIXES` or `VIDEO_SUFFIXES`. `source` is relative to the folder.
    - A glob (`*`, `?`, `[...]`, `**` for any number of folders) that is no existing path is matched
      against the folder before its first such part, in the same order and with the same files
      skipped; a folder that matches is taken whole. `source` is relative to that folder.
    - A file is taken whatever its suffix. `source` is relative to the deepest folder that holds all
      files given so, listed ones included.
    - `-` stands for the paths in `listed`, all of them files.
    - `pipe:` stands for one picture or video on standard input, called "stdin".

    A file reached twice under one `source` is kept once.

    Args:
        inputs: paths, globs, `-`, and `pipe:` alone.
        listed: one path per item, as `split_list` gives them.
        exclude: the output folder, which is never entered.

    Returns:
        sources: the files, not yet opened.
        failures: listed paths without a file, and folders that cannot be read. There may be
            failures and no source.

    Raises:
        UsageError: an input does not exist or is the output folder, a glob matches nothing, `-`
            without `listed`, `pipe:` beside other inputs, or nothing to read at all.
    """
    if PIPE in inputs:
        if len(inputs) > 1:
            raise UsageError(f"{PIPE} stands for all of standard input; give no other input.")
        return [SourceFile(None, PIPE_SOURCE)], []
    forbidden = None if exclude is None else exclude.resolve()
    found: list[SourceFile | _NamedFile | Failure] = []
    for text in inputs:
        if text == STANDARD_INPUT:
            found.extend(_from_list(listed))
        else:
            found.extend(_from_argument(text, forbidden))

    failures = [item for item in found if isinstance(item, Failure)]
    sources = _without_repeats(_with_sources_named(found))
    if not sources and not failures:
        if list(inputs) == [STANDARD_INPUT]:
            raise UsageError("The list of paths on standard input is empty. Pipe one in.")
        raise UsageError(
            f"No picture or video in {', '.join(map(repr, inputs)) or 'no input'}; looked for "
            f"files ending in {', '.join(sorted(_TAKEN_SUFFIXES))}. Name other inputs."
        )
    return sources, failures


def split_list(stream: BinaryIO, nul: bool) -> Iterator[str]:
    """The paths in a list, bytes that are not UTF-8 kept as in all file names.

    Args:
        stream: one path a line; blank lines are skipped.
        nul: paths end in NUL instead (`find -print0`), and may hold line ends.
    """
    if nul:
        for item in stream.read().split(b"\0"):
            if item:
                yield os.fsdecode(item)
        return
    for line in stream:
        text = os.fsdecode(line).removesuffix("\n").removesuffix("\r")
        if text.strip():
            yield text


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/8" -> (2, 8): the second of eight parts.

    Raises:
        UsageError: it is nothing of the kind.
    """
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"The shard is {text!r}; it must be I/N with 1 <= I <= N, such as 2/8.")
    return int(match[1]), int(match[2])


def shard(sources: Sequence[SourceFile], index: int, count: int) -> list[SourceFile]:
    """The `index`-th (from 1) of `count` parts.

    A source belongs to a part by its name alone: it stays there when others come or go.
    """
    return [source for source in sources if _part_of(source.source, count) == index - 1]


def _part_of(name: str, count: int) -> int:
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "big") % count


def _from_list(listed: Iterable[str] | None) -> Iterator[_NamedFile | Failure]:
    if listed is None:
        raise UsageError("Input '-' needs a list of paths on standard input. Pipe one in.")
    for text in listed:
        path = Path(text)
        trouble = _trouble(path)
        if trouble is not None:
            yield Failure(text, f"Cannot read {text!r}: {trouble}; check this line of the list")
        elif path.is_dir():
            # `find DIR | errseg run -` lists folders beside their files: walking them would take
            # every file several times, under several names.
            yield Failure(
                text, f"Cannot read {text!r}: it is a folder; list files only (find -type f)"
            )
        else:
            yield _NamedFile(path)


def _from_argument(
    text: str, forbidden: Path | None
) -> Iterator[SourceFile | _NamedFile | Failure]:
    path = Path(text)
    trouble = _trouble(path) if text else "an empty name"
    if trouble is None:
        if not path.is_dir():
            yield _NamedFile(path)
        elif path.resolve() == forbidden:
            raise UsageError(
                f"Input {text!r} is also the output folder, expected two different ones. "
                "Name another output folder."
            )
        else:
            yield from _walk(path, ("**",), forbidden)
    elif _has_magic(text):
        yield from _from_glob(text, forbidden)
    else:
        raise UsageError(
            f"Input {text!r}: {trouble}. Expected a file, a folder, a glob or '-'. Check the path."
        )


def _from_glob(text: str, forbidden: Path | None) -> Iterator[SourceFile | Failure]:
    parts = Path(text).parts
    first = next(index for index, part in enumerate(parts) if _has_magic(part))
    root = Path(*parts[:first])
    # A closing slash, which Path drops, asks for folders: for what is in them, that is.
    pattern = (*parts[first:], "*") if text.endswith("/") else parts[first:]
    found = False
    if _trouble(root) is None and root.is_dir():
        for item in _walk(root, pattern, forbidden):
            found = True
            yield item
    if not found:
        raise UsageError(
            f"Input {text!r} matches no picture or video (hidden files are skipped, and those not "
            f"ending in {', '.join(sorted(_TAKEN_SUFFIXES))}). Check the pattern."
        )


def _walk(
    root: Path,
    pattern: tuple[str, ...],
    forbidden: Path | None,
    parts: tuple[str, ...] = (),
    above: frozenset[Path] = frozenset(),
) -> Iterator[SourceFile | Failure]:
    """The pictures and videos in `root/parts` and below whose path from `root` fits the pattern.

    `above` holds the real paths of the folders on the way down. Only they close a loop: a folder
    that can be reached by two ways is walked twice, and its files are called after both.
    """
    folder = root.joinpath(*parts)
    real = folder.resolve()
    if real in above or real == forbidden:
        return
    try:
        with os.scandir(folder) as entries:
            visible = sorted(
                (entry for entry in entries if not entry.name.startswith(".")),
                key=lambda entry: entry.name,
            )
    except OSError as error:
        message = (
            f"Cannot read folder {os.fspath(folder)!r}: {error.strerror}; check its permissions"
        )
        yield Failure("/".join(parts) or os.fspath(folder), message)
        return

    if parts and {RUN_FILE, CLASSES_FILE} <= {entry.name for entry in visible}:
        return  # results of another run are no pictures to segment
    folders: list[tuple[str, ...]] = []
    for entry in visible:
        inner = (*parts, entry.name)
        if _is_folder(entry):
            folders.append(inner)
        elif Path(entry.name).suffix.lower() in _TAKEN_SUFFIXES and _is_taken(inner, pattern):
            yield SourceFile(folder / entry.name, "/".join(inner))
    for inner in folders:
        if _may_hold_matches(inner, pattern):
            yield from _walk(root, pattern, forbidden, inner, above | {real})


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a closed folder: reading it as a file will say so
        return False


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _is_taken(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether the pattern matches a file, or any folder around it."""
    return any(_matches(parts[:depth], pattern) for depth in range(1, len(parts) + 1))


def _may_hold_matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a folder is worth entering; `*.jpg` alone must not walk a whole disk."""
    if not parts or not pattern or pattern[0] == "**":
        return True
    return fnmatchcase(parts[0], pattern[0]) and _may_hold_matches(parts[1:], pattern[1:])


def _has_magic(text: str) -> bool:
    return not _GLOB_CHARACTERS.isdisjoint(text)


def _trouble(path: Path) -> str | None:
    """Why there is nothing to read at the path, in words; None if something is there."""
    try:
        path.stat()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except ValueError:  # a NUL byte
        return "not a path"
    return None


def _with_sources_named(
    found: Iterable[SourceFile | _NamedFile | Failure],
) -> Iterator[SourceFile]:
    items = [item for item in found if not isinstance(item, Failure)]
    # Links stay as they were typed, but ".." must go: a source may not climb out of the output.
    absolute = {
        item.path: Path(os.path.abspath(item.path))  # noqa: PTH100
        for item in items
        if isinstance(item, _NamedFile)
    }
    root = Path(os.path.commonpath([path.parent for path in absolute.values()] or [Path()]))
    for item in items:
        if isinstance(item, SourceFile):
            yield item
        else:
            yield SourceFile(item.path, absolute[item.path].relative_to(root).as_posix())


def _without_repeats(sources: Iterable[SourceFile]) -> list[SourceFile]:
    kept: dict[tuple[str, str], SourceFile] = {}
    for source in sources:
        assert source.path is not None
        # realpath, not Path.resolve: before Python 3.13 that one raises on a link to itself.
        kept.setdefault((os.path.realpath(source.path), source.source), source)
    return list(kept.values())
