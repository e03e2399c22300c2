"""Names on a picture's regions: where each fits, how large, and how it is written.

Text is drawn with the font inside OpenCV 5, which covers Latin, Greek, Cyrillic, Hebrew, Arabic,
Chinese, Japanese and Korean; a name with a character it lacks (as Thai, Devanagari or emoji) is
written as its class id, "#12".
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from errseg.records import UNLABELLED, ImageArray, LabelMap

# Lengths follow the picture: shares of its scale.
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


@dataclass(frozen=True)
class _Region:
    """A connected region in the reduced label map: its (h, w) mask, 0 or 255, from (top, left)."""

    class_id: int
    area: int
    top: int
    left: int
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class Tag:
    """A name on its box: (h, w, 3) uint8 colours and (h, w, 1) float32 cover, from (top, left)."""

    top: int
    left: int
    colours: ImageArray
    cover: NDArray[np.float32]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.cover.shape[0], self.cover.shape[1]

    def overlaps(self, other: Tag) -> bool:
        (height, width), (other_height, other_width) = self.size, other.size
        return (
            self.top < other.top + other_height
            and other.top < self.top + height
            and self.left < other.left + other_width
            and other.left < self.left + width
        )


def scale_of(labels: LabelMap) -> float:
    """Pixels: what lengths drawn on a picture follow, the square root of its area."""
    return math.sqrt(labels.size)


def name_tags(labels: LabelMap, names: Sequence[str], colours: NDArray[np.uint8]) -> list[Tag]:
    """Names of the largest regions, each inside its own region; no two overlap."""
    normal = max(_SMALLEST_TEXT_PX, round(_TEXT_SHARE * scale_of(labels)))
    smallest = max(_SMALLEST_TEXT_PX, round(_SMALLEST_TEXT_SHARE * normal))
    reduced = _reduced(labels)
    zoom = np.array(labels.shape) / np.array(reduced.shape)
    named: Counter[int] = Counter()
    tags: list[Tag] = []
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
) -> Tag | None:
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
    return Tag(top, left, colours, _rounded_box(height, width))


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


def paste(canvas: ImageArray, tag: Tag) -> None:
    """Draw a tag onto a picture (H, W, 3) uint8 RGB, in place."""
    height, width = tag.size
    window = canvas[tag.top : tag.top + height, tag.left : tag.left + width]
    window[:] = np.rint(window * (1 - tag.cover) + tag.colours * tag.cover).astype(np.uint8)
