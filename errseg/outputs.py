"""Where a run's files go, and the check, before anything is written, that they may go there.

    pictures   <out>/overlays/<source>.jpg   <out>/labels/<source>.png
    videos     <out>/overlays/<source>.mp4   <out>/labels/<source>/<frame>.png or <source>.mkv
    both       <out>/areas.csv   <out>/classes.csv   <out>/run.json   <out>/.errseg/ (the journal)

<source> is the path of the picture or video below the input root, without its suffix.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from errseg.errors import OutputError, UsageError

OUTPUT_KINDS = ("overlays", "labels", "areas")
AREAS_FILE = "areas.csv"
CLASSES_FILE = "classes.csv"
RUN_FILE = "run.json"
WORK_FOLDER = ".errseg"
JOURNAL_FILE = ".errseg/journal.jsonl"

Medium = Literal["picture", "video", "ffv1"]
"""What a source is: a video's label maps are a folder of PNGs, or one FFV1 file ("ffv1")."""

_SUFFIXES: dict[Medium, dict[str, str]] = {
    "picture": {"overlays": ".jpg", "labels": ".png"},
    "video": {"overlays": ".mp4", "labels": ""},
    "ffv1": {"overlays": ".mp4", "labels": ".mkv"},
}
_FRAME_NAME = re.compile(r"\d{6,}\.png")
_LONGEST_NAME_BYTES = 255
_COLLISION_ADVICE = "rename one of them, or run them apart into different output folders"
_OVERWRITE_ADVICE = (
    "choose another output folder, or pass --resume to go on with it, or --overwrite to replace "
    "single files"
)


def output_paths(
    source: str, kinds: Iterable[str], medium: Medium = "picture"
) -> dict[str, PurePosixPath]:
    """Paths of one source's own files, relative to the output folder, by kind of output.

    `areas` has none: its rows share one file. `labels` of a "video" is a folder, see `frame_path`.

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
    suffixes = _SUFFIXES[medium]
    return {kind: PurePosixPath(kind, stem + suffixes[kind]) for kind in kinds if kind in suffixes}


def frame_path(labels: PurePosixPath, index: int) -> PurePosixPath:
    """The label map of one frame in the folder of its video."""
    return labels / f"{index:06d}.png"


def remove_frames(out: Path, source: str) -> None:
    """Remove the label maps of an earlier run's frames of a video; it may have had more of them."""
    folder = out / output_paths(source, ["labels"], "video")["labels"]
    for path in folder.glob("*.png"):
        if _FRAME_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def video_work_folder(out: Path, source: str) -> Path:
    """Where an unfinished video's segments and state are."""
    return out / WORK_FOLDER / "videos" / hashlib.sha256(os.fsencode(source)).hexdigest()[:16]


def steady_path(out: Path, source: str, segments: int) -> Path:
    """The state that is carried on from frame to frame, as it was after so many segments."""
    return video_work_folder(out, source) / f"steady-{segments}.bin"


def only_pictures(source: str) -> Sequence[Medium]:  # noqa: ARG001
    """Every source is a picture."""
    return ("picture",)


def plan_outputs(
    out: Path,
    sources: Sequence[str],
    kinds: Sequence[str],
    replace: bool,
    mediums: Callable[[str], Sequence[Medium]] = only_pictures,
) -> None:
    """Makes sure, before anything is written, that a run loses, mixes and replaces no file.

    Args:
        out: the output folder; it need not exist.
        sources: `Frame.source` of every picture and video of the run.
        kinds: some of `OUTPUT_KINDS`.
        replace: whether files of an earlier run may be replaced; others are never touched.
        mediums: what a source is, or may turn out to be.

    Raises:
        UsageError: if `kinds` is empty or holds an unknown one.
        OutputError: if two pictures would be written to one file, also where the names differ by
            case or Unicode form only (one file on macOS and Windows); if a file would be needed as
            a folder or a folder as a file; if a name is too long; if `out` holds a run or a file of
            the same name and `replace` is not set.
    """
    check_kinds(kinds)
    planned = [
        (source, path, kind == "labels" and medium == "video")
        for source in sources
        for medium in mediums(source)
        for kind, path in output_paths(source, kinds, medium).items()
    ]
    _refuse_collisions(sources, [(source, path) for source, path, _ in planned])
    shared = [(PurePosixPath(name), False) for name in _shared_files(kinds)]
    files = shared + [(path, is_folder) for _, path, is_folder in planned]
    try:
        if out.exists():
            _refuse_existing(out, files, replace)
        else:
            _refuse_unwritable_parent(out)
    except OSError as error:
        raise OutputError(
            f"the output folder {str(out)!r} cannot be read ({error.strerror}): choose another one"
        ) from error


def refuse_leftovers(
    out: Path,
    sources: Sequence[str],
    kinds: Sequence[str],
    vocabulary_hash: str,
    mediums: Callable[[str], Sequence[Medium]] = only_pictures,
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
    replaced = {out / name for name in _shared_files(kinds)}
    replaced.update(
        out / path
        for source in sources
        for medium in mediums(source)
        for path in output_paths(source, kinds, medium).values()
    )
    found = [path for kind in OUTPUT_KINDS for path in (out / kind).rglob("*") if path.is_file()]
    areas = out / AREAS_FILE
    found += [areas] if areas.is_file() else []
    stale = sorted(
        path
        for path in found
        if path not in replaced and path.parent not in replaced and path.name[0] != "."
    )
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


def _refuse_collisions(
    sources: Sequence[str], planned: Sequence[tuple[str, PurePosixPath]]
) -> None:
    for source, count in Counter(sources).items():
        if count > 1:
            raise OutputError(f"{count} pictures are all called {source!r}: {_COLLISION_ADVICE}")
    owners: dict[PurePosixPath, str] = {}
    for source, path in planned:
        _refuse_long_name(path, source)
        other = owners.setdefault(_folded(path), source)
        if other != source:
            raise OutputError(
                f"{other!r} and {source!r} would both be written to {str(path)!r} "
                f"(upper and lower case count as equal): {_COLLISION_ADVICE}"
            )
    for path, source in owners.items():
        for folder in path.parents:
            if owners.get(folder, source) != source:
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


def _refuse_existing(out: Path, files: Sequence[tuple[PurePosixPath, bool]], replace: bool) -> None:
    """`files` come with whether they are folders."""
    if not out.is_dir():
        raise OutputError(f"{str(out)!r} is a file: choose a folder for the output")
    if not os.access(out, os.W_OK | os.X_OK):
        raise OutputError(f"{str(out)!r} is read-only: choose another output folder")
    if (out / RUN_FILE).is_file() and not replace:
        raise OutputError(f"{str(out)!r} already holds a run ({RUN_FILE}): {_OVERWRITE_ADVICE}")
    folders: set[Path] = set()
    for path, is_folder in ((out / relative, is_folder) for relative, is_folder in files):
        folders.update(path.parents)
        if is_folder:
            folders.add(path)
        elif path.is_dir():
            raise OutputError(
                f"{str(path)!r} is a folder, but a file of this name is to be written: "
                "rename the folder or choose another output folder"
            )
        if path.exists() and not replace:
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


def _shared_files(kinds: Sequence[str]) -> list[str]:
    return [RUN_FILE, CLASSES_FILE] + ([AREAS_FILE] if "areas" in kinds else [])
