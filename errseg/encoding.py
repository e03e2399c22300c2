"""Pictures and label maps as the bytes of files."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray

from errseg.records import ImageArray

_JPEG_QUALITY = 92

# Names and numbers as in the PNG specification (https://www.w3.org/TR/png-3/).
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _INDEXED = 0, 3
_FILTER_UP = 2

_COMPRESSION = 1
"""Of 9: label maps are so even that more effort gains little and takes several times as long."""

_ROWS = 64
"""Packed at once: they stay in a CPU's cache."""


def jpeg_bytes(picture: ImageArray) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG."""
    # Full colour resolution: coloured text and thin lines smear under 4:2:0.
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    return bytes(data)


def label_png_bytes(labels: NDArray[np.uint8] | NDArray[np.uint16], palette: bytes | None) -> bytes:
    """A label map as PNG.

    Args:
        labels: (H, W), uint8 with a palette, uint8 or uint16 without.
        palette: 1 to 256 RGB triples, one byte each; None for grey.

    Returns:
        The file: 8 bits a pixel with the palette, else grey of as many bits as `labels` has.
    """
    # By hand: OpenCV writes no palettes, and Pillow neither filters palette pictures nor is quick
    # with 16 bits. What is above mostly repeats, so rows of differences are nearly all zeros.
    height, width = labels.shape
    depth = 8 * labels.itemsize
    colour_type = _GREY if palette is None else _INDEXED
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header)]
    if palette is not None:
        chunks.append(_chunk(b"PLTE", palette))
    chunks += [_chunk(b"IDAT", _filtered_and_packed(labels)), _chunk(b"IEND", b"")]
    return b"".join([_PNG_SIGNATURE, *chunks])


def _filtered_and_packed(labels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """The pixels by PNG's filter "Up", its number before every row, then packed."""
    packer = zlib.compressobj(_COMPRESSION, strategy=zlib.Z_RLE)
    big_endian = labels.dtype.newbyteorder(">")
    above = np.zeros((1, labels.shape[1] * labels.itemsize), np.uint8)
    parts = []
    for start in range(0, len(labels), _ROWS):
        block = np.ascontiguousarray(labels[start : start + _ROWS], big_endian).view(np.uint8)
        rows = np.empty((len(block), 1 + block.shape[1]), np.uint8)
        rows[:, 0] = _FILTER_UP
        rows[:, 1:] = block
        rows[0, 1:] -= above[0]
        rows[1:, 1:] -= block[:-1]
        parts.append(packer.compress(rows.data))
        above = block[-1:]
    return b"".join([*parts, packer.flush()])


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(content, zlib.crc32(kind))
    return b"".join([struct.pack(">I", len(content)), kind, content, struct.pack(">I", check)])
