"""What a run leaves in its output folder, and the check that it may be written there.

    overlays/<source>.jpg    the picture under its class colours, with outlines and names
    labels/<source>.png      class ids: 8-bit with palette (255 = unlabelled) up to 255 classes,
                             16-bit grey (65535 = unlabelled) above
    areas.csv                one row per picture and class present
    classes.csv              the vocabulary: ids, names, synonyms, colours
    run.json                 how it was made

<source> is the path of the picture below the input root, without its suffix. Every file appears
whole or not at all.
"""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from errseg.errors import OutputError, UsageError, WriteError
from errseg.files import RecordFile, write_bytes_atomic
from errseg.records import (
    UNLABELLED_CLASS_ID,
    UNLABELLED_NAME,
    Frame,
    ImageArray,
    LabelMap,
    Segmentation,
)
from errseg.render import DEFAULT_OPACITY, overlay
from errseg.vocabulary import Vocabulary

OUTPUT_KINDS = ("overlays", "labels", "areas")
AREAS_FILE = "areas.csv"
CLASSES_FILE = "classes.csv"
RUN_FILE = "run.json"

AREAS_HEADER = "source,frame,time_s,width,height,class_id,class,pixels,fraction,mean_score\n"
UNLABELLED_8BIT = 255
"""What `UNLABELLED` becomes in an 8-bit label map."""

_SUFFIX_OF_KIND = {"overlays": ".jpg", "labels": ".png"}
_JPEG_QUALITY = 92
_LONGEST_JPEG_SIDE_PX = 65500
_PNG_COMPRESSION = 1
"""Of 9: label maps are so even that more effort gains little and takes several times as long."""

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
    _check_kinds(kinds)
    _refuse_collisions(sources, kinds)
    try:
        if out.exists():
            _refuse_existing(out, sources, kinds, overwrite)
    except OSError as error:
        raise OutputError(
            f"the output folder {str(out)!r} cannot be read ({error.strerror}): choose another one"
        ) from error


def _check_kinds(kinds: Sequence[str]) -> None:
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


def _all_files(sources: Sequence[str], kinds: Sequence[str]) -> Iterator[PurePosixPath]:
    yield PurePosixPath(RUN_FILE)
    yield PurePosixPath(CLASSES_FILE)
    if "areas" in kinds:
        yield PurePosixPath(AREAS_FILE)
    for source in sources:
        yield from output_paths(source, kinds).values()


class Sink(Protocol):
    """Takes the results of a run, one picture after the other."""

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Writes what this sink keeps of one picture, whole or not at all.

        Raises:
            WriteError: if it cannot be written; other pictures may still be.
        """

    def close(self) -> None:
        """Completes what was written, also after an interruption; a second call does nothing.

        Raises:
            WriteError: if it cannot be completed.
        """


class OverlaySink:
    """Writes overlays/<source>.jpg below `out`, blended with `opacity`, 0..1."""

    def __init__(self, out: Path, vocabulary: Vocabulary, opacity: float = DEFAULT_OPACITY) -> None:
        self._out = out
        self._colours = vocabulary.colours
        self._opacity = opacity

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        path = self._out / output_paths(frame.source, ["overlays"])["overlays"]
        if max(segmentation.labels.shape) > _LONGEST_JPEG_SIDE_PX:
            height, width = segmentation.labels.shape
            raise WriteError(
                f"cannot write {str(path)!r}: the picture is {width} x {height}, and a JPEG holds "
                f"at most {_LONGEST_JPEG_SIDE_PX} pixels a side; leave out overlays for it"
            )
        picture = overlay(frame.image, segmentation, self._colours, opacity=self._opacity)
        write_bytes_atomic(path, _jpeg(picture))

    def close(self) -> None:
        """Nothing is left to do."""


class LabelSink:
    """Writes labels/<source>.png below `out`: class ids in vocabulary order, from 0."""

    def __init__(self, out: Path, vocabulary: Vocabulary) -> None:
        self._out = out
        self._palette: bytes | None = None
        if len(vocabulary) <= UNLABELLED_8BIT:
            palette = np.zeros((256, 3), np.uint8)
            palette[: len(vocabulary)] = vocabulary.colours
            self._palette = palette.tobytes()

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        path = self._out / output_paths(frame.source, ["labels"])["labels"]
        write_bytes_atomic(path, _label_png(segmentation.labels, self._palette))

    def close(self) -> None:
        """Nothing is left to do."""


class AreaSink:
    """Collects the rows of areas.csv, which appears at `close` with all pictures written so far.

    UTF-8, lines end in "\\n"; names that are not UTF-8 keep their bytes.

    Raises:
        WriteError: if the folder `out` cannot be made or written to.
    """

    def __init__(self, out: Path, vocabulary: Vocabulary) -> None:
        self._file = RecordFile(out / AREAS_FILE)
        self._names = {UNLABELLED_CLASS_ID: UNLABELLED_NAME} | dict(enumerate(vocabulary.names))
        self._file.append(AREAS_HEADER.encode())

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        height, width = segmentation.labels.shape
        picture = (frame.source, frame.index, f"{frame.time_s:.3f}", width, height)
        rows = [
            (
                *picture,
                area.class_id,
                self._names[area.class_id],
                area.pixels,
                f"{area.fraction:.6f}",
                f"{area.mean_score:.6f}",
            )
            for area in segmentation.areas()
        ]
        self._file.append(_csv_bytes(rows))

    def close(self) -> None:
        self._file.publish()


def make_sinks(
    out: Path, vocabulary: Vocabulary, kinds: Sequence[str], opacity: float = DEFAULT_OPACITY
) -> list[Sink]:
    """The sinks for `kinds`; areas last, so that its rows stand for pictures that were written.

    Raises:
        UsageError: if `kinds` is empty or holds an unknown one.
        WriteError: if `out` cannot be made or written to.
    """
    _check_kinds(kinds)
    sinks: list[Sink] = []
    if "overlays" in kinds:
        sinks.append(OverlaySink(out, vocabulary, opacity))
    if "labels" in kinds:
        sinks.append(LabelSink(out, vocabulary))
    if "areas" in kinds:
        sinks.append(AreaSink(out, vocabulary))
    return sinks


def write_classes(out: Path, vocabulary: Vocabulary) -> None:
    """Writes classes.csv: id, name, synonyms (", " between them), colour (#rrggbb).

    Raises:
        WriteError: if it cannot be written.
    """
    rows = [
        (entry.id, entry.name, ", ".join(entry.synonyms), "#" + bytes(entry.colour).hex())
        for entry in vocabulary.classes
    ]
    write_bytes_atomic(
        out / CLASSES_FILE, _csv_bytes([("id", "name", "synonyms", "colour"), *rows])
    )


def write_run_record(out: Path, record: Mapping[str, object]) -> None:
    """Writes run.json: `record` as indented JSON in UTF-8, keys in their order.

    Raises:
        WriteError: if it cannot be written.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 holds lone surrogates; "\udcff" is also their form in JSON.
    write_bytes_atomic(out / RUN_FILE, text.encode(errors="backslashreplace"))


def _jpeg(picture: ImageArray) -> bytes:
    # Full colour resolution: coloured text and thin lines smear under 4:2:0.
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    return bytes(data)


def _label_png(labels: LabelMap, palette: bytes | None) -> bytes:
    """PNG, 8-bit with `palette` (256 RGB triples), or 16-bit grey without."""
    if palette is None:
        picture = Image.fromarray(labels)
    else:
        picture = Image.fromarray(np.minimum(labels, UNLABELLED_8BIT).astype(np.uint8), "P")
        picture.putpalette(palette)
    data = io.BytesIO()
    picture.save(data, "PNG", compress_level=_PNG_COMPRESSION)
    return data.getvalue()


def _csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    return "".join(map(_csv_line, rows)).encode(errors="surrogateescape")


def _csv_line(row: Sequence[object]) -> str:
    line = io.StringIO()
    # With "\r\n" as the line end, Python before 3.13 also quotes a lone "\r" in a field.
    csv.writer(line, lineterminator="\r\n").writerow(row)
    return line.getvalue().removesuffix("\r\n") + "\n"
