"""What a run leaves in its output folder.

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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from errseg.errors import WriteError
from errseg.files import RecordFile, write_bytes_atomic
from errseg.outputs import AREAS_FILE, CLASSES_FILE, RUN_FILE, check_kinds, output_paths
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

AREAS_HEADER = "source,frame,time_s,width,height,class_id,class,pixels,fraction,mean_score\n"
UNLABELLED_8BIT = 255
"""What `UNLABELLED` becomes in an 8-bit label map."""

_JPEG_QUALITY = 92
_LONGEST_JPEG_SIDE_PX = 65500
_PNG_COMPRESSION = 1
"""Of 9: label maps are so even that more effort gains little and takes several times as long."""


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
    check_kinds(kinds)
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
