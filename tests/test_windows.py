"""Windows against a slow and obvious version of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from errseg.errors import ConfigError
from errseg.model.err_seg import ClassMaps
from errseg.records import UNLABELLED, ImageArray
from errseg.segmenter import Segmenter
from errseg.windows import OVERLAP, plan_spans, segment_in_windows, window_for

CLASS_COUNT = 9


def seeded(images: Sequence[ImageArray]) -> list[ClassMaps]:
    """4 of 9 classes with random 5 x 7 maps, the same for the same pixels."""
    found = []
    for image in images:
        draw = torch.Generator().manual_seed(int(image.astype(np.int64).sum()))
        classes = torch.randperm(CLASS_COUNT, generator=draw)[:4].sort().values
        found.append(ClassMaps(torch.rand(4, 5, 7, generator=draw), classes))
    return found


def picture(size: tuple[int, int], seed: int = 0) -> ImageArray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def slow(image: ImageArray, window: int) -> NDArray[np.float64]:
    """(T, H, W): every window resized as a whole, weighted pixel by pixel, and added up."""
    height, width = image.shape[:2]
    total = np.zeros((CLASS_COUNT, height, width))
    weights = np.zeros((height, width))

    def ramp(position: int, start: int, stop: int, length: int) -> float:
        slope = max(1.0, OVERLAP * (stop - start))
        values = [1.0]
        if start > 0:
            values.append((position - start + 0.5) / slope)
        if stop < length:
            values.append((stop - position - 0.5) / slope)
        return min(values)

    for row in plan_spans(height, window):
        for column in plan_spans(width, window):
            here = np.s_[row.start : row.stop, column.start : column.stop]
            (maps,) = seeded([image[here]])
            size = (row.length, column.length)
            resized = F.interpolate(maps.probabilities[None], size=size, mode="bilinear")[0]
            down = [ramp(y, row.start, row.stop, height) for y in range(row.start, row.stop)]
            over = [ramp(x, column.start, column.stop, width) for x in range(*_pair(column))]
            weight = np.outer(down, over)
            weights[here] += weight
            for number, class_id in enumerate(maps.classes.tolist()):
                total[(class_id, *here)] += resized[number].numpy() * weight
    result: NDArray[np.float64] = total / weights
    return result


def _pair(span: object) -> tuple[int, int]:
    return span.start, span.stop  # type: ignore[attr-defined]


SIZES = [(64, 64), (65, 200), (131, 67), (300, 64), (1, 1), (1, 500), (113, 176)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_are_what_they_are_slowly(size: tuple[int, int], batch_size: int) -> None:
    image = picture(size)
    labels, scores = segment_in_windows(seeded, image, 64, batch_size=batch_size)
    assert labels.shape == scores.shape == size
    assert (labels.dtype, scores.dtype) == (np.uint16, np.float32)
    expected = slow(image, 64)
    np.testing.assert_allclose(scores, expected.max(axis=0), atol=1e-5)
    found = np.take_along_axis(expected, labels[None].astype(np.int64), axis=0)[0]
    np.testing.assert_allclose(found, expected.max(axis=0), atol=1e-5)


def test_small_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture((150, 170))
    whole = segment_in_windows(seeded, image, 64)
    monkeypatch.setattr("errseg.windows._PART_ELEMENTS", 1000)
    parts = segment_in_windows(seeded, image, 64)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-6)


def test_below_the_threshold_pixels_are_unlabelled() -> None:
    labels, scores = segment_in_windows(seeded, picture((100, 90)), 64, threshold=0.8)
    assert ((labels == UNLABELLED) == (scores < np.float32(0.8))).all()
    assert 0 < (labels == UNLABELLED).mean() < 1


@pytest.mark.parametrize("length", [1, 63, 64, 65, 100, 112, 113, 1000])
def test_spans_cover_and_overlap(length: int) -> None:
    spans = plan_spans(length, 64)
    assert (spans[0].start, spans[-1].stop) == (0, length)
    assert {span.length for span in spans} == {min(64, length)}
    for one, other in pairwise(spans):
        assert one.stop - other.start >= OVERLAP * 64 - 1
    assert len(spans) <= max(1, length // 48 + 1)


@pytest.mark.parametrize(
    ("size", "window", "side"),
    [
        ((100, 100), None, None),
        ((100, 100), 100, None),
        ((100, 101), 100, 100),
        ((3000, 4000), "auto", None),
        ((7000, 8000), "auto", 2048),
        ((1, 5000), "auto", 2048),
        ((100, 2000), "auto", None),
        ((10_000, 9), None, None),
    ],
)
def test_which_pictures_are_cut(size: tuple[int, int], window: object, side: int | None) -> None:
    assert window_for(size, window) == side  # type: ignore[arg-type]


def test_only_windows_are_ever_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a long picture, no more than three rows of windows at a time."""
    alive: list[object] = []

    class Watched(torch.Tensor):
        pass

    def counting(images: Sequence[ImageArray]) -> list[ClassMaps]:
        import gc
        import weakref

        gc.collect()
        alive[:] = [reference for reference in alive if reference() is not None]  # type: ignore[operator]
        assert len(alive) <= 3 * 2
        (maps,) = seeded(images)
        alive.append(weakref.ref(maps.probabilities))
        return [maps]

    segment_in_windows(counting, picture((700, 100)), 64)


@pytest.fixture(scope="module")
def segmenter(tiny_weights: Path) -> Segmenter:
    return Segmenter(weights=tiny_weights, classes=["sky", "sea", "sand", "rock"], device="cpu")


def test_a_batch_of_both_kinds(segmenter: Segmenter) -> None:
    small, large = picture((60, 70)), picture((200, 90), 1)
    segmenter.window = 100
    alone = [segmenter(large), segmenter(small)]
    together = segmenter([large, small, large])
    for one, other in zip([*alone, alone[0]], together, strict=True):
        assert np.mean(one.labels == other.labels) > 0.99
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    segmenter.window = None
    assert np.abs(segmenter(large).scores - alone[0].scores).max() > 1e-4
    np.testing.assert_array_equal(segmenter(small).labels, alone[1].labels)


def test_windows_that_are_too_small_are_refused(tiny_weights: Path) -> None:
    with pytest.raises(ConfigError, match="window is 63"):
        Segmenter(weights=tiny_weights, classes=["a", "b"], window=63)
