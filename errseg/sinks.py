"""What a run leaves in its output folder, besides areas.csv (errseg/areas.py).

    overlays/<source>.jpg or .mp4   the picture under its class colours, with outlines and names
    labels/<source>.png             class ids: 8-bit with palette (255 = unlabelled) up to 255
                                    classes, 16-bit grey (65535 = unlabelled) above; of a video
                                    a folder of them, or one FFV1 file <source>.mkv
    classes.csv                     the vocabulary: ids, names, synonyms, colours
    run.json                        how it was made

<source> is the path of the picture below the input root, without its suffix. Every file appears
whole or not at all. A sink renders in any thread; what must happen in order happens in `commit`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from errseg.areas import csv_bytes
from errseg.encoding import jpeg_bytes, label_png_bytes
from errseg.files import write_bytes_atomic
from errseg.outputs import (
    CLASSES_FILE,
    RUN_FILE,
    Medium,
    check_kinds,
    frame_path,
    output_paths,
    video_work_folder,
)
from errseg.records import Frame, ImageArray, LabelMap, Segmentation
from errseg.render import DEFAULT_OPACITY, overlay
from errseg.video_writer import VideoSegments
from errseg.vocabulary import Vocabulary

UNLABELLED_8BIT = 255
"""What `UNLABELLED` becomes in an 8-bit label map."""

VideoLabels = Literal["png", "ffv1"]

_LONGEST_JPEG_SIDE_PX = 65500


@dataclass(frozen=True)
class Rendered:
    """One sink's result for one frame.

    Attributes:
        path: the file that was written, relative to the output folder; None if it has none of its
            own.
        picture: what `commit` adds to a video; None if there is none.
        warning: what was changed, in words for the user; empty if nothing was.
    """

    path: PurePosixPath | None = None
    picture: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    warning: str = ""


@dataclass(frozen=True)
class Sound:
    """Where the sound of a video comes from: the file, and where its used part ends."""

    path: Path | None
    end_s: float | None = None


class Sink(Protocol):
    """Takes the results of a run."""

    kind: str
    """One of `OUTPUT_KINDS`."""

    def render(self, frame: Frame, segmentation: Segmentation) -> Rendered:
        """Make this sink's result of one frame, and its file if it has one; in any thread.

        Raises:
            WriteError: it cannot be written; other pictures may still be.
        """

    def commit(self, frame: Frame, rendered: Rendered) -> None:
        """What must happen in the order of the frames.

        Raises:
            WriteError: it cannot be written.
        """

    def resume_video(self, source: str, segments: int) -> bool:
        """Go on with a video of which so many segments are there; False if they are not."""

    def end_segment(self, source: str) -> None:
        """Complete the segment of a video that the last frames were in.

        Raises:
            WriteError: it cannot be written.
        """

    def end_video(self, source: str, sound: Sound) -> tuple[PurePosixPath | None, tuple[str, ...]]:
        """Complete a video.

        Returns:
            Its file, relative to the output folder, and what was changed, in words.

        Raises:
            WriteError: it cannot be written.
        """

    def close(self) -> None:
        """Let go of everything; unfinished videos keep their finished segments."""


class _Videos:
    """The videos that one sink is writing."""

    def __init__(self, out: Path, kind: str, codec: Literal["h264", "ffv1"]) -> None:
        self._out, self._kind = out, kind
        self._codec: Literal["h264", "ffv1"] = codec
        self._medium: Medium = "video" if codec == "h264" else "ffv1"
        self._first_segment: dict[str, int] = {}
        self._open: dict[str, VideoSegments] = {}

    def resume(self, source: str, segments: int) -> bool:
        self._first_segment[source] = segments
        names = {path.stem for path in self._folder(source).glob("*")}
        return len([name for name in names if not name.startswith(".")]) >= segments

    def append(self, frame: Frame, picture: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
        video = self._open.get(frame.source)
        if video is None:
            assert frame.video is not None
            video = self._open[frame.source] = VideoSegments(
                self._folder(frame.source),
                self._codec,
                frame.video.time_base,
                frame.video.rate,
                segment=self._first_segment.get(frame.source, 0),
            )
        video.append(picture, frame.pts)

    def end_segment(self, source: str) -> None:
        if source in self._open:
            self._open[source].end_segment()

    def end(self, source: str, sound: Sound) -> tuple[PurePosixPath | None, tuple[str, ...]]:
        video = self._open.get(source)
        if video is None:
            return None, ()
        path = output_paths(source, [self._kind], self._medium)[self._kind]
        warnings = video.join(self._out / path, audio_from=sound.path, end_s=sound.end_s)
        video.remove()
        del self._open[source]
        return path, warnings

    def close(self) -> None:
        for video in self._open.values():
            video.close()
        self._open.clear()

    def _folder(self, source: str) -> Path:
        return video_work_folder(self._out, source) / self._kind


class OverlaySink:
    """Writes overlays/<source>.jpg or .mp4 below `out`, blended with `opacity`, 0..1."""

    kind = "overlays"

    def __init__(self, out: Path, vocabulary: Vocabulary, opacity: float = DEFAULT_OPACITY) -> None:
        self._out = out
        self._colours = vocabulary.colours
        self._opacity = opacity
        self._videos = _Videos(out, self.kind, "h264")

    def render(self, frame: Frame, segmentation: Segmentation) -> Rendered:
        picture = overlay(frame.image, segmentation, self._colours, opacity=self._opacity)
        if frame.video is not None:
            return Rendered(picture=picture)
        path = output_paths(frame.source, [self.kind])[self.kind]
        picture, warning = _fitted_for_jpeg(picture)
        write_bytes_atomic(self._out / path, jpeg_bytes(picture))
        return Rendered(path, warning=warning)

    def commit(self, frame: Frame, rendered: Rendered) -> None:
        if rendered.picture is not None:
            self._videos.append(frame, rendered.picture)

    def resume_video(self, source: str, segments: int) -> bool:
        return self._videos.resume(source, segments)

    def end_segment(self, source: str) -> None:
        self._videos.end_segment(source)

    def end_video(self, source: str, sound: Sound) -> tuple[PurePosixPath | None, tuple[str, ...]]:
        return self._videos.end(source, sound)

    def close(self) -> None:
        self._videos.close()


class LabelSink:
    """Writes labels/<source>.png below `out`: class ids in vocabulary order, from 0."""

    kind = "labels"

    def __init__(
        self, out: Path, vocabulary: Vocabulary, video_labels: VideoLabels = "png"
    ) -> None:
        self._out = out
        self._palette: bytes | None = None
        if len(vocabulary) <= UNLABELLED_8BIT:
            palette = np.zeros((256, 3), np.uint8)
            palette[: len(vocabulary)] = vocabulary.colours
            self._palette = palette.tobytes()
        self._as_video = video_labels == "ffv1"
        self._videos = _Videos(out, self.kind, "ffv1")

    def render(self, frame: Frame, segmentation: Segmentation) -> Rendered:
        if frame.video is not None and self._as_video:
            return Rendered(picture=self._stored(segmentation.labels))
        if frame.video is None:
            path = output_paths(frame.source, [self.kind])[self.kind]
        else:
            path = frame_path(
                output_paths(frame.source, [self.kind], "video")["labels"], frame.index
            )
        data = label_png_bytes(self._stored(segmentation.labels), self._palette)
        write_bytes_atomic(self._out / path, data)
        return Rendered(path)

    def _stored(self, labels: LabelMap) -> NDArray[np.uint8] | LabelMap:
        """As the files hold them: 8-bit where all class ids fit."""
        if self._palette is None:
            return labels
        return np.minimum(labels, UNLABELLED_8BIT).astype(np.uint8)

    def commit(self, frame: Frame, rendered: Rendered) -> None:
        if rendered.picture is not None:
            self._videos.append(frame, rendered.picture)

    def resume_video(self, source: str, segments: int) -> bool:
        return not self._as_video or self._videos.resume(source, segments)

    def end_segment(self, source: str) -> None:
        self._videos.end_segment(source)

    def end_video(self, source: str, sound: Sound) -> tuple[PurePosixPath | None, tuple[str, ...]]:
        if self._as_video:
            return self._videos.end(source, dataclasses.replace(sound, path=None))
        return output_paths(source, [self.kind], "video")[self.kind], ()

    def close(self) -> None:
        self._videos.close()


def make_sinks(
    out: Path,
    vocabulary: Vocabulary,
    kinds: Sequence[str],
    opacity: float = DEFAULT_OPACITY,
    video_labels: VideoLabels = "png",
) -> list[Sink]:
    """The sinks for `kinds`; `areas` needs none, its rows come from the journal.

    Raises:
        UsageError: if `kinds` holds an unknown one.
    """
    check_kinds(kinds)
    sinks: list[Sink] = []
    if "overlays" in kinds:
        sinks.append(OverlaySink(out, vocabulary, opacity))
    if "labels" in kinds:
        sinks.append(LabelSink(out, vocabulary, video_labels))
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
    write_bytes_atomic(out / CLASSES_FILE, csv_bytes([("id", "name", "synonyms", "colour"), *rows]))


def write_run_record(out: Path, record: Mapping[str, object]) -> None:
    """Writes run.json: `record` as indented JSON in UTF-8, keys in their order.

    Raises:
        WriteError: if it cannot be written.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    # A file name that is not UTF-8 holds lone surrogates; "\udcff" is also their form in JSON.
    write_bytes_atomic(out / RUN_FILE, text.encode(errors="backslashreplace"))


def _fitted_for_jpeg(picture: ImageArray) -> tuple[ImageArray, str]:
    height, width = picture.shape[:2]
    if max(height, width) <= _LONGEST_JPEG_SIDE_PX:
        return picture, ""
    scale = _LONGEST_JPEG_SIDE_PX / max(height, width)
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    return small, f"overlay reduced to {size[0]} x {size[1]}, the most that a JPEG holds"
