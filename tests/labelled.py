"""Small labelled data sets, written as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)


def write_image(path: Path, image: NDArray[np.generic], mode: str | None = None) -> Path:
    """Write an array as a picture; `mode` "P" gives it a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    if mode == "P":
        picture = picture.convert("L")
        picture.putpalette([value for i in range(256) for value in (i * 37 % 256, 255 - i, i)])
    picture.save(path)
    return path


def write_folder(folder: Path, count: int, seed: int) -> Path:
    """Pictures of three coloured stripes in random order; a corner is unlabelled."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        labels = np.repeat(rng.permutation(3), 24)[:67, None].repeat(71, axis=1).astype(np.uint8)
        image = COLOURS[labels] + rng.integers(0, 30, (*labels.shape, 3), np.uint8)
        labels[:9, :9] = 255
        write_image(folder / "images" / f"{index:03}.jpg", image)
        write_image(folder / "labels" / f"{index:03}.png", labels)
    (folder / "classes.txt").write_text("brick, red wall\nlawn\nlake\n")
    return folder
