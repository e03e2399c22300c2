"""A colour for every class: given as #rrggbb, or derived from its name.

Derived colours are equal from run to run. A name hashes to a hue, a saturation and a brightness;
where that colour is too near to one of the neighbours in the list, the name is hashed again with
a counter, until it is not.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
import re
from collections.abc import Sequence

from errseg.errors import VocabularyError

RGB = tuple[int, int, int]

SATURATION = (0.5, 1.0)
"""Range of derived saturations: below it colours turn grey or white."""

BRIGHTNESS = (0.5, 1.0)
"""Range of derived brightnesses (HSV value): below it colours turn black."""

NEIGHBOURS = 20
"""How many classes before and after one in the list its colour is kept apart from."""

MIN_DISTANCE = 0.06
"""Smallest distance in Oklab between neighbours; about 0.02 is just noticeable side by side.

A larger one, or more neighbours, moves more classes off the colour of their name, so that fewer
keep it from one vocabulary to another (now about half of the names that two built-in lists share).
"""

SHORT_LIST = 32
SHORT_LIST_DISTANCE = 0.2
"""In lists up to `SHORT_LIST` classes there is room for colours that no one confuses."""

MAX_ATTEMPTS = 100
"""Colours tried for the wanted distance; if none has it, the farthest of them will do."""

_Oklab = tuple[float, float, float]


def parse_colour(code: str, where: str) -> RGB:
    """The colour written as `#rrggbb`, RGB 0..255.

    Args:
        code: the characters.
        where: source and line, for the message.

    Raises:
        VocabularyError: not of this form, or black, which marks pixels without a class.
    """
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", code):
        raise VocabularyError(
            f"{where}: {code!r} is not a colour; "
            "write # and six hex digits, as in #4682b4 (a comment needs a blank after the #)"
        )
    red, green, blue = bytes.fromhex(code[1:])
    if red == green == blue == 0:
        raise VocabularyError(
            f"{where}: the colour #000000 marks pixels without a class; "
            "give another one, such as #202020"
        )
    return red, green, blue


def assign_colours(names: Sequence[str], given: Sequence[RGB | None]) -> tuple[RGB, ...]:
    """Colours of T classes: the given ones as they are, the others derived from the names.

    Args:
        names: T class names; upper and lower case give the same colour.
        given: T colours, RGB 0..255, or None where one is to be derived.

    Returns:
        T colours, RGB 0..255. A derived colour is never black, white or grey, and differs from
        every other colour of the list, by `MIN_DISTANCE` from those of its `NEIGHBOURS` if it can.
    """
    colours = list(given)
    points = [None if colour is None else _oklab(colour) for colour in given]
    taken = {colour for colour in given if colour is not None}
    for index, name in enumerate(names):
        if colours[index] is not None:
            continue
        nearby = points[max(0, index - NEIGHBOURS) : index + NEIGHBOURS + 1]
        wanted = SHORT_LIST_DISTANCE if len(names) <= SHORT_LIST else MIN_DISTANCE
        colour = _derive(name, taken, [point for point in nearby if point is not None], wanted)
        colours[index] = colour
        points[index] = _oklab(colour)
        taken.add(colour)
    return tuple(colour for colour in colours if colour is not None)


def _derive(name: str, taken: set[RGB], nearby: Sequence[_Oklab], wanted: float) -> RGB:
    """The first free colour of the name at the wanted distance, else the farthest free one."""
    best, farthest, attempt = None, -1.0, 0
    while best is None or attempt < MAX_ATTEMPTS:
        colour = _hashed_colour(name, attempt)
        attempt += 1
        if colour in taken:
            continue
        point = _oklab(colour)
        distance = min((math.dist(point, other) for other in nearby), default=math.inf)
        if distance >= wanted:
            return colour
        if distance > farthest:
            best, farthest = colour, distance
    return best


def _hashed_colour(name: str, attempt: int) -> RGB:
    # hashlib and not hash(): Python salts the latter anew in every process.
    digest = hashlib.sha256(f"{name.casefold()}/{attempt}".encode()).digest()
    hue = int.from_bytes(digest[:2], "big") / 65536
    saturation = _within(SATURATION, digest[2])
    brightness = _within(BRIGHTNESS, digest[3])
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, brightness)
    return round(255 * red), round(255 * green), round(255 * blue)


def _within(bounds: tuple[float, float], byte: int) -> float:
    low, high = bounds
    return low + (high - low) * byte / 255


def _oklab(colour: RGB) -> _Oklab:
    """Oklab coordinates, in which straight distance goes with seen difference.

    The matrices are those of https://bottosson.github.io/posts/oklab.
    """
    red, green, blue = (_linear(channel / 255) for channel in colour)
    long = math.cbrt(0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue)
    medium = math.cbrt(0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue)
    short = math.cbrt(0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


def _linear(channel: float) -> float:
    """Light of an sRGB channel, both 0..1."""
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
