"""What is read of the inputs."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_MAX_PIXELS = 500_000_000
"""Larger pictures are refused before decoding: this many take 1.5 GB as RGB."""


@dataclass(frozen=True)
class ReadOptions:
    """What is read of pictures and videos.

    Attributes:
        max_pixels: the most pixels (height x width) of a picture or frame that are decoded.
        every: of a video, every N-th frame is taken, the first one included.
        fps: of a video, at most so many frames a second are taken: the first at or after each
            multiple of 1 / fps seconds. None takes all.
        start_s, end_s: the part of a video that is taken, in seconds from its first frame; the
            frame at `end_s` is not.
    """

    max_pixels: int = DEFAULT_MAX_PIXELS
    every: int = 1
    fps: float | None = None
    start_s: float = 0.0
    end_s: float | None = None
