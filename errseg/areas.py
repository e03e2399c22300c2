"""areas.csv: one row per picture (or frame) and class present.

UTF-8, lines end in "\\n"; names that are not UTF-8 keep their bytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from errseg.files import atomic_write
from errseg.journal import Entry, FrameEntry
from errseg.outputs import AREAS_FILE
from errseg.records import UNLABELLED_CLASS_ID, UNLABELLED_NAME

AREAS_COLUMNS = (
    "source",
    "frame",
    "time_s",
    "width",
    "height",
    "class_id",
    "class",
    "pixels",
    "fraction",
    "mean_score",
)


def write_areas(out: Path, entries: Iterable[Entry], class_names: Sequence[str]) -> None:
    """Write areas.csv, whole or not at all, in the order of the entries.

    Raises:
        WriteError: it cannot be written.
    """
    names = {UNLABELLED_CLASS_ID: UNLABELLED_NAME} | dict(enumerate(class_names))
    with atomic_write(out / AREAS_FILE) as file:
        file.write(csv_bytes([AREAS_COLUMNS]))
        for entry in entries:
            if isinstance(entry, FrameEntry):
                file.write(csv_bytes(_rows(entry, names)))


def _rows(entry: FrameEntry, names: dict[int, str]) -> list[Sequence[object]]:
    picture = (entry.source, entry.frame, f"{entry.time_s:.3f}", entry.width, entry.height)
    return [
        (
            *picture,
            area.class_id,
            names[area.class_id],
            area.pixels,
            f"{area.fraction:.6f}",
            f"{area.mean_score:.6f}",
        )
        for area in entry.areas
    ]


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows as lines of a CSV file."""
    return "".join(map(_csv_line, rows)).encode(errors="surrogateescape")


def _csv_line(row: Sequence[object]) -> str:
    line = io.StringIO()
    # With "\r\n" as the line end, Python before 3.13 also quotes a lone "\r" in a field.
    csv.writer(line, lineterminator="\r\n").writerow(row)
    return line.getvalue().removesuffix("\r\n") + "\n"
