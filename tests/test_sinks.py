from __future__ import annotations

import csv
import errno
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from errseg.errors import UsageError, WriteError
from errseg.outputs import OUTPUT_KINDS, output_paths
from errseg.records import UNLABELLED, Frame, Segmentation
from errseg.sinks import (
    AreaSink,
    LabelSink,
    OverlaySink,
    make_sinks,
    write_classes,
    write_run_record,
)
from errseg.vocabulary import Vocabulary, vocabulary_from_names

THREE = vocabulary_from_names(["sky", ["car", "automobile"], "road"])
MANY = vocabulary_from_names([f"class {number}" for number in range(300)])

AWKWARD_SOURCES = [
    "plain.jpg",
    "a/b.c/two words.tif",
    "dog \N{DOG FACE}.png",
    "new\nline.png",
    "return\rhere, and a comma.png",
    'quote".png',
    "not utf-8 \udcff.png",
    "no suffix",
    "n" * 246 + ".png",
]


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
    for source in AWKWARD_SOURCES:
        for sink in sinks:
            sink.write(*result(source, vocabulary))
    for sink in sinks:
        sink.close()
        sink.close()

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
    sink = AreaSink(tmp_path, THREE)
    sink.write(frame, Segmentation(labels, scores, THREE.names))
    assert not (tmp_path / "areas.csv").exists()
    sink.close()
    assert (tmp_path / "areas.csv").read_bytes().decode() == (
        "source,frame,time_s,width,height,class_id,class,pixels,fraction,mean_score\n"
        '"a, b.jpg",7,0.280,4,1,0,sky,1,0.250000,0.500000\n'
        '"a, b.jpg",7,0.280,4,1,2,road,2,0.500000,0.500000\n'
        '"a, b.jpg",7,0.280,4,1,-1,unlabelled,1,0.250000,0.100000\n'
    )


def test_areas_csv_of_no_pictures_is_its_header(tmp_path: Path) -> None:
    AreaSink(tmp_path / "new", THREE).close()
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
    LabelSink(tmp_path, vocabulary).write(frame, segmentation)
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
    OverlaySink(tmp_path, THREE).write(Frame("a.png", image), segmentation)
    with Image.open(tmp_path / "overlays" / "a.jpg") as picture:
        assert picture.format == "JPEG"
        stored = np.asarray(picture).astype(int)
    assert stored.shape == image.shape
    assert np.abs(stored - image).max() <= 3


def test_a_picture_too_long_for_jpeg_is_a_write_error(tmp_path: Path) -> None:
    frame, segmentation = result("long.png", size=(1, 65501))
    with pytest.raises(WriteError, match="65501 x 1"):
        OverlaySink(tmp_path, THREE).write(frame, segmentation)
    LabelSink(tmp_path, THREE).write(frame, segmentation)
    assert files_in(tmp_path) == ["labels/long.png"]


def test_a_full_disk_leaves_only_whole_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the second picture's overlay, labels and rows are written."""

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
            sink.write(*result("first.jpg"))
        SmallDisk.full = True
        for sink in sinks:
            with pytest.raises(WriteError, match="the disk is full"):
                sink.write(*result("second.jpg"))
        for sink in sinks:
            sink.close()
    names = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(names) == ["areas.csv", "first.jpg", "first.png"]
    rows = area_rows(tmp_path)
    assert {row["source"] for row in rows} == {"first.jpg"}
    assert sum(int(row["pixels"]) for row in rows) == 13 * 29


def test_a_folder_that_cannot_be_made_is_found_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError):
        make_sinks(tmp_path / "file" / "out", THREE, ["areas"])


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
