from __future__ import annotations

import csv
import errno
import io
import json
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import av
import numpy as np
import pytest
from names import AWKWARD_SOURCES
from PIL import Image

from errseg.areas import write_areas
from errseg.errors import UsageError, WriteError
from errseg.journal import EndEntry, FrameEntry
from errseg.outputs import OUTPUT_KINDS, output_paths
from errseg.records import UNLABELLED, Frame, Segmentation, VideoStream
from errseg.sinks import (
    LabelSink,
    OverlaySink,
    Sound,
    make_sinks,
    write_classes,
    write_run_record,
)
from errseg.vocabulary import Vocabulary, vocabulary_from_names

THREE = vocabulary_from_names(["sky", ["car", "automobile"], "road"])
MANY = vocabulary_from_names([f"class {number}" for number in range(300)])


def result(
    source: str, vocabulary: Vocabulary = THREE, size: tuple[int, int] = (13, 29), index: int = 0
) -> tuple[Frame, Segmentation]:
    rng = np.random.default_rng(len(source))
    labels = rng.integers(0, len(vocabulary), size).astype(np.uint16)
    labels[:2] = UNLABELLED
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    scores = rng.random(size).astype(np.float32)
    frame = Frame(source, image, index=index, time_s=index / 25)
    return frame, Segmentation(labels, scores, vocabulary.names)


def entry_of(frame: Frame, segmentation: Segmentation) -> FrameEntry:
    height, width = segmentation.labels.shape
    areas = tuple(segmentation.areas())
    return FrameEntry(frame.source, frame.index, frame.time_s, width, height, areas)


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def area_rows(out: Path) -> list[dict[str, str]]:
    text = (out / "areas.csv").read_bytes().decode(errors="surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


# Sinks


@pytest.mark.parametrize("vocabulary", [THREE, MANY], ids=["8-bit", "16-bit"])
def test_a_run_leaves_its_files_and_areas_equal_the_label_maps(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    sinks = make_sinks(tmp_path, vocabulary, OUTPUT_KINDS)
    entries = []
    for source in AWKWARD_SOURCES:
        frame, segmentation = result(source, vocabulary)
        for sink in sinks:
            rendered = sink.render(frame, segmentation)
            assert rendered.path == output_paths(source, [sink.kind])[sink.kind]
            sink.commit(frame, rendered)
        entries.append(entry_of(frame, segmentation))
    for sink in sinks:
        sink.close()
        sink.close()
    write_areas(tmp_path, entries, vocabulary.names)

    paths = [output_paths(source, OUTPUT_KINDS) for source in AWKWARD_SOURCES]
    expected = [str(path) for both in paths for path in both.values()]
    assert files_in(tmp_path) == sorted([*expected, "areas.csv"])

    rows = area_rows(tmp_path)
    assert list(dict.fromkeys(row["source"] for row in rows)) == AWKWARD_SOURCES
    for source, both in zip(AWKWARD_SOURCES, paths, strict=True):
        with Image.open(tmp_path / both["labels"]) as picture:
            labels = np.asarray(picture)
        ids, counts = np.unique(labels, return_counts=True)
        unlabelled = np.iinfo(labels.dtype).max
        histogram = {
            -1 if class_id == unlabelled else int(class_id): int(count)
            for class_id, count in zip(ids, counts, strict=True)
        }
        mine = [row for row in rows if row["source"] == source]
        assert {int(row["class_id"]): int(row["pixels"]) for row in mine} == histogram
        assert sum(float(row["fraction"]) for row in mine) == pytest.approx(1, abs=1e-4)


def test_areas_csv_to_the_letter(tmp_path: Path) -> None:
    labels = np.array([[0, 2, 2, UNLABELLED]], np.uint16)
    scores = np.array([[0.5, 0.25, 0.75, 0.1]], np.float32)
    frame = Frame("a, b.jpg", np.zeros((1, 4, 3), np.uint8), index=7, time_s=0.28)
    segmentation = Segmentation(labels, scores, THREE.names)
    write_areas(tmp_path, [entry_of(frame, segmentation)], THREE.names)
    assert (tmp_path / "areas.csv").read_bytes().decode() == (
        "source,frame,time_s,width,height,class_id,class,pixels,fraction,mean_score\n"
        '"a, b.jpg",7,0.280,4,1,0,sky,1,0.250000,0.500000\n'
        '"a, b.jpg",7,0.280,4,1,2,road,2,0.500000,0.500000\n'
        '"a, b.jpg",7,0.280,4,1,-1,unlabelled,1,0.250000,0.100000\n'
    )


def test_areas_csv_of_no_pictures_is_its_header(tmp_path: Path) -> None:
    end = EndEntry("a.mp4", None)
    write_areas(tmp_path / "new", [end], THREE.names)
    assert area_rows(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("count", "mode", "unlabelled"),
    [(1, "P", 255), (255, "P", 255), (256, "I;16", 65535), (300, "I;16", 65535)],
)
def test_label_maps_are_exact_and_8_bit_as_long_as_they_can_be(
    tmp_path: Path, count: int, mode: str, unlabelled: int
) -> None:
    vocabulary = vocabulary_from_names([f"class {number}" for number in range(count)])
    labels = np.arange(count, dtype=np.uint16)[None].repeat(2, axis=0)
    labels[1] = UNLABELLED
    frame = Frame("a.jpg", np.zeros((2, count, 3), np.uint8))
    segmentation = Segmentation(labels, np.ones((2, count), np.float32), vocabulary.names)
    LabelSink(tmp_path, vocabulary).render(frame, segmentation)
    with Image.open(tmp_path / "labels" / "a.png") as picture:
        assert picture.mode == mode
        stored = np.asarray(picture)
        colours = np.asarray(picture.convert("RGB")) if mode == "P" else None
    np.testing.assert_array_equal(stored[0], np.arange(count))
    assert (stored[1] == unlabelled).all()
    if colours is not None:
        np.testing.assert_array_equal(colours[0], vocabulary.colours)
        assert not colours[1].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (97, 3), (64, 128)])
def test_overlays_have_the_size_and_colours_of_the_picture(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    image = np.full((*size, 3), (200, 100, 20), np.uint8)
    segmentation = Segmentation(
        np.full(size, UNLABELLED, np.uint16), np.zeros(size, np.float32), THREE.names
    )
    OverlaySink(tmp_path, THREE).render(Frame("a.png", image), segmentation)
    with Image.open(tmp_path / "overlays" / "a.jpg") as picture:
        assert picture.format == "JPEG"
        stored = np.asarray(picture).astype(int)
    assert stored.shape == image.shape
    assert np.abs(stored - image).max() <= 3


def test_a_picture_too_long_for_jpeg_has_a_smaller_overlay(tmp_path: Path) -> None:
    frame, segmentation = result("long.png", size=(2, 131_000))
    rendered = OverlaySink(tmp_path, THREE).render(frame, segmentation)
    assert rendered.warning == "overlay reduced to 65500 x 1, the most that a JPEG holds"
    LabelSink(tmp_path, THREE).render(frame, segmentation)
    with Image.open(tmp_path / "overlays/long.jpg") as picture:
        assert picture.size == (65500, 1)
    with Image.open(tmp_path / "labels/long.png") as picture:
        assert picture.size == (131_000, 2)


def test_a_full_disk_leaves_only_whole_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the second picture's overlay and labels are written."""

    class SmallDisk(io.FileIO):
        full = False

        def write(self, data: Any) -> int:
            if not SmallDisk.full:
                return super().write(data)
            super().write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode, **_: SmallDisk(str(self), mode))
        sinks = make_sinks(tmp_path, THREE, OUTPUT_KINDS)
        for sink in sinks:
            sink.render(*result("first.jpg"))
        SmallDisk.full = True
        for sink in sinks:
            with pytest.raises(WriteError, match="the disk is full"):
                sink.render(*result("second.jpg"))
        with pytest.raises(WriteError, match="the disk is full"):
            write_areas(tmp_path, [entry_of(*result("first.jpg"))], THREE.names)
    names = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(names) == ["first.jpg", "first.png"]


# Videos


def video(source: str, count: int, size: tuple[int, int] = (14, 30)) -> list[Frame]:
    stream = VideoStream(Fraction(1, 100), Fraction(25))
    image = np.zeros((*size, 3), np.uint8)
    return [
        Frame(source, image, index=2 * i, time_s=0.04 * i, video=stream, pts=4 * i)
        for i in range(count)
    ]


def moving(index: int, size: tuple[int, int] = (14, 30)) -> Segmentation:
    labels = np.full(size, UNLABELLED, np.uint16)
    labels[:, : 3 * index + 1] = index % 3
    return Segmentation(labels, np.ones(size, np.float32), THREE.names)


@pytest.mark.parametrize("form", ["png", "ffv1"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_video_becomes_a_video(
    tmp_path: Path, form: Literal["png", "ffv1"], killed: bool
) -> None:
    frames = video("deep/a b.mov", 9)
    sinks = make_sinks(tmp_path, THREE, ["overlays", "labels"], video_labels=form)

    def write(first: int, last: int) -> None:
        for i in range(first, last):
            for sink in sinks:
                sink.commit(frames[i], sink.render(frames[i], moving(i)))

    write(0, 4)
    for sink in sinks:
        sink.end_segment("deep/a b.mov")
    write(4, 6)
    if killed:
        sinks = make_sinks(tmp_path, THREE, ["overlays", "labels"], video_labels=form)
        assert all(sink.resume_video("deep/a b.mov", 1) for sink in sinks)
        write(4, 6)
    write(6, 9)
    ends = {sink.kind: sink.end_video("deep/a b.mov", Sound(None)) for sink in sinks}
    for sink in sinks:
        sink.close()
    assert ends["overlays"] == (PurePosixPath("overlays/deep/a b.mp4"), ())
    labels = ends["labels"][0]
    assert labels == PurePosixPath("labels/deep/a b" + (".mkv" if form == "ffv1" else ""))
    with av.open(str(tmp_path / "overlays/deep/a b.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0.04 * i for i in range(9)])
    stored = stored_labels(tmp_path / str(labels))
    expected = [np.where(moving(i).labels == UNLABELLED, 255, moving(i).labels) for i in range(9)]
    np.testing.assert_array_equal(stored, expected)
    if form == "png":
        names = [path.name for path in sorted((tmp_path / str(labels)).iterdir())]
        assert names == [f"{2 * i:06d}.png" for i in range(9)]


def stored_labels(path: Path) -> list[np.ndarray]:  # type: ignore[type-arg]
    if path.is_dir():
        return [np.asarray(Image.open(file)) for file in sorted(path.iterdir())]
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


def test_a_video_whose_segments_are_gone_starts_anew(tmp_path: Path) -> None:
    overlays, labels = make_sinks(tmp_path, THREE, ["overlays", "labels"])
    assert not overlays.resume_video("a.mp4", 2)
    assert labels.resume_video("a.mp4", 2)  # its frames are files of their own


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="overlays, labels, areas"):
        make_sinks(tmp_path, THREE, ["label"])


# classes.csv and run.json


def test_classes_csv(tmp_path: Path) -> None:
    write_classes(tmp_path, THREE)
    with (tmp_path / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "name", "synonyms", "colour"]
    assert rows[2][:3] == ["1", "car", "car, automobile"]
    assert [row[3] for row in rows[1:]] == [
        "#{:02x}{:02x}{:02x}".format(*entry.colour) for entry in THREE.classes
    ]


def test_run_json_holds_any_file_name(tmp_path: Path) -> None:
    record = {"version": "1", "failures": [{"source": "空 \udcff\n.jpg"}], "seconds": {"all": 1.5}}
    write_run_record(tmp_path, record)
    text = (tmp_path / "run.json").read_bytes().decode("utf-8")
    assert json.loads(text) == record
    assert "空" in text
    assert text.startswith('{\n  "version": "1",\n')
    assert text.endswith("}\n")
