"""Where a run's files go, and the check, before anything is written, that they may go there.

    <out>/overlays/<source>.jpg   <out>/labels/<source>.png
    <out>/areas.csv   <out>/classes.csv   <out>/run.json

<source> is the path of the picture below the input root, without its suffix.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from errseg.errors import OutputError, UsageError

OUTPUT_KINDS = ("overlays", "labels", "areas")
AREAS_FILE = "areas.csv"
CLASSES_FILE = "classes.csv"
RUN_FILE = "run.json"

_SUFFIX_OF_KIND = {"overlays": ".jpg", "labels": ".png"}
_LONGEST_NAME_BYTES = 255
_COLLISION_ADVICE = "rename one of them, or run them apart into different output folders"
_OVERWRITE_ADVICE = "choose another output folder, or pass --overwrite to replace single files"


def output_paths(source: str, kinds: Iterable[str]) -> dict[str, PurePosixPath]:
    """Paths of one picture's own files, relative to the output folder, by kind of output.

    `areas` has none: its rows share one file.

    Raises:
        OutputError: if `source` is no path below the input root, so that its outputs would lie
            outside the output folder.
    """
    path = PurePosixPath(source)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise OutputError(
            f"the picture {source!r} has no path below the input root, which its outputs are "
            "named after: give the folder it lies in as the input"
        )
    stem = path.with_suffix("").as_posix()
    return {
        kind: PurePosixPath(kind, stem + _SUFFIX_OF_KIND[kind])
        for kind in kinds
        if kind in _SUFFIX_OF_KIND
    }


def plan_outputs(out: Path, sources: Sequence[str], kinds: Sequence[str], overwrite: bool) -> None:
    """Makes sure, before anything is written, that a run loses, mixes and replaces no file.

    Args:
        out: the output folder; it need not exist.
        sources: `Frame.source` of every picture of the run.
        kinds: some of `OUTPUT_KINDS`.
        overwrite: whether files of an earlier run may be replaced; others are never touched.

    Raises:
        UsageError: if `kinds` is empty or holds an unknown one.
        OutputError: if two pictures would be written to one file, also where the names differ by
            case or Unicode form only (one file on macOS and Windows); if a file would be needed as
            a folder or a folder as a file; if a name is too long; if `out` holds a run or a file of
            the same name and `overwrite` is not set.
    """
    check_kinds(kinds)
    _refuse_collisions(sources, kinds)
    try:
        if out.exists():
            _refuse_existing(out, sources, kinds, overwrite)
        else:
            _refuse_unwritable_parent(out)
    except OSError as error:
        raise OutputError(
            f"the output folder {str(out)!r} cannot be read ({error.strerror}): choose another one"
        ) from error


def refuse_leftovers(
    out: Path, sources: Sequence[str], kinds: Sequence[str], vocabulary_hash: str
) -> None:
    """Check, where files are to be replaced, that none with other class ids would stay beside them.

    Args:
        vocabulary_hash: of this run; the earlier one's stands in its run.json.

    Raises:
        OutputError: `out` holds a run with another vocabulary, of which some files would stay.
    """
    record = out / RUN_FILE
    if not record.is_file() or _recorded_vocabulary(record) == vocabulary_hash:
        return
    replaced = {out / path for path in _all_files(sources, kinds)}
    found = [path for kind in OUTPUT_KINDS for path in (out / kind).rglob("*") if path.is_file()]
    areas = out / AREAS_FILE
    found += [areas] if areas.is_file() else []
    stale = sorted(path for path in found if path not in replaced and path.name[0] != ".")
    if stale:
        raise OutputError(
            f"{str(out)!r} holds a run with other classes, and {len(stale)} of its files would "
            f"stay, such as {str(stale[0])!r}: remove them or choose another output folder"
        )


def _recorded_vocabulary(record: Path) -> str | None:
    """The vocabulary hash in a run.json; None where it cannot be read."""
    try:
        vocabulary = json.loads(record.read_text("utf-8"))["vocabulary"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(vocabulary)


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises UsageError if `kinds` is empty or holds one that is not in `OUTPUT_KINDS`."""
    unknown = [kind for kind in kinds if kind not in OUTPUT_KINDS]
    if unknown or not kinds:
        came = f"unknown kind of output {unknown[0]!r}" if unknown else "no kind of output chosen"
        raise UsageError(f"{came}: choose one or more of {', '.join(OUTPUT_KINDS)}")


def _refuse_collisions(sources: Sequence[str], kinds: Sequence[str]) -> None:
    for source, count in Counter(sources).items():
        if count > 1:
            raise OutputError(f"{count} pictures are all called {source!r}: {_COLLISION_ADVICE}")
    owners: dict[PurePosixPath, str] = {}
    for source in sources:
        for path in output_paths(source, kinds).values():
            _refuse_long_name(path, source)
            other = owners.setdefault(_folded(path), source)
            if other != source:
                raise OutputError(
                    f"{other!r} and {source!r} would both be written to {str(path)!r} "
                    f"(upper and lower case count as equal): {_COLLISION_ADVICE}"
                )
    for path, source in owners.items():
        for folder in path.parents:
            if folder in owners:
                raise OutputError(
                    f"{str(folder)!r} would be the output of {owners[folder]!r} and "
                    f"the folder for that of {source!r}: {_COLLISION_ADVICE}"
                )


def _refuse_long_name(path: PurePosixPath, source: str) -> None:
    if len(os.fsencode(path.name)) > _LONGEST_NAME_BYTES:
        raise OutputError(
            f"the output of {source!r} would be called {path.name!r}, and a name holds at most "
            f"{_LONGEST_NAME_BYTES} bytes: rename the picture"
        )


def _folded(path: PurePosixPath) -> PurePosixPath:
    """The same for all names that are one on a file system that ignores case or Unicode form."""
    text = unicodedata.normalize("NFC", str(path)).casefold()
    return PurePosixPath(unicodedata.normalize("NFC", text))


def _refuse_existing(
    out: Path, sources: Sequence[str], kinds: Sequence[str], overwrite: bool
) -> None:
    if not out.is_dir():
        raise OutputError(f"{str(out)!r} is a file: choose a folder for the output")
    if not os.access(out, os.W_OK | os.X_OK):
        raise OutputError(f"{str(out)!r} is read-only: choose another output folder")
    if (out / RUN_FILE).is_file() and not overwrite:
        raise OutputError(f"{str(out)!r} already holds a run ({RUN_FILE}): {_OVERWRITE_ADVICE}")
    folders: set[Path] = set()
    for path in (out / relative for relative in _all_files(sources, kinds)):
        folders.update(path.parents)
        if path.is_dir():
            raise OutputError(
                f"{str(path)!r} is a folder, but a file of this name is to be written: "
                "rename the folder or choose another output folder"
            )
        if path.exists() and not overwrite:
            raise OutputError(f"{str(path)!r} exists already: {_OVERWRITE_ADVICE}")
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise OutputError(
                f"{str(folder)!r} is a file, but a folder of this name is needed: "
                "rename the file or choose another output folder"
            )


def _refuse_unwritable_parent(out: Path) -> None:
    """`out` is still to be made: the deepest folder above it that exists must allow that."""
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        what = "read-only" if above.is_dir() else "a file"
        raise OutputError(
            f"{str(out)!r} cannot be made, because {str(above)!r} is {what}: "
            "choose another output folder"
        )


def _all_files(sources: Sequence[str], kinds: Sequence[str]) -> Iterator[PurePosixPath]:
    yield PurePosixPath(RUN_FILE)
    yield PurePosixPath(CLASSES_FILE)
    if "areas" in kinds:
        yield PurePosixPath(AREAS_FILE)
    for source in sources:
        yield from output_paths(source, kinds).values()
