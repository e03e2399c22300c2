"""Names that files may have and programs stumble over."""

from __future__ import annotations

AWKWARD_SOURCES = [
    "plain.jpg",
    "a/b.c/two words.tif",
    "dog \N{DOG FACE}.png",
    "new\nline.png",
    "return\rhere, and a comma.png",
    'quote".png',
    "not utf-8 \udcff.png",
    "no suffix",
    "n" * 246 + ".png",
]
