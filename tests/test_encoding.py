"""Pictures and label maps as bytes, read back by Pillow and OpenCV."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from errseg.encoding import jpeg_bytes, label_png_bytes
from errseg.records import UNLABELLED

SIZES = [(1, 1), (1, 333), (333, 1), (2, 2), (67, 71), (300, 401)]
PALETTE = bytes(np.random.default_rng(5).integers(0, 256, 768, np.uint8))

Labels = NDArray[np.uint8] | NDArray[np.uint16]


def regions(size: tuple[int, int], values: list[int], dtype: type) -> Labels:
    coarse = np.random.default_rng(0).choice(values, (5, 6)).astype(dtype)
    return np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST), dtype)


def noise(size: tuple[int, int], dtype: type) -> Labels:
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True)


def opened(data: bytes) -> Image.Image:
    Image.open(io.BytesIO(data)).verify()  # the checksums
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("size", SIZES)
def test_labels_with_a_palette(size: tuple[int, int]) -> None:
    for labels in (regions(size, [0, 1, 17, 255], np.uint8), noise(size, np.uint8)):
        picture = opened(label_png_bytes(labels, PALETTE))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "P", size[::-1])
        np.testing.assert_array_equal(np.asarray(picture), labels)
        colours = np.frombuffer(PALETTE, np.uint8).reshape(256, 3)
        np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), colours[labels])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_without_a_palette(size: tuple[int, int], dtype: type) -> None:
    largest = np.iinfo(dtype).max
    for labels in (regions(size, [0, 1, 200, largest], dtype), noise(size, dtype)):
        data = label_png_bytes(labels, None)
        np.testing.assert_array_equal(np.asarray(opened(data)), labels)
        read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        assert read is not None
        assert read.dtype == dtype
        np.testing.assert_array_equal(read, labels)


def test_labels_that_are_not_in_one_piece_stay_as_they_were() -> None:
    labels = regions((60, 80), [3, 300, UNLABELLED], np.uint16)
    before = labels.copy()
    part = labels[::2, 1::3].T
    np.testing.assert_array_equal(np.asarray(opened(label_png_bytes(part, None))), part)
    np.testing.assert_array_equal(labels, before)


def test_even_label_maps_are_small_files() -> None:
    labels = regions((480, 640), [1, 2, 3], np.uint16)
    pillow = io.BytesIO()
    Image.fromarray(labels).save(pillow, "PNG", compress_level=1)
    assert len(label_png_bytes(labels, None)) < len(pillow.getvalue())
    assert label_png_bytes(labels, None) == label_png_bytes(labels.copy(), None)


@pytest.mark.parametrize("size", SIZES)
def test_jpeg_keeps_colours_in_order_and_thin_coloured_lines(size: tuple[int, int]) -> None:
    picture = np.zeros((*size, 3), np.uint8)
    picture[:] = (200, 30, 60)
    picture[:, ::16] = (30, 60, 200)  # a line one pixel wide
    read = opened(jpeg_bytes(picture))
    assert (read.format, read.mode, read.size) == ("JPEG", "RGB", size[::-1])
    assert np.abs(np.asarray(read).astype(int) - picture).mean() < 8
