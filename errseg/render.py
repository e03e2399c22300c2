"""Label maps as pictures: plain colours, or an overlay with outlines and names.

All pictures are (H, W, 3) uint8, RGB, 0..255.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from errseg.errors import UsageError
from errseg.name_tags import name_tags, paste, scale_of
from errseg.records import UNLABELLED, ImageArray, LabelMap, Segmentation

DEFAULT_OPACITY = 0.55

# Lengths follow the picture: shares of its scale, which is the square root of its area.
_LINE_SHARE = 0.0022
_LINE_OPACITY = 0.8
_TILE_SIDE_PX = 192
"""Most tiles hold one class and no outline, which is drawn in a tenth of the time."""


@dataclass(frozen=True)
class _Tile:
    """A rectangle of the picture; the far sides do not belong to it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def at(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def within(self, other: _Tile) -> tuple[slice, slice]:
        """Where it lies in one that holds it."""
        return (
            slice(self.top - other.top, self.bottom - other.top),
            slice(self.left - other.left, self.right - other.left),
        )


def colourise(labels: LabelMap, colours: NDArray[np.uint8]) -> ImageArray:
    """Paints every pixel in the colour of its class.

    Args:
        labels: (H, W) uint16 class ids; `UNLABELLED` and ids without a colour become black.
        colours: (T, 3) uint8, RGB, colour of class 0 .. T-1.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    return _painted(np.ascontiguousarray(labels), _table_of(colours))


def _table_of(colours: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """(65536,) uint32: the colour of every possible label, one byte to spare.

    Four bytes at a time are one lookup per pixel instead of one per channel, three times as fast.
    """
    table = np.zeros((UNLABELLED + 1, 4), np.uint8)
    table[: len(colours), :3] = colours[:UNLABELLED]
    return table.view(np.uint32).ravel()


def _painted(labels: LabelMap, table: NDArray[np.uint32]) -> ImageArray:
    painted = np.take(table, labels).view(np.uint8).reshape(*labels.shape, 4)
    return np.asarray(cv2.cvtColor(painted, cv2.COLOR_RGBA2RGB), np.uint8)


def overlay(
    image: ImageArray,
    segmentation: Segmentation,
    colours: NDArray[np.uint8],
    *,
    opacity: float = DEFAULT_OPACITY,
) -> ImageArray:
    """Blends class colours over a picture, outlines the regions and writes their names.

    Args:
        image: (H, W, 3) uint8, RGB, 0..255; it is not changed.
        segmentation: labels (H, W) of the same picture; unlabelled pixels keep the picture.
        colours: (T, 3) uint8, RGB, colour of class 0 .. T-1.
        opacity: share of the class colour in a labelled pixel, 0..1.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UsageError: if the label map has another size than the picture, or opacity is not in 0..1.
    """
    _check(image, segmentation.labels, opacity)
    labels = np.ascontiguousarray(segmentation.labels)
    image = np.ascontiguousarray(image)
    canvas = np.empty_like(image)
    table = _table_of(colours)
    line_width = max(1, round(_LINE_SHARE * scale_of(labels)))
    flats: dict[int, ImageArray] = {}
    for inner, outer in _tiles(labels.shape, _reach(line_width)):
        label = _only_label(labels[outer.at])
        if label is None:
            drawn = _outlined(image[outer.at], labels[outer.at], table, opacity, line_width)
            canvas[inner.at] = drawn[inner.within(outer)]
        elif label == UNLABELLED:
            canvas[inner.at] = image[inner.at]
        else:
            if label not in flats:
                flats[label] = _painted(np.full((_TILE_SIDE_PX,) * 2, label, np.uint16), table)
            paint = flats[label][: inner.bottom - inner.top, : inner.right - inner.left]
            cv2.addWeighted(image[inner.at], 1.0 - opacity, paint, opacity, 0.0, canvas[inner.at])
    for tag in name_tags(labels, segmentation.class_names, colours):
        paste(canvas, tag)
    return canvas


def _check(image: ImageArray, labels: LabelMap, opacity: float) -> None:
    if image.shape != (*labels.shape, 3):
        raise UsageError(
            f"the picture is {image.shape} and its label map {labels.shape}: "
            "an overlay needs a picture (H, W, 3) and labels (H, W) of the same size"
        )
    if not 0.0 <= opacity <= 1.0:
        raise UsageError(f"opacity is {opacity}: give a number from 0 to 1")


def _tiles(shape: tuple[int, ...], reach: int) -> Iterator[tuple[_Tile, _Tile]]:
    """The tiles of a picture (H, W), each also with all within `reach` of it."""
    height, width = shape
    for top in range(0, height, _TILE_SIDE_PX):
        for left in range(0, width, _TILE_SIDE_PX):
            bottom, right = min(top + _TILE_SIDE_PX, height), min(left + _TILE_SIDE_PX, width)
            outer = _Tile(
                max(0, top - reach),
                max(0, left - reach),
                min(bottom + reach, height),
                min(right + reach, width),
            )
            yield _Tile(top, left, bottom, right), outer


def _only_label(labels: LabelMap) -> int | None:
    least, greatest, _, _ = cv2.minMaxLoc(labels)
    return int(least) if least == greatest else None


def _reach(line_width: int) -> int:
    """How far from a border, in pixels, `_outlined` draws at most."""
    return 3 * line_width // 2 + 3


def _outlined(
    image: ImageArray,
    labels: LabelMap,
    table: NDArray[np.uint32],
    opacity: float,
    line_width: int,
) -> ImageArray:
    """Blends class colours over a picture and adds outlines.

    A light line runs along all borders, between bands in the full colours of its two sides.
    """
    paint = _painted(labels, table)
    labelled = (labels != UNLABELLED).view(np.uint8)
    blended = cv2.addWeighted(image, 1.0 - opacity, paint, opacity, 0.0)
    canvas = np.asarray(cv2.copyTo(image, 1 - labelled, blended), np.uint8)
    borders = _borders(labels)
    band = cv2.bitwise_and(cv2.dilate(borders, _square(3 * line_width)), labelled)
    canvas = np.asarray(cv2.copyTo(paint, band, canvas), np.uint8)
    # Blurred, the line runs smoothly where the border is a staircase.
    line = cv2.blur(cv2.dilate(borders, _square(line_width + 1)) * np.uint8(255), (3, 3))
    light = cv2.merge([line] * 3)
    cv2.multiply(light, cv2.bitwise_not(canvas), light, scale=_LINE_OPACITY / 255)
    return np.asarray(cv2.add(canvas, light, canvas), np.uint8)


def _borders(labels: LabelMap) -> NDArray[np.uint8]:
    """(H, W) uint8: 1 where the pixel to the right or below has another label, else 0."""
    borders = np.zeros(labels.shape, np.bool_)
    borders[:, :-1] = labels[:, :-1] != labels[:, 1:]
    borders[:-1] |= labels[:-1] != labels[1:]
    return borders.view(np.uint8)


def _square(side: int) -> NDArray[np.uint8]:
    return np.ones((side, side), np.uint8)
