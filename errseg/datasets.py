"""Labelled pictures on disk: pairs of pictures and label maps, and what the labels mean.

Our own layout is a folder with `images/NAME.jpg` (or .png), `labels/NAME.png` (class ids by line of
the list from 0; 255, or 65535 in 16-bit files, = unlabelled) and `classes.txt` (a vocabulary file).
`benchmarks` knows the layouts of published sets.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from errseg.errors import ConfigError, InputError
from errseg.images import read_image
from errseg.records import ImageArray
from errseg.vocabulary import Vocabulary, load_vocabulary

UNLABELLED_16BIT = 65535
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")
_INDEX_MODES = ("P", "L", "I", "I;16", "I;16B", "1")
_NO_CLASS = -2

Pair = tuple[Path, Path]


@dataclass(frozen=True)
class LabelledFolder:
    """A data set on disk.

    Attributes:
        folder: where it is.
        name: what to call it.
        pairs: pictures and their label maps, by name.
        vocabulary: the T classes to look for.
        ids: class id of a label map's value, by value; −1 = unlabelled. The largest value of the
            file's type (255 or 65535) is unlabelled besides.
        measured_as: class id under which a predicted class counts, by predicted class; None = its
            own. Several may count as one ("background").
        measured_names: the C classes that are measured, C ≤ T.
    """

    folder: Path
    name: str
    pairs: tuple[Pair, ...]
    vocabulary: Vocabulary
    ids: tuple[int, ...]
    measured_as: tuple[int, ...] | None = None
    measured_names: tuple[str, ...] = ()


def open_folder(folder: Path, classes: Vocabulary | None = None) -> LabelledFolder:
    """Find the pairs of a folder in our own layout.

    Args:
        classes: other names for the classes, line by line; None takes `classes.txt`.

    Raises:
        ConfigError: a part is missing, no picture has a label map, or `classes` has another length.
        VocabularyError: `classes.txt` cannot be read.
    """
    listed = folder / "classes.txt"
    if not listed.is_file():
        raise ConfigError(f"{folder} holds no classes.txt; a data set needs images/, labels/ too.")
    own = load_vocabulary(str(listed))
    vocabulary = renamed(own, classes, str(listed))
    pairs = find_pairs(folder / "images", folder / "labels", ".png")
    if not pairs:
        raise ConfigError(f"{folder} holds no pair images/NAME.jpg, labels/NAME.png.")
    return LabelledFolder(
        folder,
        folder.resolve().name,
        pairs,
        vocabulary,
        tuple(range(len(own))),
        measured_names=own.names,
    )


def renamed(own: Vocabulary, classes: Vocabulary | None, name: str) -> Vocabulary:
    """A data set's classes under other names, or under their own.

    Args:
        own: the data set's classes.
        classes: other names for them, in the same order; None keeps their own.
        name: what to call the data set's list in a message.

    Raises:
        ConfigError: there is not one name for each class.
    """
    if classes is None:
        return own
    if len(classes) != len(own):
        raise ConfigError(
            f"{classes.source} has {len(classes)} classes and {name} {len(own)}; other names for "
            "the classes of a data set need a line for each of its classes."
        )
    return classes


def find_pairs(
    images: Path, labels: Path, suffix: str, names: frozenset[str] | None = None
) -> tuple[Pair, ...]:
    """The pictures of a folder that have a label map NAME + `suffix` in the other, by name.

    Args:
        names: only these; None = all.
    """
    maps = {path.stem: path for path in labels.glob(f"*{suffix}")} if labels.is_dir() else {}
    pictures = sorted(path for path in images.glob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    return tuple(
        (path, maps[path.stem])
        for path in pictures
        if path.stem in maps and (names is None or path.stem in names)
    )


def read_pair(folder: LabelledFolder, pair: Pair) -> tuple[ImageArray, NDArray[np.int64]]:
    """One picture and its label map.

    Returns:
        (H, W, 3) uint8 RGB and (H, W) int64 class ids, −1 where unlabelled.

    Raises:
        InputError: a file cannot be decoded, the sizes differ, or a value is no class.
    """
    image, _ = read_image(pair[0])
    labels = read_labels(pair[1], folder.ids)
    if image.shape[:2] != labels.shape:
        raise InputError(
            f"{pair[1]} is {labels.shape[0]}x{labels.shape[1]} (height x width), its picture "
            f"{image.shape[0]}x{image.shape[1]}; a label map must have its picture's size."
        )
    return image, labels


def read_labels(path: Path, ids: tuple[int, ...]) -> NDArray[np.int64]:
    """A label map's class ids (H, W) int64; `ids` as in `LabelledFolder`.

    Palette and 16-bit files are read as the numbers that they hold.

    Raises:
        InputError: the file cannot be decoded, has more than one channel, or holds a value that is
            no class.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual metadata: the pixels are what matters
            with Image.open(path) as file:
                mode, values = file.mode, np.asarray(file)
    except Exception as error:  # a damaged file raises whatever its bytes suggest
        raise InputError(f"cannot decode the label map {path}: {error}.") from error
    if mode not in _INDEX_MODES:
        raise InputError(
            f"{path} is a colour picture ({mode}); a label map must have one channel of class ids."
        )
    wide = mode.startswith("I")
    flat = values.astype(np.int64)
    inside = (flat >= 0) & (flat <= UNLABELLED_16BIT)
    labels = _table(ids, wide)[np.where(inside, flat, len(ids))]
    unknown = flat[labels == _NO_CLASS]
    if len(unknown):
        raise InputError(
            f"{path} holds the value {unknown[0]}, which is no class of its data set "
            f"(values 0 to {len(ids) - 1}, {UNLABELLED_16BIT if wide else 255} = unlabelled)."
        )
    return labels


@functools.lru_cache(maxsize=16)
def _table(ids: tuple[int, ...], wide: bool) -> NDArray[np.int64]:
    table = np.full(UNLABELLED_16BIT + 1, _NO_CLASS, np.int64)
    table[: len(ids)] = ids
    table[UNLABELLED_16BIT if wide else 255] = -1
    return table
