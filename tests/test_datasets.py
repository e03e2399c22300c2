"""Labelled folders and benchmarks: what is read, and what is wrong with those that cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from labelled import write_folder, write_image
from PIL import Image

from errseg.benchmarks import BENCHMARKS, open_labelled
from errseg.datasets import open_folder, read_labels, read_pair
from errseg.errors import ConfigError, InputError
from errseg.vocabulary import load_vocabulary, vocabulary_from_names

PICTURE = np.zeros((2, 3, 3), np.uint8)
TEN = tuple(range(10))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set", 3, 0)


# our own layout


def test_pairs_names_and_unlabelled_pixels(folder: Path) -> None:
    labelled = open_folder(folder)
    assert [pair[0].name for pair in labelled.pairs] == ["000.jpg", "001.jpg", "002.jpg"]
    assert labelled.name == "set"
    assert labelled.measured_names == ("brick", "lawn", "lake")
    image, labels = read_pair(labelled, labelled.pairs[0])
    assert image.shape == (67, 71, 3) and image.dtype == np.uint8
    assert (labels[:9, :9] == -1).all() and (labels[9:] >= 0).all()


def test_png_pictures_and_pictures_without_labels(folder: Path) -> None:
    write_image(folder / "images" / "a.png", PICTURE)
    write_image(folder / "labels" / "a.png", PICTURE[..., 0])
    write_image(folder / "images" / "alone.jpg", PICTURE)
    names = [pair[0].name for pair in open_folder(folder).pairs]
    assert names == ["000.jpg", "001.jpg", "002.jpg", "a.png"]


def test_other_names_for_the_classes(folder: Path) -> None:
    names = vocabulary_from_names(["wall", "grass", "water"])
    labelled = open_folder(folder, names)
    assert labelled.vocabulary is names
    assert labelled.measured_names == ("brick", "lawn", "lake")
    with pytest.raises(ConfigError, match=r"2 classes and .* 3"):
        open_folder(folder, vocabulary_from_names(["wall", "grass"]))


@pytest.mark.parametrize("missing", ["classes.txt", "images", "labels"])
def test_an_incomplete_folder_is_named(folder: Path, missing: str) -> None:
    path = folder / missing
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(ConfigError, match=str(folder)):
        open_folder(folder)


def test_damaged_pairs_are_named(folder: Path) -> None:
    labelled = open_folder(folder)
    labelled.pairs[0][0].write_bytes(b"not a picture")
    labelled.pairs[1][1].write_bytes(b"\x89PNG\r\n\x1a\nnot one either")
    for pair, damaged in zip(labelled.pairs, (0, 1), strict=False):
        with pytest.raises(InputError, match=str(pair[damaged])):
            read_pair(labelled, pair)


def test_sizes_that_differ_are_named(folder: Path) -> None:
    labelled = open_folder(folder)
    write_image(labelled.pairs[0][1], np.zeros((5, 4), np.uint8))
    with pytest.raises(InputError, match=r"5x4 .* 67x71"):
        read_pair(labelled, labelled.pairs[0])


# label maps


def test_16_bit_png_and_tiff(tmp_path: Path) -> None:
    values = np.array([[0, 300, 65535], [255, 846, 1]], np.uint16)
    for suffix in (".png", ".tif"):
        path = write_image(tmp_path / f"l{suffix}", values)
        assert read_labels(path, tuple(range(847))).tolist() == [[0, 300, -1], [255, 846, 1]]


def test_a_palette_file_is_read_as_its_numbers(tmp_path: Path) -> None:
    path = write_image(tmp_path / "l.png", np.array([[0, 9, 255]], np.uint8), "P")
    with Image.open(path) as file:
        assert file.mode == "P"
    assert read_labels(path, TEN).tolist() == [[0, 9, -1]]


def test_values_that_are_no_class_are_named(tmp_path: Path) -> None:
    path = write_image(tmp_path / "l.png", np.array([[0, 10]], np.uint8))
    with pytest.raises(InputError, match="value 10"):
        read_labels(path, TEN)


def test_a_colour_picture_is_no_label_map(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="colour"):
        read_labels(write_image(tmp_path / "l.png", PICTURE), TEN)


# benchmarks, each as small files in the published format


def voc(
    folder: Path, labels: str, values: np.ndarray, *, listed: str | None, mode: str = "P"
) -> None:  # type: ignore[type-arg]
    """A VOC folder of two pictures, of which `listed` (if any) names the first only."""
    for name in ("2007_000033", "2007_000042"):
        write_image(folder / "JPEGImages" / f"{name}.jpg", PICTURE)
        write_image(folder / labels / f"{name}.png", values, mode)
    if listed is not None:
        (folder / listed).parent.mkdir(parents=True, exist_ok=True)
        (folder / listed).write_text("2007_000033\n")


def test_ade20k_150_counts_from_one_and_leaves_zero_out(tmp_path: Path) -> None:
    values = np.array([[0, 1, 150], [2, 2, 2]], np.uint8)
    write_image(tmp_path / "images/validation/ADE_val_00000001.jpg", PICTURE)
    write_image(tmp_path / "annotations/validation/ADE_val_00000001.png", values)
    labelled = open_labelled(tmp_path)
    assert labelled.name == "ade20k-150" and len(labelled.vocabulary) == 150
    assert read_pair(labelled, labelled.pairs[0])[1].tolist() == [[-1, 0, 149], [1, 1, 1]]


def test_ade20k_150_prepared(tmp_path: Path) -> None:
    values = np.array([[255, 0, 149], [1, 1, 1]], np.uint8)
    write_image(tmp_path / "images/validation/a.jpg", PICTURE)
    write_image(tmp_path / "annotations_detectron2/validation/a.png", values)
    labelled = open_labelled(tmp_path)
    assert labelled.name == "ade20k-150"
    assert read_pair(labelled, labelled.pairs[0])[1].tolist() == [[-1, 0, 149], [1, 1, 1]]


def test_ade20k_847_is_16_bit_tiff(tmp_path: Path) -> None:
    values = np.array([[0, 846, 65535], [255, 256, 3]], np.uint16)
    write_image(tmp_path / "images_detectron2/validation/a.jpg", PICTURE)
    write_image(tmp_path / "annotations_detectron2/validation/a.tif", values)
    labelled = open_labelled(tmp_path)
    assert labelled.name == "ade20k-847" and len(labelled.vocabulary) == 847
    assert read_pair(labelled, labelled.pairs[0])[1].tolist() == [[0, 846, -1], [255, 256, 3]]


def test_pascal_context_59_and_459(tmp_path: Path) -> None:
    listed = "ImageSets/SegmentationContext/val.txt"
    voc(tmp_path, "SegmentationClassContext", np.array([[0, 1, 59]] * 2, np.uint8), listed=listed)
    labelled = open_labelled(tmp_path)
    assert labelled.name == "pascal-context-59" and len(labelled.pairs) == 1
    assert read_pair(labelled, labelled.pairs[0])[1].tolist() == [[-1, 0, 58]] * 2
    values = np.array([[0, 458, 65535]] * 2, np.uint16)
    write_image(tmp_path / "annotations_detectron2/pc459_val/2007_000042.tif", values)
    with pytest.raises(ConfigError, match="--benchmark"):
        open_labelled(tmp_path)
    labelled = open_labelled(tmp_path, "pascal-context-459")
    assert len(labelled.vocabulary) == 459
    assert read_pair(labelled, labelled.pairs[0])[1].tolist() == [[0, 458, -1]] * 2


def test_pascal_context_59_prepared(tmp_path: Path) -> None:
    voc(
        tmp_path,
        "annotations_detectron2/pc59_val",
        np.array([[255, 0, 58]] * 2, np.uint8),
        listed=None,
    )
    labelled = open_labelled(tmp_path)
    assert labelled.name == "pascal-context-59" and len(labelled.pairs) == 2
    assert read_pair(labelled, labelled.pairs[0])[1].tolist() == [[-1, 0, 58]] * 2


def test_voc_20_leaves_the_background_out(tmp_path: Path) -> None:
    values = np.array([[0, 1, 20], [255, 15, 15]], np.uint8)
    voc(tmp_path, "SegmentationClass", values, listed="ImageSets/Segmentation/val.txt")
    labelled = open_labelled(tmp_path)
    assert labelled.name == "voc-20" and len(labelled.pairs) == 1
    assert labelled.vocabulary.names[14] == "person"
    assert read_pair(labelled, labelled.pairs[0])[1].tolist() == [[-1, 0, 19], [-1, 14, 14]]


def test_voc_20b_counts_other_classes_as_background(tmp_path: Path) -> None:
    values = np.array([[0, 1, 20], [255, 15, 15]], np.uint8)
    voc(tmp_path, "SegmentationClass", values, listed="ImageSets/Segmentation/val.txt")
    labelled = open_labelled(tmp_path, "voc-20b")
    assert read_pair(labelled, labelled.pairs[0])[1].tolist() == [[20, 0, 19], [-1, 14, 14]]
    # the 59 of PASCAL-Context hold the 20: the 39 others are the background
    assert len(labelled.vocabulary) == 59
    assert set(labelled.vocabulary.names) == set(load_vocabulary("pascal-context-59").names)
    assert labelled.measured_as == (*range(20), *[20] * 39)
    assert labelled.measured_names[-1] == "background" and len(labelled.measured_names) == 21


@pytest.mark.parametrize("place", ["annotations/val2017", "stuffthingmaps/val2017"])
def test_coco_stuff_ids_have_gaps(tmp_path: Path, place: str) -> None:
    values = np.array([[0, 10, 12], [89, 91, 181]], np.uint8)
    write_image(tmp_path / "images/val2017/000000000139.jpg", PICTURE)
    path = write_image(tmp_path / place / "000000000139.png", values)
    labelled = open_labelled(tmp_path)
    assert labelled.name == "coco-stuff-171" and len(labelled.vocabulary) == 171
    labels = read_pair(labelled, labelled.pairs[0])[1]
    names = [labelled.vocabulary.names[i] for i in labels.flatten()]
    assert names[:4] == ["person", "fire hydrant", "stop sign", "toothbrush"]
    assert labels[1, 1] == 80 and labels[1, 2] == 170
    write_image(path, np.array([[255, 11, 90]] * 2, np.uint8))
    assert (read_pair(labelled, labelled.pairs[0])[1] == -1).all()


def test_every_benchmark_has_the_classes_its_ids_name() -> None:
    for name, benchmark in BENCHMARKS.items():
        count = len(load_vocabulary(benchmark.classes)) + (benchmark.background_from is not None)
        for layout in benchmark.layouts:
            assert set(layout.ids) - {-1} == set(range(count)), name


def test_what_is_no_data_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        open_labelled(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"classes.txt.*ade20k-150"):
        open_labelled(tmp_path)
    with pytest.raises(ConfigError, match="no benchmark 'voc-21'"):
        open_labelled(tmp_path, "voc-21")
    with pytest.raises(ConfigError, match="voc-20"):
        open_labelled(tmp_path, "voc-20")
