"""Small clips for tests, made with PyAV."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def scene(index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: the first is grey 40, each one lighter, and a red block marks the top left."""
    height, width = size
    image = np.full((height, width, 3), min(40 + 4 * index, 220), np.uint8)
    image[: height // 4, : width // 4] = (200, 30, 30)
    return image


def make_clip(
    path: Path,
    frames: int = 12,
    size: tuple[int, int] = (48, 64),
    *,
    rate: int = 10,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    gop: int = 4,
    sound: str = "",
    turned: int = 0,
) -> Path:
    """Write a clip.

    Args:
        times: of the frames, in seconds, to the millisecond; None = even.
        gop: frames from key frame to key frame.
        sound: codec of a sound track; empty = none.
        turned: degrees that a player turns the picture clockwise (mp4 only).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.gop_size = gop
        # some codecs know no other times than those of their rate
        tick = Fraction(1, rate) if times is None else Fraction(1, 1000)
        stream.time_base = stream.codec_context.time_base = tick
        track = container.add_stream(sound, rate=44100) if sound else None
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(scene(index, size), format="rgb24")
            frame.pts = index if times is None else round(times[index] * 1000)
            frame.time_base = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None:
            _add_tone(container, track, frames / rate)
    if turned:
        _turn(path, turned)
    return path


def _add_tone(
    container: av.container.OutputContainer, track: av.AudioStream, seconds: float
) -> None:
    size = track.codec_context.frame_size or 1024
    for number in range(int(seconds * 44100 / size)):
        at = (np.arange(size) + number * size) / 44100
        tone = (np.sin(2 * np.pi * 440 * at) * 8000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = 44100, number * size
        frame.time_base = Fraction(1, 44100)
        container.mux(track.encode(frame))
    container.mux(track.encode(None))


def _turn(path: Path, degrees: int) -> None:
    """Set the display matrix in an mp4's track header (ISO 14496-12, tkhd)."""
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    one = 0x10000
    matrix = struct.pack(">9i", a * one, b * one, 0, -b * one, a * one, 0, 0, 0, 0x40000000)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4  # version 0: 40 bytes, then the matrix
    data[start + 40 : start + 76] = matrix
    path.write_bytes(data)
