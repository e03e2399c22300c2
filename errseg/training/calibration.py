"""Platt scaling: probabilities that mean what they say, with the same labels.

The logits of a trained model are scaled and shifted by two numbers, the same for all classes, so
that among pixels with probability p a share p is right (Platt 1999; Guo et al. 2017). Both go into
the decoder's last 1×1 conv: the model stays what it was, and so does the order of the classes.

Sets differ in how sure a model may be: what is likeliest over all may be right for none of them.
So scales and shifts near the likeliest are tried, and those are taken by which most pixels, set by
set, are about as often right as they say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from errseg.datasets import LabelledFolder, read_pair
from errseg.evaluation.folder import chosen_pairs, segmenter_of
from errseg.evaluation.metrics import Calibration
from errseg.model.err_seg import ErrSeg

PIXELS_PER_PICTURE = 4000
LARGEST_LOGIT = 12.0
"""Beyond it a float32 probability is 0 or 1."""

_SCALES = np.linspace(0.5, 1.5, 21)
_SHIFTS = np.linspace(-1.0, 1.0, 21)
"""What is tried around the likeliest pair: factors, and what is added."""

_NEWTON_STEPS = 30
_RIDGE = 1e-6


def calibrate(
    model: ErrSeg, folders: Sequence[LabelledFolder], pictures: int
) -> tuple[float, float]:
    """Scale and shift the model's logits, in place.

    Args:
        folders: labelled sets, which count alike; not those that the model was trained on.
        pictures: evenly spaced ones of each.

    Returns:
        The scale and the shift; 1 and 0, and the model as it was, where higher logits are not
        more often right.
    """
    samples = [_samples(model, folder, pictures) for folder in folders]
    logits = np.concatenate([logit for logit, _ in samples])
    right = np.concatenate([hits for _, hits in samples])
    weights = np.concatenate([np.full(len(logit), 1 / len(logit)) for logit, _ in samples])
    likeliest = fit_logistic(logits, right, weights)
    if likeliest[0] <= 0:
        return 1.0, 0.0
    scale, shift = best_near(samples, likeliest)
    head = model.decoder.head
    assert head.bias is not None
    with torch.no_grad():
        head.weight.mul_(scale)
        head.bias.mul_(scale).add_(shift)
    return scale, shift


def _samples(
    model: ErrSeg, folder: LabelledFolder, pictures: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Best class's logit, and whether it is right, of some labelled pixels."""
    rng = np.random.default_rng(0)
    segmenter = segmenter_of(model, folder)
    logits, right = [], []
    for pair in chosen_pairs(folder, pictures):
        image, truth = read_pair(folder, pair)
        found = segmenter(image)
        known = np.flatnonzero(truth.flatten() >= 0)
        known = rng.choice(known, min(len(known), PIXELS_PER_PICTURE), replace=False)
        probability = found.scores.flatten()[known].astype(np.float64)
        with np.errstate(divide="ignore"):
            logit = np.log(probability) - np.log1p(-probability)
        logits.append(logit.clip(-LARGEST_LOGIT, LARGEST_LOGIT))
        right.append(found.labels.flatten()[known] == truth.flatten()[known])
    return np.concatenate(logits), np.concatenate(right)


def best_near(
    samples: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]],
    likeliest: tuple[float, float],
) -> tuple[float, float]:
    """The scale and shift by which most pixels are as often right as they say, to a hundredth.

    Args:
        samples: per set the logits and whether they are right, (N,) each; sets count alike.
        likeliest: where to look; of several that are as good, the nearest to it is taken.
    """
    tried = [(likeliest[0] * float(a), likeliest[1] + float(b)) for a in _SCALES for b in _SHIFTS]
    far = [abs(a - 1) + abs(b) for a in _SCALES for b in _SHIFTS]

    def worth(index: int) -> tuple[float, float]:
        shares = [share_as_said(*sample, *tried[index]) for sample in samples]
        return round(float(np.mean(shares)), 2), -far[index]

    return tried[max(range(len(tried)), key=worth)]


def share_as_said(
    logits: NDArray[np.float64], right: NDArray[np.bool_], scale: float, shift: float
) -> float:
    """The share of pixels in tenths of probability that are right about as often as they say."""
    calibration = Calibration()
    calibration.count(1 / (1 + np.exp(-(scale * logits + shift))), right)
    return float(calibration.pixels[calibration.as_said()].sum() / len(logits))


def fit_logistic(
    x: NDArray[np.float64], y: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[float, float]:
    """Scale a and shift b of the likeliest P(y) = sigmoid(a x + b), by Newton's method.

    Args:
        x, y, weights: (N,).
    """
    weights = weights / weights.sum()
    design = np.stack([x, np.ones_like(x)], axis=1)
    found = np.array([1.0, 0.0])
    for _ in range(_NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-design @ found))
        gradient = design.T @ (weights * (probability - y))
        curvature = weights * probability * (1 - probability)
        hessian = design.T @ (design * curvature[:, None]) + _RIDGE * np.eye(2)
        found = found - np.linalg.solve(hessian, gradient)
    return float(found[0]), float(found[1])
