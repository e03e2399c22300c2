"""Segmentation.areas: counts and mean scores, against counting label by label."""

from __future__ import annotations

import numpy as np
import pytest

from errseg import records
from errseg.records import (
    UNLABELLED,
    UNLABELLED_CLASS_ID,
    UNLABELLED_NAME,
    ClassArea,
    LabelMap,
    ScoreMap,
    Segmentation,
)

NAMES = tuple(f"class {number}" for number in range(847))


def slow_areas(labels: LabelMap, scores: ScoreMap) -> list[ClassArea]:
    found = []
    for value in np.unique(labels).tolist():
        of_class = scores[labels == value].astype(np.float64)
        number = UNLABELLED_CLASS_ID if value == UNLABELLED else value
        share = len(of_class) / labels.size
        found.append(ClassArea(number, len(of_class), share, float(of_class.mean())))
    return found


def stripes(size: tuple[int, int], values: list[int]) -> LabelMap:
    """Bands of every width, also over the ends of rows."""
    runs = np.repeat(np.resize(values, 200), np.arange(200) % 37 + 1)
    return np.resize(runs, size).astype(np.uint16)


@pytest.mark.parametrize("size", [(1, 1), (1, 777), (777, 1), (67, 71), (200, 300)])
@pytest.mark.parametrize("values", [[0], [3, 0], [846, 5, UNLABELLED], [UNLABELLED]])
@pytest.mark.parametrize("block", [1, 64, 1 << 18])
def test_areas_are_what_counting_gives(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], values: list[int], block: int
) -> None:
    if block == 1 and size[0] * size[1] > 1000:
        block = 71  # a block per pixel says nothing new and takes long
    monkeypatch.setattr(records, "_BLOCK_PIXELS", block)
    labels = stripes(size, values)
    scores = np.random.default_rng(0).random(size, np.float32)
    areas = Segmentation(labels, scores, NAMES).areas()
    for area, expected in zip(areas, slow_areas(labels, scores), strict=True):
        assert (area.class_id, area.pixels) == (expected.class_id, expected.pixels)
        assert area.fraction == expected.fraction
        assert area.mean_score == pytest.approx(expected.mean_score, rel=1e-12)


def test_labels_without_neighbours_of_their_own() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 847, (150, 170), np.uint16)
    scores = generator.random(labels.shape, np.float32)
    areas = Segmentation(labels, scores, NAMES).areas()
    assert sum(area.pixels for area in areas) == labels.size
    expected = slow_areas(labels, scores)
    assert [area.pixels for area in areas] == [area.pixels for area in expected]
    np.testing.assert_allclose(
        [area.mean_score for area in areas], [area.mean_score for area in expected], rtol=1e-12
    )


def test_maps_that_are_not_in_one_piece() -> None:
    labels, scores = stripes((90, 80), [1, 2]), np.zeros((90, 80), np.float32)
    scores[labels == 2] = 1
    areas = Segmentation(labels[::2, ::3].T, scores[::2, ::3].T, NAMES).areas()
    assert [(area.class_id, area.mean_score) for area in areas] == [(1, 0.0), (2, 1.0)]
    assert sum(area.pixels for area in areas) == 45 * 27


def test_a_mean_over_many_pixels_loses_nothing() -> None:
    labels = np.zeros((1500, 1501), np.uint16)
    scores = np.full(labels.shape, 0.1, np.float32)
    (area,) = Segmentation(labels, scores, NAMES).areas()
    # float32, in which the scores are, would round this sum
    assert area.mean_score == pytest.approx(float(np.float32(0.1)), rel=1e-12)
    assert (area.pixels, area.fraction) == (labels.size, 1.0)


def test_names_of_areas() -> None:
    labels = np.array([[UNLABELLED, 2, 2]], np.uint16)
    result = Segmentation(labels, np.full((1, 3), 0.5, np.float32), ("cat", "dog", "sky"))
    areas = result.areas()
    assert [result.name_of(area.class_id) for area in areas] == ["sky", UNLABELLED_NAME]
    assert [area.fraction for area in areas] == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
