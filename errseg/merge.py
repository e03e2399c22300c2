"""Joining runs that were made elsewhere with the same vocabulary: areas, classes and totals."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import errseg
from errseg.areas import AREAS_COLUMNS, csv_bytes
from errseg.errors import OutputError
from errseg.files import atomic_write, write_bytes_atomic
from errseg.outputs import AREAS_FILE, CLASSES_FILE, RUN_FILE
from errseg.records import ClassArea
from errseg.summary import ClassTotal, Totals

_MAY_DIFFER = frozenset({"--batch-size", "--outputs", "--opacity", "--video-labels"})
"""Of what makes a run what it is: these change no area."""

_RESUME_ADVICE = "finish it with `errseg run … --resume`, or pass --partial to take what there is"


@dataclass(frozen=True)
class Merged:
    """What came of it.

    Attributes:
        record: the content of the merged run.json.
        areas: totals of all runs together.
        warnings: what was left out or assumed, in words for the user.
    """

    record: Mapping[str, object]
    areas: tuple[ClassTotal, ...]
    warnings: tuple[str, ...]


def merge_runs(
    runs: Sequence[Path], out: Path, *, partial: bool = False, overwrite: bool = False
) -> Merged:
    """Write areas.csv, classes.csv and run.json of several runs together.

    Overlays and label maps stay where they are. A picture that stands in several runs with the same
    rows is taken once.

    Args:
        runs: output folders of `errseg run` or of `errseg merge`, in the order of their rows.
        out: the folder to write to.
        partial: take runs that are not complete as well.
        overwrite: replace the three files in `out`.

    Raises:
        OutputError: a folder holds no run, or one that does not fit the others; a picture stands in
            two runs with different areas; files would be replaced.
        WriteError: the result cannot be written.
    """
    _check_target(runs, out, overwrite)
    loaded = [_load(folder, partial) for folder in runs]
    for other in loaded[1:]:
        _refuse_different(loaded[0], other)
    names = _class_names(runs[0])
    totals = _Rows(loaded)
    with atomic_write(out / AREAS_FILE) as file:
        file.write(csv_bytes([AREAS_COLUMNS]))
        for rows in totals.unique():
            file.write(csv_bytes(rows))
    write_bytes_atomic(out / CLASSES_FILE, (runs[0] / CLASSES_FILE).read_bytes())
    areas = totals.totals.by_class(names)
    unfinished = [run for run in loaded if run.unfinished]
    warnings = tuple(f"{run.folder}: taken although it is not complete" for run in unfinished)
    if totals.repeated:
        warnings += (f"{totals.repeated} pictures stand in several runs; taken once",)
    record = _record(loaded, totals, areas, warnings)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_bytes_atomic(out / RUN_FILE, text.encode(errors="backslashreplace"))
    return Merged(record, areas, warnings)


@dataclass(frozen=True)
class _Run:
    """One of the runs, its run.json read."""

    folder: Path
    record: dict[str, Any]

    @property
    def unfinished(self) -> bool:
        return bool(self.record.get("state", "complete") != "complete")

    @property
    def identity(self) -> dict[str, Any]:
        found: dict[str, Any] = self.record["identity"]
        return found


def _check_target(runs: Sequence[Path], out: Path, overwrite: bool) -> None:
    if len({folder.resolve() for folder in runs}) < len(runs):
        raise OutputError("the same folder was given twice: give each run once")
    if out.resolve() in {folder.resolve() for folder in runs}:
        raise OutputError(f"{str(out)!r} is one of the runs: choose another folder for the result")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{str(out)!r} is a file: choose a folder for the result")
    there = [name for name in (AREAS_FILE, CLASSES_FILE, RUN_FILE) if (out / name).exists()]
    if there and not overwrite:
        raise OutputError(
            f"{str(out / there[0])!r} exists already: choose another folder, or pass --overwrite"
        )


def _load(folder: Path, partial: bool) -> _Run:
    path = folder / RUN_FILE
    try:
        record = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise OutputError(f"{str(folder)!r} holds no run ({RUN_FILE}: {error.strerror})") from error
    except ValueError as error:
        raise _not_a_run(path) from error
    if not isinstance(record, dict) or not isinstance(record.get("identity"), dict):
        raise _not_a_run(path)
    run = _Run(folder, {"counts": {}, **record})  # a run that was killed has none yet
    if run.unfinished and not partial:
        raise OutputError(f"the run in {str(folder)!r} is not complete: {_RESUME_ADVICE}")
    for name in (AREAS_FILE, CLASSES_FILE):
        if not (folder / name).is_file():
            raise OutputError(f"{str(folder)!r} has no {name}: the run must have written areas")
    return run


def _not_a_run(path: Path) -> OutputError:
    return OutputError(f"{str(path)!r} was not written by this version of errseg: run it again")


def _refuse_different(one: _Run, other: _Run) -> None:
    keys = [key for key in {**one.identity, **other.identity} if key not in _MAY_DIFFER]
    differing = [key for key in keys if one.identity.get(key) != other.identity.get(key)]
    classes = [(run.folder / CLASSES_FILE).read_bytes() for run in (one, other)]
    if classes[0] != classes[1] and "--classes" not in differing:
        differing.append("--classes")
    if differing:
        raise OutputError(
            f"{str(one.folder)!r} and {str(other.folder)!r} differ in {', '.join(differing)}: only "
            "runs that were asked for the same can be joined"
        )


def _class_names(folder: Path) -> list[str]:
    path = folder / CLASSES_FILE
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [row["name"] for row in csv.DictReader(file)]
    except (KeyError, csv.Error) as error:
        raise OutputError(f"{str(path)!r} is no list of classes: run it again") from error


class _Rows:
    """The rows of all runs, each picture once, and their totals.

    Attributes:
        totals: of the rows given out.
        frames, repeated: pictures given out, and left out because they had been already.
    """

    def __init__(self, runs: Sequence[_Run]) -> None:
        self.totals = Totals()
        self.frames = self.repeated = 0
        self._runs = runs
        # a short digest for each picture, not its name: a night's frames fit into memory
        self._seen: dict[bytes, tuple[int, bytes]] = {}

    def unique(self) -> Iterator[list[list[str]]]:
        """The rows of one picture after the other."""
        for number, run in enumerate(self._runs):
            for rows in _pictures(run.folder / AREAS_FILE):
                key, content = _digest(rows[0][:2]), _digest([cell for row in rows for cell in row])
                before = self._seen.get(key)
                if before is None:
                    self._seen[key] = (number, content)
                    self.frames += 1
                    self._add(rows, run.folder / AREAS_FILE)
                    yield rows
                elif before[1] == content:
                    self.repeated += 1
                else:
                    raise OutputError(
                        f"{rows[0][0]!r} (frame {rows[0][1]}) has different areas in "
                        f"{str(self._runs[before[0]].folder)!r} and {str(run.folder)!r}: leave one "
                        "of them out"
                    )

    def _add(self, rows: list[list[str]], path: Path) -> None:
        try:
            self.totals.add(
                ClassArea(int(row[5]), int(row[7]), float(row[8]), float(row[9])) for row in rows
            )
        except ValueError as error:
            raise _damaged(path, rows[0]) from error


def _pictures(path: Path) -> Iterator[list[list[str]]]:
    """Rows of areas.csv that belong to one picture, without the header."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.reader(file)
        if next(reader, None) != list(AREAS_COLUMNS):
            raise OutputError(f"{str(path)!r} does not begin as areas.csv does: run it again")
        rows: list[list[str]] = []
        for row in reader:
            if len(row) != len(AREAS_COLUMNS):
                raise _damaged(path, row)
            if rows and row[:2] != rows[0][:2]:
                yield rows
                rows = []
            rows.append(row)
        if rows:
            yield rows


def _damaged(path: Path, row: Sequence[str]) -> OutputError:
    return OutputError(f"{str(path)!r} is damaged at {','.join(row)[:80]!r}: run it again")


def _digest(cells: Sequence[str]) -> bytes:
    text = "\0".join(cells).encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=16).digest()


def _record(
    runs: Sequence[_Run],
    rows: _Rows,
    areas: Sequence[ClassTotal],
    warnings: Sequence[str],
) -> dict[str, object]:
    counts = {
        name: sum(int(run.record["counts"].get(name, 0)) for run in runs)
        for name in ("done", "failed", "skipped")
    }
    return {
        "version": errseg.__version__,
        "state": "interrupted" if any(run.unfinished for run in runs) else "complete",
        "merged_from": [str(run.folder) for run in runs],
        "identity": runs[0].identity,
        "model": runs[0].record.get("model"),
        "vocabulary": runs[0].record.get("vocabulary"),
        "counts": {**counts, "frames": rows.frames},
        "areas": [{**vars(total), "fraction": round(total.fraction, 6)} for total in areas],
        "failures": [failure for run in runs for failure in run.record.get("failures", [])],
        "warnings": [
            *(warning for run in runs for warning in run.record.get("warnings", [])),
            *({"source": "merge", "message": text} for text in warnings),
        ],
    }
