"""Label maps as pictures: plain colours, or an overlay with outlines and names.

All pictures are (H, W, 3) uint8, RGB, 0..255. Text is drawn with the font inside OpenCV 5, which
covers Latin, Greek, Cyrillic, Hebrew, Arabic, Chinese, Japanese and Korean; a name with a character
it lacks (as Thai, Devanagari or emoji) is written as its class id, "#12".
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from errseg.errors import UsageError
from errseg.records import UNLABELLED, ImageArray, LabelMap, Segmentation

DEFAULT_OPACITY = 0.55

# Lengths follow the picture: shares of its scale, which is the square root of its area.
_LINE_SHARE = 0.0022
_LINE_OPACITY = 0.8
_TEXT_SHARE = 0.030
_SMALLEST_TEXT_PX = 11
_SMALLEST_TEXT_SHARE = 0.6
"""Of the normal size: how far a name shrinks to fit into a narrow region."""

_SMALLEST_NAMED_SHARE = 0.003
"""Of the picture's area: regions below it carry no name."""

_MAX_NAMES = 24
_MAX_NAMES_PER_CLASS = 3
_MAX_NAME_CHARACTERS = 28
_REGION_MAP_SIDE_PX = 512
"""Regions are searched on a label map reduced to this side: a name needs no finer place."""

_FONT_WEIGHT = 600

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


@dataclass(frozen=True)
class _Region:
    """A connected region in the reduced label map: its (h, w) mask, 0 or 255, from (top, left)."""

    class_id: int
    area: int
    top: int
    left: int
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class _Tag:
    """A name on its box: (h, w, 3) uint8 colours and (h, w, 1) float32 cover, from (top, left)."""

    top: int
    left: int
    colours: ImageArray
    cover: NDArray[np.float32]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.cover.shape[0], self.cover.shape[1]

    def overlaps(self, other: _Tag) -> bool:
        (height, width), (other_height, other_width) = self.size, other.size
        return (
            self.top < other.top + other_height
            and other.top < self.top + height
            and self.left < other.left + other_width
            and other.left < self.left + width
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
    line_width = max(1, round(_LINE_SHARE * _scale_of(labels)))
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
    for tag in _name_tags(labels, segmentation.class_names, colours):
        _paste(canvas, tag)
    return canvas


def _check(image: ImageArray, labels: LabelMap, opacity: float) -> None:
    if image.shape != (*labels.shape, 3):
        raise UsageError(
            f"the picture is {image.shape} and its label map {labels.shape}: "
            "an overlay needs a picture (H, W, 3) and labels (H, W) of the same size"
        )
    if not 0.0 <= opacity <= 1.0:
        raise UsageError(f"opacity is {opacity}: give a number from 0 to 1")


def _scale_of(labels: LabelMap) -> float:
    return math.sqrt(labels.size)


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


def _name_tags(labels: LabelMap, names: Sequence[str], colours: NDArray[np.uint8]) -> list[_Tag]:
    """Names of the largest regions, each inside its own region; no two overlap."""
    normal = max(_SMALLEST_TEXT_PX, round(_TEXT_SHARE * _scale_of(labels)))
    smallest = max(_SMALLEST_TEXT_PX, round(_SMALLEST_TEXT_SHARE * normal))
    reduced = _reduced(labels)
    zoom = np.array(labels.shape) / np.array(reduced.shape)
    named: Counter[int] = Counter()
    tags: list[_Tag] = []
    for region in _largest_regions(reduced):
        if len(tags) == _MAX_NAMES:
            break
        if named[region.class_id] == _MAX_NAMES_PER_CLASS:
            continue
        text = _written_name(names[region.class_id], region.class_id)
        height, width = _box_size(text, normal)
        centre, room = _roomiest_place(region, (width / zoom[1]) / (height / zoom[0]))
        size = min(normal, int(normal * room * zoom[0] / height))
        if size < smallest:
            continue
        tag = _tag_at(centre * zoom, text, size, colours[region.class_id], labels.shape)
        if tag is not None and not any(tag.overlaps(other) for other in tags):
            tags.append(tag)
            named[region.class_id] += 1
    return tags


def _reduced(labels: LabelMap) -> LabelMap:
    factor = min(1.0, _REGION_MAP_SIDE_PX / max(labels.shape))
    height, width = (max(1, round(side * factor)) for side in labels.shape)
    return np.asarray(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST))


def _largest_regions(labels: LabelMap) -> list[_Region]:
    """Connected regions that are large enough for a name, largest first."""
    smallest = max(1, math.ceil(_SMALLEST_NAMED_SHARE * labels.size))
    counts = np.bincount(labels.ravel(), minlength=UNLABELLED + 1)[:UNLABELLED]
    regions = []
    for class_id in np.flatnonzero(counts >= smallest).tolist():
        mask = (labels == class_id).view(np.uint8)
        left, top, width, height = cv2.boundingRect(mask)
        mask = mask[top : top + height, left : left + width]
        # Quicker in two steps than with OpenCV's statistics of every tiny component.
        _, components = cv2.connectedComponents(mask, connectivity=4)
        areas = np.bincount(components.ravel())
        for number in (1 + np.flatnonzero(areas[1:] >= smallest)).tolist():
            region = _region(class_id, int(areas[number]), components == number)
            regions.append(replace(region, top=top + region.top, left=left + region.left))
    return sorted(regions, key=lambda region: region.area, reverse=True)


def _region(class_id: int, area: int, mask: NDArray[np.bool_]) -> _Region:
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    window = mask[top : top + height, left : left + width]
    return _Region(class_id, area, top, left, window * np.uint8(255))


def _roomiest_place(region: _Region, aspect: float) -> tuple[NDArray[np.float64], float]:
    """Centre (y, x) and height of the largest box of `aspect` (width / height) in a region.

    Narrowed by `aspect`, the box becomes a square, and the largest square is the maximum of the
    chessboard distance to the outside.
    """
    height, width = region.mask.shape
    narrowed = (max(1, round(width / aspect)), height)
    squeezed = cv2.resize(region.mask, narrowed, interpolation=cv2.INTER_AREA)
    inside = cv2.copyMakeBorder(
        (squeezed == 255).view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0
    )
    distance = cv2.distanceTransform(inside, cv2.DIST_C, 3)[1:-1, 1:-1]
    # Wide regions hold many such boxes: take the one in their middle.
    places = np.argwhere(distance >= 0.9 * distance.max())
    middle = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()]
    y, x = (middle + 0.5) * (1.0, width / narrowed[0])
    return np.array([region.top + y, region.left + x]), 2.0 * float(distance.max()) - 1.0


def _written_name(name: str, class_id: int) -> str:
    text = unicodedata.normalize("NFC", name)
    if not all(map(_has_glyph, text)):
        return f"#{class_id}"
    if len(text) > _MAX_NAME_CHARACTERS:
        return text[: _MAX_NAME_CHARACTERS - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return text


@cache
def _has_glyph(character: str) -> bool:
    """OpenCV draws '?' for what its font lacks, and crashes on lone surrogates."""
    if character == "?" or not character.isprintable():
        return character == "?"
    return not np.array_equal(_glyph(character), _glyph("?"))


def _glyph(character: str) -> NDArray[np.uint8]:
    return _text_cover(character, 20, (40, 60), (10, 30))


@cache
def _font() -> cv2.FontFace:
    return cv2.FontFace("sans")


def _text_cover(
    text: str, size: int, shape: tuple[int, int], origin: tuple[int, int]
) -> NDArray[np.uint8]:
    """(h, w) uint8 of `shape`: text of `size` pixels, its baseline from `origin` (x, y)."""
    cover = np.zeros(shape, np.uint8)
    cv2.putText(cover, text, origin, 255, _font(), size, _FONT_WEIGHT)
    return cover


def _box_size(text: str, size: int) -> tuple[int, int]:
    """(height, width) of the box that `_tag_at` draws around a text of `size` pixels."""
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), _font(), size, _FONT_WEIGHT)
    return round(1.4 * size), width + 2 * round(0.4 * size)


def _tag_at(
    centre: NDArray[np.float64],
    text: str,
    size: int,
    colour: NDArray[np.uint8],
    picture: tuple[int, ...],
) -> _Tag | None:
    """The tag around `centre` (y, x), moved inside the picture (H, W); None if it is too large."""
    height, width = _box_size(text, size)
    if height > picture[0] or width > picture[1]:
        return None
    top = min(max(0, round(centre[0] - height / 2)), picture[0] - height)
    left = min(max(0, round(centre[1] - width / 2)), picture[1] - width)
    baseline = (round(0.4 * size), round(1.06 * size))
    cover = cv2.merge([_text_cover(text, size, (height, width), baseline)] * 3)
    ink = np.arange(256, dtype=np.float32)[:, None] / 255
    shades = np.rint(colour * (1 - ink) + _ink_on(colour) * ink).astype(np.uint8)
    colours = np.asarray(cv2.LUT(cover, shades[None]), np.uint8)
    return _Tag(top, left, colours, _rounded_box(height, width))


def _ink_on(colour: NDArray[np.uint8]) -> float:
    """Black or white, whichever stands out more on `colour` (3,) (ITU-R BT.601 luma)."""
    luma = float(np.dot(colour, (0.299, 0.587, 0.114)))
    return 0.0 if luma > 130 else 255.0


def _rounded_box(height: int, width: int) -> NDArray[np.float32]:
    """(h, w, 1) float32, 0..1: a box with round corners, smooth at the rim."""
    radius = 0.28 * height
    y = np.abs(np.arange(height) - (height - 1) / 2) - (height / 2 - radius)
    x = np.abs(np.arange(width) - (width - 1) / 2) - (width / 2 - radius)
    outside = np.hypot(np.maximum(y, 0)[:, None], np.maximum(x, 0)[None, :])
    cover = np.clip(radius + 0.5 - outside, 0.0, 1.0)
    return np.asarray(cover[..., None], np.float32)


def _paste(canvas: ImageArray, tag: _Tag) -> None:
    height, width = tag.size
    window = canvas[tag.top : tag.top + height, tag.left : tag.left + width]
    window[:] = np.rint(window * (1 - tag.cover) + tag.colours * tag.cover).astype(np.uint8)
