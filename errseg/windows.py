"""Large pictures: overlapping windows, each with its own K classes, blended where they overlap.

The borders of all windows cut the picture into rectangles that are covered by the same windows
throughout. In each rectangle the maps of those windows are resized to its pixels, weighted and
summed by class; a class that a window dropped counts 0 there. The label map and the scores are the
only things of the picture's size; beside them two or three rows of windows are held, and their K
maps each: memory does not grow with the number of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from errseg.model.err_seg import ClassMaps
from errseg.records import UNLABELLED, ImageArray, LabelMap, ScoreMap

AUTO_WINDOW = 2048
"""Side of the windows that are used unasked, in pixels."""

AUTO_PIXELS = 50_000_000
"""Above it a picture is cut unasked: squashed into one pass, a person in it would be a speck."""

AUTO_ASPECT = 4.0
"""So are strips: pictures longer than a window whose sides differ so much would be distorted."""

OVERLAP = 0.25
"""Of a window's side, at least."""

_PART_ELEMENTS = 1 << 21
"""Of the blended maps held at once (8 MB)."""

_PART_WIDTH = 128
"""Pixels: the narrower, the fewer positions of the maps each pixel is multiplied with."""

WindowSize = int | Literal["auto"] | None

Predict = Callable[[Sequence[ImageArray]], list[ClassMaps]]


@dataclass(frozen=True)
class Span:
    """Pixels start..stop of one side that a window covers."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def window_for(size: tuple[int, int], window: WindowSize) -> int | None:
    """The side of the windows that a picture (H, W) is cut into; None = it is not cut."""
    short, long = sorted(size)
    if window == "auto":
        is_strip = long > AUTO_WINDOW and long > AUTO_ASPECT * short
        return AUTO_WINDOW if short * long > AUTO_PIXELS or is_strip else None
    return window if window is not None and long > window else None


def plan_spans(length: int, window: int) -> list[Span]:
    """Evenly spaced spans of `window` pixels that cover a side and overlap by `OVERLAP` or more."""
    if length <= window:
        return [Span(0, length)]
    overlap = math.ceil(OVERLAP * window)
    count = math.ceil((length - overlap) / (window - overlap))
    starts = [round(i * (length - window) / (count - 1)) for i in range(count)]
    return [Span(start, start + window) for start in starts]


@torch.inference_mode()
def segment_in_windows(
    predict: Predict,
    image: ImageArray,
    window: int,
    *,
    batch_size: int = 1,
    threshold: float = 0.0,
) -> tuple[LabelMap, ScoreMap]:
    """Segment one picture window by window.

    Args:
        predict: pictures in, the probability maps of their kept classes out.
        image: (H, W, 3) uint8 RGB.
        window: side of the windows, in pixels.
        batch_size: windows that go through the model together.
        threshold: pixels whose best probability is lower are left unlabelled.

    Returns:
        (H, W) uint16 class ids and (H, W) float32 probabilities, 0..1.
    """
    height, width = image.shape[:2]
    rows, columns = _Axis(height, window), _Axis(width, window)
    labels = np.empty((height, width), np.uint16)
    scores = np.empty((height, width), np.float32)
    maps: dict[int, list[ClassMaps]] = {}
    for y, over_y in rows.intervals():
        maps = {row: found for row, found in maps.items() if row in over_y}
        for row in over_y:
            if row not in maps:
                cut = _cut(image, rows.spans[row], columns.spans)
                maps[row] = _in_batches(predict, cut, batch_size)
        for x, over_x in columns.intervals():
            covering = [(row, column, maps[row][column]) for row in over_y for column in over_x]
            for part_y, part_x in _parts(y, x, covering):
                best, ids = _blend(rows, columns, part_y, part_x, covering)
                if threshold > 0:
                    ids = torch.where(best < threshold, UNLABELLED, ids)
                here = np.s_[part_y.start : part_y.stop, part_x.start : part_x.stop]
                labels[here] = ids.cpu().numpy()
                scores[here] = best.cpu().numpy()
    return labels, scores


class _Axis:
    """The spans along one side, and how much each counts at each pixel."""

    def __init__(self, length: int, window: int) -> None:
        self.spans = plan_spans(length, window)
        self._length = length
        total = torch.zeros(length)
        weights = [self._ramp(span) for span in self.spans]
        for span, weight in zip(self.spans, weights, strict=True):
            total[span.start : span.stop] += weight
        self._weights = [
            weight / total[span.start : span.stop]
            for span, weight in zip(self.spans, weights, strict=True)
        ]

    def _ramp(self, span: Span) -> Tensor:
        """1 in the middle, falling towards borders inside the picture; never 0."""
        position = torch.arange(span.length) + 0.5
        slope = max(1.0, OVERLAP * span.length)
        weight = torch.ones(span.length)
        if span.start > 0:
            weight = torch.minimum(weight, position / slope)
        if span.stop < self._length:
            weight = torch.minimum(weight, (span.length - position) / slope)
        return weight

    def intervals(self) -> Iterator[tuple[Span, list[int]]]:
        """Runs of pixels that the same spans cover, and those spans' numbers, ascending."""
        borders = sorted({border for span in self.spans for border in (span.start, span.stop)})
        for start, stop in pairwise(borders):
            over = [i for i, s in enumerate(self.spans) if s.start <= start and stop <= s.stop]
            yield Span(start, stop), over

    def resize(self, number: int, part: Span, size: int) -> tuple[slice, Tensor]:
        """How `size` positions of a span's maps become the pixels of `part`, weighted.

        Returns:
            The positions needed, and the matrix (pixels, positions) that they are multiplied by:
            bilinear, align_corners=False, as if the whole span were resized and `part` cut out.
        """
        span = self.spans[number]
        pixel = torch.arange(part.start - span.start, part.stop - span.start)
        position = ((pixel + 0.5) * (size / span.length) - 0.5).clamp(min=0)
        first = position.long().clamp(max=size - 1)
        second = (first + 1).clamp(max=size - 1)
        start, stop = int(first[0]), int(second[-1]) + 1
        weight, share = self._weights[number][pixel], position - first
        matrix = torch.zeros(part.length, stop - start)
        row = torch.arange(part.length)
        matrix[row, first - start] = (1 - share) * weight
        matrix[row, second - start] += share * weight
        return slice(start, stop), matrix


def _cut(image: ImageArray, row: Span, columns: Sequence[Span]) -> list[ImageArray]:
    return [image[row.start : row.stop, column.start : column.stop] for column in columns]


def _in_batches(predict: Predict, images: Sequence[ImageArray], batch_size: int) -> list[ClassMaps]:
    found: list[ClassMaps] = []
    while len(found) < len(images):
        try:
            found += predict(images[len(found) : len(found) + batch_size])
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size = 1
    return found


def _parts(
    y: Span, x: Span, covering: Sequence[tuple[int, int, ClassMaps]]
) -> Iterator[tuple[Span, Span]]:
    """Parts of a rectangle, small enough for all its classes at once."""
    classes = sum(len(found.classes) for _, _, found in covering)
    for part_x in _pieces(x, _PART_WIDTH):
        for part_y in _pieces(y, max(1, _PART_ELEMENTS // (classes * part_x.length))):
            yield part_y, part_x


def _pieces(span: Span, length: int) -> Iterator[Span]:
    for start in range(span.start, span.stop, length):
        yield Span(start, min(start + length, span.stop))


def _blend(
    rows: _Axis,
    columns: _Axis,
    y: Span,
    x: Span,
    covering: Sequence[tuple[int, int, ClassMaps]],
) -> tuple[Tensor, Tensor]:
    """Best probability and its class id in a rectangle, (h, w) each."""
    patches = [_patch(rows, columns, y, x, cover) for cover in covering]
    if len(covering) == 1:
        union, total = covering[0][2].classes, patches[0]
    else:
        union = torch.unique(torch.cat([found.classes for _, _, found in covering]))
        total = patches[0].new_zeros(len(union), y.length, x.length)
        for (_, _, found), patch in zip(covering, patches, strict=True):
            total.index_add_(0, torch.searchsorted(union, found.classes), patch)
    best, index = total.max(dim=0)
    return best, union[index]


def _patch(
    rows: _Axis, columns: _Axis, y: Span, x: Span, cover: tuple[int, int, ClassMaps]
) -> Tensor:
    """What a window adds to a rectangle: its maps there, resized and weighted (K, h, w)."""
    row, column, found = cover
    maps = found.probabilities
    needed_y, down = rows.resize(row, y, maps.shape[1])
    needed_x, across = columns.resize(column, x, maps.shape[2])
    # Two products with small matrices: several times as fast as gathering pixels
    return down.to(maps) @ maps[:, needed_y, needed_x] @ across.to(maps).T
