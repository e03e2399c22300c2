"""What videos of results are encoded with, and how a picture becomes a frame of one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray

from errseg.errors import UsageError, WriteError
from errseg.files import write_error
from errseg.sound import reason

Picture = NDArray[np.uint8] | NDArray[np.uint16]

_BT709 = 1
"""ITU-T H.273: the number of BT.709 among matrices, primaries and transfer characteristics."""


@dataclass(frozen=True)
class Shape:
    """What all frames of one video have in common: size in pixels, libav's pixel format."""

    width: int
    height: int
    pixels: str


def _picture_frame(image: Picture, shape: Shape | None) -> av.VideoFrame:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise UsageError(f"expected an RGB picture (H, W, 3) uint8, got {_described(image)}")
    height, width = image.shape[:2]
    # An odd side is padded before all else: what a resumed run reads back is the even size.
    even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(even.astype(np.uint8, copy=False), format="rgb24")
    return frame.reformat(
        width=shape.width if shape else None,
        height=shape.height if shape else None,
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
    )


def _label_frame(labels: Picture, shape: Shape | None) -> av.VideoFrame:
    if labels.ndim != 2 or labels.dtype not in (np.uint8, np.uint16) or labels.size == 0:
        raise UsageError(f"expected labels (H, W) uint8 or uint16, got {_described(labels)}")
    if shape is not None and labels.shape != (shape.height, shape.width):
        rows = np.arange(shape.height) * labels.shape[0] // shape.height
        columns = np.arange(shape.width) * labels.shape[1] // shape.width
        labels = labels[np.ix_(rows, columns)]
    pixels = "gray" if labels.dtype == np.uint8 else "gray16le"
    return av.VideoFrame.from_ndarray(labels, format=pixels)


def _described(image: Picture) -> str:
    return f"{image.shape} {image.dtype}"


@dataclass(frozen=True)
class Codec:
    """How one kind of video is encoded.

    Attributes:
        encoder: its name in libav.
        options: of the encoder.
        threads: fixed, since the bytes depend on their number.
        container: format of the finished video.
        to_frame: makes a frame, of the given shape if there is one.
    """

    encoder: str
    options: Mapping[str, str]
    threads: int
    container: str
    to_frame: Callable[[Picture, Shape | None], av.VideoFrame]


CODECS = {
    # No B-frames: packets come in the order of presentation. No macroblock tree: with it, one
    # encoding in thousands had another quantiser in a frame's last block, by what memory held.
    # Without it crf 22 is what 20 was: as good and a sixth larger.
    "h264": Codec(
        "libx264",
        {"preset": "veryfast", "crf": "22", "bf": "0", "mbtree": "0"},
        2,
        "mp4",
        _picture_frame,
    ),
    # Every frame stands alone (g), so that any label map can be read by itself.
    "ffv1": Codec("ffv1", {"level": "3", "g": "1", "slicecrc": "1"}, 1, "matroska", _label_frame),
}


def check_encoder(name: str) -> None:
    try:
        av.Codec(name, "w")
    except ValueError as error:
        raise WriteError(
            f"cannot write this kind of video: this build of PyAV has no encoder {name!r}; "
            f"install the one from PyPI: pip install --force-reinstall --only-binary av av"
        ) from error


def new_stream(
    container: OutputContainer,
    codec: Codec,
    shape: Shape,
    time_base: Fraction,
    rate: Fraction | None,
) -> VideoStream:
    stream = container.add_stream(codec.encoder, rate=rate, options=dict(codec.options))
    assert isinstance(stream, VideoStream)
    stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, shape.pixels
    stream.time_base = time_base
    context = stream.codec_context
    context.time_base = time_base
    context.thread_count = codec.threads
    if codec.encoder == "libx264":
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG
    return stream


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error
    except (av.FFmpegError, ValueError) as error:
        raise WriteError(
            f"cannot write {str(path)!r} ({reason(error)}): the video encoder refuses it; choose "
            f"other outputs for this video"
        ) from error
