"""Confusion matrix, calibration, and the figures read off them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 10
"""Of equal width, over probabilities 0..1."""

CALIBRATION_TOLERANCE = 0.15
"""Of pixels with a probability in a bin, a share this near to its lower end should be right."""


class ConfusionMatrix:
    """Counts of (true class, predicted class) over any number of pictures.

    `counts` is (C, C + 1) int64; the last column counts pixels left without a class.
    """

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


class Calibration:
    """How often the best class is right, by its probability.

    `pixels` and `right` are (CALIBRATION_BINS,) int64.
    """

    def __init__(self) -> None:
        self.pixels: NDArray[np.int64] = np.zeros(CALIBRATION_BINS, np.int64)
        self.right: NDArray[np.int64] = np.zeros(CALIBRATION_BINS, np.int64)

    def update(
        self,
        truth: NDArray[np.int64],
        predicted: NDArray[np.int64],
        probability: NDArray[np.float32],
    ) -> None:
        """Count one picture: arrays (H, W); pixels where either class is negative are left out."""
        known = (truth >= 0) & (predicted >= 0)
        self.count(probability[known], truth[known] == predicted[known])

    def count(self, probability: NDArray[np.floating], right: NDArray[np.bool_]) -> None:
        """Count pixels: (N,) each."""
        place = (probability * CALIBRATION_BINS).astype(np.int64)
        place = place.clip(0, CALIBRATION_BINS - 1)
        self.pixels += np.bincount(place, minlength=CALIBRATION_BINS)
        self.right += np.bincount(place[right], minlength=CALIBRATION_BINS)

    def as_said(self) -> NDArray[np.bool_]:
        """(CALIBRATION_BINS,): whether a bin's share of right pixels is near to its lower end."""
        said = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
        kept: NDArray[np.bool_] = (
            np.abs(self.right / np.maximum(self.pixels, 1) - said) <= CALIBRATION_TOLERANCE
        )
        return kept


@dataclass(frozen=True)
class Metrics:
    """Figures of one data set, all 0..1; classes without a true pixel are left out (NaN).

    Attributes:
        iou, accuracy: (C,) per class; accuracy is the share of its pixels found.
        mean_iou, mean_accuracy: over the classes present.
        frequency_weighted_iou: weighted by the classes' shares of the labelled pixels.
        pixel_accuracy: share of all labelled pixels.
    """

    iou: NDArray[np.float64]
    accuracy: NDArray[np.float64]
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
    nan = float("nan")
    if not present.any():
        none = np.full(len(true), nan)
        return Metrics(none, none, nan, nan, nan, nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = np.where(present, hits / (true + predicted - hits), np.nan)
        accuracy = np.where(present, hits / true, np.nan)
    return Metrics(
        iou=iou,
        accuracy=accuracy,
        mean_iou=float(np.nanmean(iou)),
        frequency_weighted_iou=float(np.nansum(iou * true) / true.sum()),
        pixel_accuracy=float(hits.sum() / true.sum()),
        mean_accuracy=float(np.nanmean(accuracy)),
    )
