"""One picture file -> (H, W, 3) uint8 RGB, upright, with what was assumed said in words.

Pillow decodes; OpenCV takes over for TIFFs that Pillow refuses (float colour, 64-bit grey).
ICC profiles are ignored.
"""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from errseg.errors import InputError
from errseg.read_options import DEFAULT_MAX_PIXELS
from errseg.records import ImageArray

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2"}
)
"""Suffixes, in lower case, of the files taken from a folder."""

# Frequent ones first. Nothing else is tried: some of Pillow's readers start other programs (EPS).
_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "AVIF")
_TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DEEP_GREY_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
_MAX_8_BIT = 255
_MAX_16_BIT = 65535

_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_pillow_lock = threading.Lock()


def read_image(
    file: Path | BinaryIO, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[ImageArray, tuple[str, ...]]:
    """Read one picture, whatever its suffix.

    Orientation from EXIF is applied. Transparent pixels are shown on white. Of several frames or
    pages the first is taken. Grey of more than 8 bits, and TIFF colour that OpenCV reads: values
    0..255 stay as they are, values up to 65535 are divided by 257 (a 12-bit picture thus comes out
    dark), anything else (float, negative, 32-bit) is stretched from its least to its greatest
    finite value. 16-bit colour otherwise keeps its upper 8 bits.

    Calls from several threads are safe, and wait for one another.

    Args:
        file: the file; or a binary stream that can be sought in, which is left open.
        max_pixels: the most pixels (height x width) that will be decoded.

    Returns:
        image: (H, W, 3) uint8, RGB, 0..255, C-contiguous and writable.
        warnings: what was changed or assumed, in words for the user; often empty.

    Raises:
        InputError: the file is missing, empty, not a picture, damaged, truncated, or too large.
    """
    try:
        opening = _open_file(file) if isinstance(file, Path) else nullcontext(file)
        with opening as opened, _pillow_for_this_thread() as notes:
            image = _decode(opened, max_pixels, notes)
    # Pillow's readers raise nearly anything on damaged bytes: struct.error, EOFError, IndexError...
    except Exception as error:
        name = repr(os.fspath(file)) if isinstance(file, Path) else "standard input"
        raise InputError(f"Cannot read {name}: {_reason(error)}") from error
    return image, tuple(dict.fromkeys(notes))


def _reason(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError):
        return "not enough memory to decode it; make the picture smaller"
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"damaged or truncated picture ({detail}); copy or export it again"


def _open_file(path: Path) -> BinaryIO:
    try:
        status = path.stat()  # before opening: to open a named pipe waits for its writer
        if stat.S_ISREG(status.st_mode) and status.st_size > 0:
            return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        detail = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{detail}; check the name and its permissions") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError("it is a folder, expected a picture file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError("it is a device or a pipe; send it to standard input (pipe:)")
    raise InputError("empty file (0 bytes), expected a picture; copy or export it again")


@contextmanager
def _pillow_for_this_thread() -> Iterator[list[str]]:
    """Lift Pillow's own size limit, and collect what it warns of, while one picture is read.

    Both are settings of the whole process: hence the lock, and hence put back afterwards.
    """
    notes: list[str] = []
    with _pillow_lock, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        own_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield notes
        finally:
            Image.MAX_IMAGE_PIXELS = own_limit
            notes.extend(" ".join(str(warning.message).split()) for warning in caught)


def _decode(file: BinaryIO, max_pixels: int, notes: list[str]) -> ImageArray:
    opened = _open_picture(file)
    if opened is None:
        return _as_rgb(_decode_tiff_with_opencv(file, max_pixels, notes), notes)
    with opened:
        _check_size(opened.size, max_pixels)
        opened.load()
        image = _as_rgb(_upright(opened, notes), notes)
        _note_frames(opened, notes)
    return image


def _open_picture(file: BinaryIO) -> Image.Image | None:
    """The picture, its header read; None if Pillow cannot make sense of that."""
    try:
        image = Image.open(file, formats=_FORMATS)
        if not _is_misread(image):
            return image
        # Of the whole process as well: the lock is held.
        before, TiffImagePlugin.READ_LIBTIFF = TiffImagePlugin.READ_LIBTIFF, True
        try:
            return Image.open(file, formats=_FORMATS)
        finally:
            TiffImagePlugin.READ_LIBTIFF = before
    except (UnidentifiedImageError, KeyError):  # KeyError: Pillow before 11.3 knows no AVIF
        return None


def _is_misread(image: Image.Image) -> bool:
    """Whether it is a TIFF of 16-bit colour in uncompressed planes. Pillow (13.0) takes their bytes
    for 8-bit values and says nothing, unless told to leave reading to libtiff."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags = image.tag_v2
    return (
        tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
        and max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
        and tags.get(TiffImagePlugin.COMPRESSION, 1) == 1
    )


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InputError(
            f"{width} x {height} = {width * height} pixels, expected at most {max_pixels}; "
            "make the picture smaller or raise the limit (--max-pixels)"
        )
    if width < 1 or height < 1:
        raise InputError(
            f"damaged or truncated picture ({width} x {height} pixels); copy or export it again"
        )


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever it is, damaged EXIF does not cost the picture
        notes.append("EXIF data damaged, shown as stored")
        return image
    method = _TRANSPOSE_OF_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)


def _note_frames(image: Image.Image, notes: list[str]) -> None:
    # What follows the first picture of an MPO (cameras, phones) is a preview or a depth map.
    count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if count > 1:
        notes.append(f"{count} frames, only the first is used")


def _as_rgb(image: Image.Image, notes: list[str]) -> ImageArray:
    if image.mode in _DEEP_GREY_MODES:
        image = Image.fromarray(_to_8_bit(np.asarray(image), notes))
    if image.has_transparency_data:
        image = _on_white(image.convert("RGBA"), notes)
    return np.array(image.convert("RGB"))


def _on_white(image: Image.Image, notes: list[str]) -> Image.Image:
    alpha = image.getchannel("A")
    least, _ = alpha.getextrema()
    if least == _MAX_8_BIT:
        return image
    notes.append("transparent pixels shown on white")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white


def _to_8_bit(values: NDArray[Any], notes: list[str]) -> ImageArray:
    """Grey or colour of any numeric type -> the same shape in uint8, by `read_image`'s rule."""
    if np.issubdtype(values.dtype, np.integer):
        least, greatest = int(values.min()), int(values.max())
        if least >= 0 and greatest <= _MAX_8_BIT:
            return values.astype(np.uint8)
        if least >= 0 and greatest <= _MAX_16_BIT:
            notes.append("16-bit values divided by 257 to fit 8 bits")
            return (values // 257).astype(np.uint8)
    return _stretched(values, notes)


def _stretched(values: NDArray[Any], notes: list[str]) -> ImageArray:
    finite = np.isfinite(values)
    if not finite.any():
        raise InputError("no pixel holds a finite number; export the picture again")
    # In double precision: the span of a float32 picture may exceed what float32 holds.
    exact = values.astype(np.float64)
    least = float(exact.min(where=finite, initial=np.inf))
    greatest = float(exact.max(where=finite, initial=-np.inf))
    notes.append(f"values {least:g}..{greatest:g} stretched to 0..255")
    span = (greatest - least) or 1.0
    return np.rint((np.where(finite, exact, least) - least) / span * _MAX_8_BIT).astype(np.uint8)


def _decode_tiff_with_opencv(file: BinaryIO, max_pixels: int, notes: list[str]) -> Image.Image:
    """The first page of a TIFF, 8-bit and upright (OpenCV turns it), as mode L, RGB or RGBA."""
    file.seek(0)
    header = file.read(8)
    if header[:4] not in _TIFF_MAGICS:
        raise InputError(
            f"not a picture, or its beginning is damaged; expected one of {', '.join(_FORMATS)}"
        )
    is_big_tiff = 43 in (header[2], header[3])
    tags = TiffImagePlugin.ImageFileDirectory_v2(header + file.read(8 if is_big_tiff else 0))
    file.seek(tags.next)
    tags.load(file)
    width = tags.get(TiffImagePlugin.IMAGEWIDTH, 0)
    height = tags.get(TiffImagePlugin.IMAGELENGTH, 0)
    _check_size((width, height), max_pixels)

    file.seek(0)
    log_level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(
        0
    )  # or it writes each error to standard error as well; the lock is held
    try:
        decoded = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        cv2.utils.logging.setLogLevel(log_level)
    # OpenCV (5.0) takes planes for interleaved values, and says nothing.
    in_planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    if decoded is None or (in_planes and decoded.ndim == 3):
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE)
        raise InputError(f"damaged, or a rare kind of TIFF (bits {bits}); export it as PNG")
    values = _to_8_bit(decoded, notes)
    if values.ndim == 3:
        to_rgb = cv2.COLOR_BGR2RGB if values.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        values = cv2.cvtColor(values, to_rgb).astype(np.uint8, copy=False)
    return Image.fromarray(values)
