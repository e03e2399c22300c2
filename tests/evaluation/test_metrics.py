"""Metrics against loops over pixels."""

from __future__ import annotations

import math

import numpy as np

from errseg.evaluation.metrics import ConfusionMatrix, metrics


def test_against_loops_over_classes() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(-1, 4, (23, 31))
    guess = rng.integers(-1, 5, (23, 31))
    matrix = ConfusionMatrix(5)
    matrix.update(truth[:10], guess[:10])
    matrix.update(truth[10:], guess[10:])
    found = metrics(matrix)
    known = truth >= 0
    ious, weights, recalls = [], [], []
    for label in range(4):
        hit = (known & (truth == label) & (guess == label)).sum()
        union = (known & ((truth == label) | (guess == label))).sum()
        ious.append(hit / union)
        recalls.append(hit / (truth == label).sum())
        weights.append((truth == label).sum() / known.sum())
    np.testing.assert_allclose(found.iou[:4], ious)
    assert math.isnan(found.iou[4])
    assert math.isclose(found.mean_iou, np.mean(ious))
    assert math.isclose(found.frequency_weighted_iou, np.dot(ious, weights))
    assert math.isclose(found.mean_accuracy, np.mean(recalls))
    assert math.isclose(found.pixel_accuracy, (known & (truth == guess)).sum() / known.sum())


def test_nothing_labelled_is_not_a_number() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.full((3, 3), -1), np.zeros((3, 3), np.int64))
    assert math.isnan(metrics(matrix).mean_iou)
