"""Metrics against loops over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from errseg.evaluation.metrics import Calibration, ConfusionMatrix, metrics


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


@pytest.mark.parametrize("classes", [2, 7, 150])
def test_against_torchmetrics(classes: int) -> None:
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    rng = np.random.default_rng(classes)
    truth = rng.integers(-1, classes, (3, 61, 83))
    # mostly right, so that classes differ; every class is present, as torchmetrics assumes
    guess = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, classes, truth.shape))
    guess[truth < 0] = 0
    matrix = ConfusionMatrix(classes)
    for picture in range(3):
        matrix.update(truth[picture], guess[picture])
    found = metrics(matrix)
    theirs = (torch.from_numpy(guess), torch.from_numpy(truth))

    def jaccard(average: str) -> np.ndarray:  # type: ignore[type-arg]
        return MulticlassJaccardIndex(classes, average, ignore_index=-1)(*theirs).numpy()

    def accuracy(average: str) -> np.ndarray:  # type: ignore[type-arg]
        return MulticlassAccuracy(classes, average=average, ignore_index=-1)(*theirs).numpy()

    np.testing.assert_allclose(found.iou, jaccard("none"), rtol=1e-5)
    np.testing.assert_allclose(found.mean_iou, jaccard("macro"), rtol=1e-5)
    np.testing.assert_allclose(found.frequency_weighted_iou, jaccard("weighted"), rtol=1e-5)
    np.testing.assert_allclose(found.accuracy, accuracy("none"), rtol=1e-5)
    np.testing.assert_allclose(found.mean_accuracy, accuracy("macro"), rtol=1e-5)
    np.testing.assert_allclose(found.pixel_accuracy, accuracy("micro"), rtol=1e-5)


def test_calibration_counts_by_probability() -> None:
    calibration = Calibration()
    truth = np.array([[0, 0, 1, 1, -1]])
    guess = np.array([[0, 1, 1, -1, 0]])
    calibration.update(truth, guess, np.array([[0.05, 0.95, 1.0, 0.5, 0.5]], np.float32))
    assert calibration.pixels.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert calibration.right.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
