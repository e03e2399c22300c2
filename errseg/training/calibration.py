"""Probabilities that mean what they say, with the same labels.

Three numbers of the model's configuration, the same for all classes. The logits are scaled and
shifted (Platt 1999) until their sigmoid tells the class that a pixel shows from those that it does
not. How much the classes compete is chosen so that of the pixels with probability p of their best
class a share p is right (Guo et al. 2017). Weights and logits stay what they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from errseg.config import ModelConfig
from errseg.datasets import LabelledFolder, read_pair
from errseg.evaluation.folder import chosen_pairs, segmenter_of
from errseg.evaluation.metrics import Calibration
from errseg.inference import preprocess, probabilities_of
from errseg.model.err_seg import ErrSeg
from errseg.training.augmentation import resized_labels

POSITIONS_PER_PICTURE = 2000
COMPETITIONS = tuple(step / 20 for step in range(2, 81))
"""What is tried."""

LEAST_SCALE = 0.01
"""With less, the logits say nothing of what is shown, or the fit had but one kind to go by."""

_NEWTON_STEPS = 30
_RIDGE = 1e-6

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """What a model says of N positions of a set's pictures, and what is true there.

    Attributes:
        logits: (N, K), of the kept classes; −inf fills up where fewer are kept.
        true: (N, K), which of them is the true class; none where that was not kept.
    """

    logits: Floats
    true: NDArray[np.bool_]

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,), whether the best of them is right."""
        found: NDArray[np.bool_] = self.true[np.arange(len(self.true)), self.logits.argmax(axis=1)]
        return found


def calibrate(model: ErrSeg, folders: Sequence[LabelledFolder], pictures: int) -> None:
    """Choose `logit_scale`, `logit_shift` and `competition` of the model's configuration.

    They stay what they are where higher logits are not more often those of classes shown.

    Args:
        folders: labelled sets, which count alike; not those that the model was trained on.
        pictures: evenly spaced ones of each.

    Raises:
        InputError: a picture or a label map cannot be read.
    """
    samples = [take_sample(model, folder, pictures) for folder in folders]
    samples = [sample for sample in samples if len(sample.true)]
    scale, shift = fit_presence(samples) if samples else (0.0, 0.0)
    if scale < LEAST_SCALE:
        return
    scaled = dataclasses.replace(model.config, logit_scale=scale, logit_shift=shift)
    competition = fit_competition(samples, scaled)
    model.config = dataclasses.replace(scaled, competition=competition)


@torch.inference_mode()
def take_sample(model: ErrSeg, folder: LabelledFolder, pictures: int) -> Sample:
    """Some labelled positions of a set's pictures, at the decoder's stride of 4.

    Raises:
        InputError: a pair cannot be read.
    """
    rng = np.random.default_rng(0)
    segmenter = segmenter_of(model, folder)
    config = model.config
    widest = config.keep_for(len(folder.vocabulary))
    logits, is_true = [], []
    for pair in chosen_pairs(folder, pictures):
        image, truth = read_pair(folder, pair)
        batch = preprocess([image], config.image_size, antialias=config.antialias)
        prediction = model(batch.to(segmenter.device), segmenter.text)
        count = len(prediction.classes[0])
        if prediction.counts is not None:
            count = int(prediction.counts[0])
        classes = prediction.classes[0, :count].cpu().numpy()
        maps = prediction.logits[0, :count].float().cpu().numpy()
        true = resized_labels(truth, (maps.shape[1], maps.shape[2])).flatten()
        known = np.flatnonzero(true >= 0)
        known = rng.choice(known, min(len(known), POSITIONS_PER_PICTURE), replace=False)
        logits.append(np.full((len(known), widest), -np.inf))
        logits[-1][:, :count] = maps.reshape(count, -1).T[known]
        is_true.append(np.zeros((len(known), widest), np.bool_))
        is_true[-1][:, :count] = classes == true[known, None]
    return Sample(np.concatenate(logits), np.concatenate(is_true))


def fit_presence(samples: Sequence[Sample]) -> tuple[float, float]:
    """Scale and shift by which the sigmoid tells the class that a pixel shows from all others.

    Sets count alike; of each, so do the classes shown and the others.
    """
    logits, shown, weights = [], [], []
    for sample in samples:
        kept = np.isfinite(sample.logits)
        logits.append(sample.logits[kept])
        shown.append(sample.true[kept])
        of_each = np.bincount(shown[-1], minlength=2).clip(min=1)
        weights.append(1 / of_each[shown[-1].astype(np.int64)])
    return fit_logistic(np.concatenate(logits), np.concatenate(shown), np.concatenate(weights))


def fit_competition(samples: Sequence[Sample], config: ModelConfig) -> float:
    """The competition by which most pixels, set by set, are as often right as they say.

    Sets differ in how sure a model may be: what is likeliest over all may be right for none. Of
    several that are as good, to a hundredth, the likeliest is taken.

    Args:
        config: with the scale and the shift of the logits.
    """

    def worth(competition: float) -> tuple[float, float]:
        competing = dataclasses.replace(config, competition=competition)
        shares, likelihoods = [], []
        for sample in samples:
            best = best_probability(sample.logits, competing)
            shares.append(share_as_said(best, sample.right))
            chance = np.where(sample.right, best, 1 - best).clip(min=1e-9)
            likelihoods.append(np.log(chance).mean())
        return round(float(np.mean(shares)), 2), float(np.mean(likelihoods))

    return max(COMPETITIONS, key=worth)


def best_probability(logits: Floats, config: ModelConfig) -> Floats:
    """(N, K) logits → (N,) probability of the best class."""
    maps = torch.from_numpy(logits.T[..., None])
    best: Floats = probabilities_of(maps, config).amax(dim=0)[:, 0].numpy()
    return best


def share_as_said(probability: Floats, right: NDArray[np.bool_]) -> float:
    """The share of pixels in tenths of probability that are right about as often as they say."""
    calibration = Calibration()
    calibration.count(probability, right)
    return float(calibration.pixels[calibration.as_said()].sum() / max(1, len(right)))


def fit_logistic(x: Floats, y: NDArray[np.bool_], weights: Floats) -> tuple[float, float]:
    """Scale a and shift b of the likeliest P(y) = sigmoid(a x + b), by Newton's method.

    Args:
        x, y, weights: (N,).
    """
    weights = weights / weights.sum()
    mean = float(weights @ x)
    spread = float(np.sqrt(weights @ (x - mean) ** 2)) or 1.0
    # from even odds and in units of the spread, Newton's method does not run away
    design = np.stack([(x - mean) / spread, np.ones_like(x)], axis=1)
    found = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-design @ found))
        gradient = design.T @ (weights * (probability - y))
        curvature = weights * probability * (1 - probability)
        hessian = design.T @ (design * curvature[:, None]) + _RIDGE * np.eye(2)
        found = found - np.linalg.solve(hessian, gradient)
    scale = float(found[0]) / spread
    return scale, float(found[1]) - scale * mean
