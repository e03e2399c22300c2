"""Published benchmarks in the layouts in which they are found on disk.

Those that open-vocabulary work is measured on (design section 9): the folders as the data sets
ship them, or as MaskFormer's and CAT-Seg's preparation scripts leave them
(`annotations_detectron2`: class ids from 0, the largest value = unlabelled). Always the validation
split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from errseg.datasets import LabelledFolder, Pair, find_pairs, open_folder, renamed
from errseg.errors import ConfigError
from errseg.vocabulary import Vocabulary, load_vocabulary, vocabulary_from_names

COCO_THINGS_LEFT_OUT = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Ids (from 1) that COCO's list of 182 names reserves and no picture uses; 171 remain."""

COCO_NAMES = 182


@dataclass(frozen=True)
class _Layout:
    """Where pictures and label maps are below the folder, and what the maps' values mean.

    Attributes:
        ids: class id of each value, −1 = unlabelled.
        listed: file with the names of the split; None = the folders hold nothing else.
    """

    images: str
    labels: str
    suffix: str
    ids: tuple[int, ...]
    listed: str | None = None


@dataclass(frozen=True)
class _Benchmark:
    """
    Attributes:
        classes: built-in vocabulary of the measured classes.
        layouts: tried in this order.
        background_from: vocabulary whose other classes count as one more class, "background".
    """

    classes: str
    layouts: tuple[_Layout, ...]
    background_from: str | None = None


def _from_zero(count: int) -> tuple[int, ...]:
    return tuple(range(count))


def _from_one(count: int) -> tuple[int, ...]:
    return (-1, *range(count))


def _coco_stuff_ids() -> tuple[int, ...]:
    """Values are COCO ids − 1, with gaps."""
    used = [id_ for id_ in range(1, COCO_NAMES + 1) if id_ not in COCO_THINGS_LEFT_OUT]
    place = {id_ - 1: index for index, id_ in enumerate(used)}
    # a value in a gap would be an error of the file; published readers leave it out
    return tuple(place.get(value, -1) for value in range(COCO_NAMES))


_VOC_LIST = "ImageSets/Segmentation/val.txt"
_VOC_PICTURES, _VOC_LABELS = "JPEGImages", "SegmentationClass"

BENCHMARKS = {
    "ade20k-150": _Benchmark(
        "ade20k-150",
        (
            _Layout("images/validation", "annotations/validation", ".png", _from_one(150)),
            _Layout(
                "images/validation", "annotations_detectron2/validation", ".png", _from_zero(150)
            ),
        ),
    ),
    "ade20k-847": _Benchmark(
        "ade20k-847",
        (
            _Layout(
                "images_detectron2/validation",
                "annotations_detectron2/validation",
                ".tif",
                _from_zero(847),
            ),
        ),
    ),
    "pascal-context-59": _Benchmark(
        "pascal-context-59",
        (
            _Layout(
                _VOC_PICTURES,
                "SegmentationClassContext",
                ".png",
                _from_one(59),
                "ImageSets/SegmentationContext/val.txt",
            ),
            _Layout(_VOC_PICTURES, "annotations_detectron2/pc59_val", ".png", _from_zero(59)),
        ),
    ),
    "pascal-context-459": _Benchmark(
        "pascal-context-459",
        (_Layout(_VOC_PICTURES, "annotations_detectron2/pc459_val", ".tif", _from_zero(459)),),
    ),
    "voc-20": _Benchmark(
        "voc-20", (_Layout(_VOC_PICTURES, _VOC_LABELS, ".png", _from_one(20), _VOC_LIST),)
    ),
    "voc-20b": _Benchmark(
        "voc-20",
        (_Layout(_VOC_PICTURES, _VOC_LABELS, ".png", (20, *range(20)), _VOC_LIST),),
        background_from="pascal-context-59",
    ),
    "coco-stuff-171": _Benchmark(
        "coco-stuff-171",
        (
            _Layout("images/val2017", "annotations/val2017", ".png", _coco_stuff_ids()),
            _Layout("images/val2017", "stuffthingmaps/val2017", ".png", _coco_stuff_ids()),
            _Layout("val2017", "stuffthingmaps/val2017", ".png", _coco_stuff_ids()),
            _Layout("images/val2017", "annotations_detectron2/val2017", ".png", _from_zero(171)),
        ),
    ),
}

PREFERRED = {"voc-20b": "voc-20"}
"""The same files serve both: the second is taken where none is named."""


def open_labelled(
    folder: Path, benchmark: str | None = None, classes: Vocabulary | None = None
) -> LabelledFolder:
    """Open a data set in our own layout, or a benchmark in one of its usual ones.

    Args:
        benchmark: one of `BENCHMARKS`; None finds out from what is in the folder.
        classes: other names for the classes, line by line; not for "voc-20b".

    Raises:
        ConfigError: there is no such folder or benchmark, the folder holds neither layout or
            several, or `classes` has another length than the data set.
        VocabularyError: a class list cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {str(folder)!r} to evaluate on; check the path.")
    if benchmark is not None and benchmark not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise ConfigError(f"there is no benchmark {benchmark!r}; known are {known}.")
    if benchmark is None and (folder / "classes.txt").is_file():
        return open_folder(folder, classes)
    wanted = list(BENCHMARKS) if benchmark is None else [benchmark]
    found = {
        name: held for name in wanted if (held := next(_pairs(folder, name), None)) is not None
    }
    if benchmark is None:
        for other, preferred in PREFERRED.items():
            if preferred in found:
                found.pop(other, None)
    if not found:
        asked = "a data set that errseg knows" if benchmark is None else benchmark
        raise ConfigError(
            f"{folder} does not look like {asked}: it needs images/, labels/ and classes.txt, or "
            f"one of the layouts {', '.join(_described(name) for name in wanted)}."
        )
    if len(found) > 1:
        raise ConfigError(
            f"{folder} holds several benchmarks; choose with --benchmark: {', '.join(found)}."
        )
    name, (layout, pairs) = found.popitem()
    return _opened(folder, name, layout, pairs, classes)


def _pairs(folder: Path, name: str) -> Iterator[tuple[_Layout, tuple[Pair, ...]]]:
    """The layouts of a benchmark that the folder has."""
    for layout in BENCHMARKS[name].layouts:
        listed = None
        if layout.listed is not None:
            path = folder / layout.listed
            if not path.is_file():
                continue
            listed = frozenset(path.read_text("utf-8").split())
        pairs = find_pairs(folder / layout.images, folder / layout.labels, layout.suffix, listed)
        if pairs:
            yield layout, pairs


def _described(name: str) -> str:
    layouts = (f"{layout.images} + {layout.labels}" for layout in BENCHMARKS[name].layouts)
    return f"{name} ({' or '.join(layouts)})"


def _opened(
    folder: Path,
    name: str,
    layout: _Layout,
    pairs: tuple[Pair, ...],
    classes: Vocabulary | None,
) -> LabelledFolder:
    benchmark = BENCHMARKS[name]
    own = load_vocabulary(benchmark.classes)
    if benchmark.background_from is not None:
        if classes is not None:
            raise ConfigError(f"{name} has a class list of its own; leave --classes out.")
        others = [
            group
            for group in load_vocabulary(benchmark.background_from).synonyms
            if not set(group) & {word for known in own.synonyms for word in known}
        ]
        vocabulary = vocabulary_from_names([*own.synonyms, *others])
        merged = (*range(len(own)), *[len(own)] * len(others))
        names = (*own.names, "background")
        return LabelledFolder(folder, name, pairs, vocabulary, layout.ids, merged, names)
    vocabulary = renamed(own, classes, name)
    return LabelledFolder(folder, name, pairs, vocabulary, layout.ids, measured_names=own.names)
