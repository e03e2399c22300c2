"""Pictures and label maps as the bytes of files."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from errseg.records import ImageArray

_JPEG_QUALITY = 92
_PNG_COMPRESSION = 1
"""Of 9: label maps are so even that more effort gains little and takes several times as long."""


def jpeg_bytes(picture: ImageArray) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG."""
    # Full colour resolution: coloured text and thin lines smear under 4:2:0.
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    return bytes(data)


def label_png_bytes(
    labels: NDArray[np.uint8] | NDArray[np.uint16], palette: bytes | None
) -> bytes:
    """PNG, 8-bit with `palette` (256 RGB triples), or 16-bit grey without."""
    picture = Image.fromarray(labels, None if palette is None else "P")
    if palette is not None:
        picture.putpalette(palette)
    data = io.BytesIO()
    picture.save(data, "PNG", compress_level=_PNG_COMPRESSION)
    return data.getvalue()
