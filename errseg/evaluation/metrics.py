"""Confusion matrix and the figures read off it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


class ConfusionMatrix:
    """Counts of (true class, predicted class) over any number of pictures."""

    def __init__(self, class_count: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((class_count, class_count + 1), np.int64)

    def update(self, truth: NDArray[np.int64], predicted: NDArray[np.int64]) -> None:
        """Count one picture.

        Args:
            truth: (H, W), class ids; negative = unlabelled, not counted.
            predicted: (H, W), class ids; negative = left unlabelled, counted as wrong.
        """
        classes = len(self.counts)
        known = truth >= 0
        guess = np.where(predicted[known] < 0, classes, predicted[known])
        flat = truth[known] * (classes + 1) + guess
        self.counts += np.bincount(flat, minlength=self.counts.size).reshape(self.counts.shape)


@dataclass(frozen=True)
class Metrics:
    """Figures of one data set, all 0..1; classes without a true pixel are left out (NaN)."""

    iou: NDArray[np.float64]
    mean_iou: float
    frequency_weighted_iou: float
    pixel_accuracy: float
    mean_accuracy: float


def metrics(matrix: ConfusionMatrix) -> Metrics:
    """Read the figures off a confusion matrix."""
    counts = matrix.counts.astype(np.float64)
    hits = np.diagonal(counts)
    true = counts.sum(axis=1)
    predicted = counts.sum(axis=0)[:-1]
    present = true > 0
    if not present.any():
        nan = float("nan")
        return Metrics(np.full(len(true), nan), nan, nan, nan, nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(present, hits / (true + predicted - hits), np.nan)
        accuracy = np.where(present, hits / true, np.nan)
    return Metrics(
        iou=iou,
        mean_iou=float(np.nanmean(iou)),
        frequency_weighted_iou=float(np.nansum(iou * true) / true.sum()),
        pixel_accuracy=float(hits.sum() / true.sum()),
        mean_accuracy=float(np.nanmean(accuracy)),
    )
