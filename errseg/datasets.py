"""Labelled pictures on disk: folders of pairs with a class list.

A data set is a folder with `images/NAME.jpg`, `labels/NAME.png` (class ids by line of the list
from 0; 255, or 65535 in 16-bit files, = unlabelled) and `classes.txt` (a vocabulary file).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from errseg.errors import ConfigError
from errseg.vocabulary import Vocabulary, load_vocabulary

UNLABELLED_8BIT, UNLABELLED_16BIT = 255, 65535


@dataclass(frozen=True)
class LabelledFolder:
    """A data set on disk: pairs of pictures and label maps, and their class names."""

    folder: Path
    pairs: tuple[tuple[Path, Path], ...]
    vocabulary: Vocabulary


def open_folder(folder: Path) -> LabelledFolder:
    """Find the pairs of `folder` (`images/NAME.jpg`, `labels/NAME.png`, `classes.txt`).

    Raises:
        ConfigError: a part is missing, or no picture has a label map.
    """
    classes = folder / "classes.txt"
    if not classes.is_file():
        raise ConfigError(f"{folder} holds no classes.txt; a data set needs images/, labels/ too.")
    images = sorted(path for path in (folder / "images").glob("*") if path.suffix == ".jpg")
    pairs = tuple(
        (image, label)
        for image in images
        if (label := folder / "labels" / f"{image.stem}.png").is_file()
    )
    if not pairs:
        raise ConfigError(f"{folder} holds no pair images/NAME.jpg, labels/NAME.png.")
    return LabelledFolder(folder, pairs, load_vocabulary(str(classes)))


def read_pair(pair: tuple[Path, Path]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(H, W, 3) uint8 RGB and (H, W) int64 labels, −1 where unlabelled.

    Raises:
        ConfigError: a file cannot be decoded, or the sizes differ.
    """
    image = cv2.imread(str(pair[0]), cv2.IMREAD_COLOR_RGB)
    label = cv2.imread(str(pair[1]), cv2.IMREAD_UNCHANGED)
    if image is None or label is None or label.ndim != 2:
        raise ConfigError(f"cannot decode {pair[0] if image is None else pair[1]}.")
    if image.shape[:2] != label.shape:
        raise ConfigError(f"{pair[0]} is {image.shape[:2]}, its label map {label.shape}.")
    labels = label.astype(np.int64)
    labels[label == (UNLABELLED_8BIT if label.dtype == np.uint8 else UNLABELLED_16BIT)] = -1
    return image.astype(np.uint8), labels
