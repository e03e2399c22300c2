"""Frame, Batch, Segmentation: the only things that flow from sources to sinks.

A reader yields `Frame`s; after the last frame of a video comes its `EndOfVideo`; an input that
gives nothing at all is a `Failure`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNLABELLED = 65535
"""Value of a pixel that carries no class in `Segmentation.labels`."""

UNLABELLED_CLASS_ID = -1
UNLABELLED_NAME = "unlabelled"

_BLOCK_PIXELS = 1 << 18
"""Pixels counted at once: bounds memory where every pixel is a run of its own."""

ImageArray = NDArray[np.uint8]
LabelMap = NDArray[np.uint16]
ScoreMap = NDArray[np.float32]


@dataclass(frozen=True)
class VideoStream:
    """What all frames of one video have in common.

    Attributes:
        time_base: seconds per unit of `Frame.pts`.
        rate: average frames per second, as far as the file says so.
        duration_s: as the file says; None where it does not. Not to be trusted.
    """

    time_base: Fraction
    rate: Fraction | None = None
    duration_s: float | None = None


@dataclass(frozen=True)
class Frame:
    """One picture, from wherever it came.

    Attributes:
        source: POSIX path relative to the input root; names the outputs.
        image: (H, W, 3) uint8, RGB, 0..255, upright (EXIF orientation applied).
        path: the file it was read from; None where there is none (pipes, arrays).
        index: number of the frame within its source, from 0 (0 for a still picture); frames that
            sampling leaves out are counted.
        time_s: presentation time in seconds from the video's first frame (0.0 for a still picture).
        warnings: what was changed or assumed while reading, in words for the user.
        video: the video it belongs to; None for a still picture.
        pts: presentation time in units of `video.time_base`, from the video's first frame.
    """

    source: str
    image: ImageArray
    path: Path | None = None
    index: int = 0
    time_s: float = 0.0
    warnings: tuple[str, ...] = ()
    video: VideoStream | None = None
    pts: int = 0


@dataclass(frozen=True)
class EndOfVideo:
    """After the last frame of a video.

    Attributes:
        source: as `Frame.source`.
        failure: why the video gave less than it should (cut short, broken frames), in one line for
            the user; empty if it gave everything.
        warnings: what was changed or assumed, in words for the user.
    """

    source: str
    failure: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """One input that could not be processed.

    Attributes:
        source: as `Frame.source`.
        message: what went wrong and what to do, in one line.
    """

    source: str
    message: str


@dataclass(frozen=True)
class Batch:
    """Frames that go through the model together; their sizes may differ."""

    frames: tuple[Frame, ...]

    @property
    def images(self) -> list[ImageArray]:
        return [frame.image for frame in self.frames]


@dataclass(frozen=True)
class ClassArea:
    """How much of one picture one class covers.

    Attributes:
        class_id: index in the vocabulary, or `UNLABELLED_CLASS_ID`.
        pixels: number of pixels.
        fraction: pixels / all pixels of the picture, 0..1.
        mean_score: mean probability of the winning class over these pixels, 0..1.
    """

    class_id: int
    pixels: int
    fraction: float
    mean_score: float


@dataclass(frozen=True)
class Segmentation:
    """What the model says of one picture.

    Attributes:
        labels: (H, W) uint16, class id of every pixel in vocabulary order from 0,
            `UNLABELLED` where the best probability is below the threshold.
        scores: (H, W) float32, probability of the best class, 0..1 (also where unlabelled).
        class_names: names of the T classes, in vocabulary order.
    """

    labels: LabelMap
    scores: ScoreMap
    class_names: Sequence[str] = field(repr=False)

    def areas(self) -> list[ClassArea]:
        """Areas of the classes present, by ascending class id; unlabelled pixels, if any, last."""
        counts, sums = _sums_by_label(self.labels.ravel(), self.scores.ravel())
        return [
            ClassArea(
                class_id=UNLABELLED_CLASS_ID if value == UNLABELLED else int(value),
                pixels=int(counts[value]),
                fraction=float(counts[value] / self.labels.size),
                mean_score=float(sums[value] / counts[value]),
            )
            for value in np.flatnonzero(counts)
        ]

    def name_of(self, class_id: int) -> str:
        """Name of a class id as it stands in `areas()`."""
        if class_id == UNLABELLED_CLASS_ID:
            return UNLABELLED_NAME
        return self.class_names[class_id]


def _sums_by_label(
    labels: LabelMap, scores: ScoreMap
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For every label from 0: its pixels among `labels` (N,), and the sum of their `scores` (N,).

    Neighbours mostly have the same label, so runs of them are added up, and then the runs: an
    eighth of the time of doing it pixel by pixel. Always in the same order, in float64.
    """
    values = int(labels.max(initial=0)) + 1
    counts, sums = np.zeros(values, np.int64), np.zeros(values)
    for start in range(0, labels.size, _BLOCK_PIXELS):
        block = labels[start : start + _BLOCK_PIXELS]
        begins = np.append(0, np.flatnonzero(block[1:] != block[:-1]) + 1)
        lengths = np.diff(begins, append=block.size)
        totals = np.add.reduceat(scores[start : start + block.size], begins, dtype=np.float64)
        # float64 holds every whole number up to 2 ** 53
        counts += np.bincount(block[begins], lengths, values).astype(np.int64)
        sums += np.bincount(block[begins], totals, values)
    return counts, sums
