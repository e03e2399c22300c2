"""Calibration: the fits, and that labels stay what they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import write_folder

from errseg import Segmenter
from errseg.config import TINY
from errseg.datasets import open_folder, read_pair
from errseg.evaluation.folder import evaluate, new_evaluation
from errseg.model.err_seg import ErrSeg
from errseg.training.calibration import (
    Fit,
    Sample,
    best_probability,
    calibrate,
    fit_competition,
    fit_logistic,
    fit_presence,
    share_as_said,
    take_sample,
)


def test_the_fit_finds_scale_and_shift() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 2, 200_000)
    y = rng.random(len(x)) < 1 / (1 + np.exp(-(0.6 * x - 0.8)))
    scale, shift = fit_logistic(x, y, np.ones_like(x))
    assert scale == pytest.approx(0.6, abs=0.02)
    assert shift == pytest.approx(-0.8, abs=0.02)


def test_the_fit_holds_far_from_zero_and_where_nothing_differs() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(-8, 1, 200_000)
    y = rng.random(len(x)) < 1 / (1 + np.exp(-(3 * x + 24)))
    scale, shift = fit_logistic(x, y, np.ones_like(x))
    assert (scale, shift) == (pytest.approx(3, rel=0.03), pytest.approx(24, rel=0.03))
    scale, shift = fit_logistic(np.full(4, 2.0), np.array([True, False, True, True]), np.ones(4))
    assert np.isfinite([scale, shift]).all()


def test_weights_count() -> None:
    x = np.zeros(4)
    y = np.array([True, True, True, False])
    _, shift = fit_logistic(x, y, np.array([1.0, 1.0, 1.0, 9.0]))
    assert 1 / (1 + np.exp(-shift)) == pytest.approx(0.25, abs=1e-3)


def drawn(count: int, classes: int, sharpness: float, seed: int) -> Sample:
    """Logits of which the softmax, sharpened, is the probability that a class is the true one."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(4, 1.5, (count, classes))
    shares = np.exp(sharpness * logits)
    shares /= shares.sum(axis=1, keepdims=True)
    true = (shares.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1).clip(max=classes - 1)
    return Sample(logits, np.eye(classes, dtype=np.bool_)[true])


def test_presence_tells_the_class_shown_from_others() -> None:
    samples = [drawn(20_000, 4, 1.0, 0)]
    scale, shift = fit_presence(samples)
    shown, others = (samples[0].logits[samples[0].true == which] for which in (True, False))
    assert scale > 0
    # three others to each one shown, but both kinds count alike
    assert -shift / scale == pytest.approx((shown.mean() + others.mean()) / 2, abs=0.1)
    # a set counts once, however many positions it has
    more = Sample(np.tile(samples[0].logits, (3, 1)), np.tile(samples[0].true, (3, 1)))
    other = drawn(5000, 4, 2.0, 1)
    assert fit_presence([more, other]) == pytest.approx(fit_presence([*samples, other]))


@pytest.mark.parametrize("sharpness", [0.6, 1.2, 2.0])
def test_competition_is_what_makes_the_best_as_often_right_as_it_says(sharpness: float) -> None:
    sample = drawn(40_000, 5, sharpness, 0)
    found = fit_competition([sample], 1.0, 0.0)
    assert found == pytest.approx(sharpness, abs=0.25)
    said = best_probability(sample.logits, found)
    assert share_as_said(said, sample.right) == 1
    assert said.mean() == pytest.approx(sample.right.mean(), abs=0.03)
    # each class on its own is far too sure
    assert share_as_said(best_probability(sample.logits, 0.0), sample.right) < 0.5


def test_where_sets_differ_most_pixels_are_as_said() -> None:
    samples = [drawn(20_000, 5, sharpness, 7) for sharpness in (0.9, 1.0, 1.5)]
    found = fit_competition(samples, 1.0, 0.0)
    shares = [share_as_said(best_probability(s.logits, found), s.right) for s in samples]
    assert np.mean(shares) > 0.9


def test_classes_that_were_not_kept_take_no_part() -> None:
    logits = np.array([[2.0, 1.0], [2.0, -np.inf]])
    alone = float(1 / (1 + np.exp(-2.0)))
    best = best_probability(logits, 1.0)
    assert best.tolist() == pytest.approx([alone / (1 + np.exp(-1.0)), alone])


def test_probabilities_change_and_labels_stay(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = ErrSeg(TINY).eval()
    folder = open_folder(write_folder(tmp_path / "set", 4, 0))
    segmenter = Segmenter(model, classes=folder.vocabulary, device="cpu")
    image, _ = read_pair(folder, folder.pairs[0])
    before = segmenter(image)
    sample = take_sample(model, folder, 4)
    assert sample.logits.shape == (len(sample.right), len(folder.vocabulary))
    fit = calibrate(model, [folder], 4)
    assert fit == Fit(*fit_presence([sample]), fit_competition([sample], *fit_presence([sample])))
    assert model.config.competition == fit.competition > 0
    after = segmenter(image)
    # the maps are resized as probabilities: at borders the best class may change by a hair
    assert (before.labels == after.labels).mean() > 0.98
    assert not np.allclose(before.scores, after.scores)
    evaluation = evaluate(segmenter, folder, new_evaluation(folder))
    calibration = evaluation.calibration
    said = best_probability(fit.scale * sample.logits + fit.shift, fit.competition)
    mean = float(np.mean([segmenter(read_pair(folder, p)[0]).scores.mean() for p in folder.pairs]))
    assert mean == pytest.approx(said.mean(), abs=0.05)
    assert calibration.pixels.sum() > 0


def test_a_model_that_is_wrong_where_it_is_sure_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ErrSeg(TINY).eval()
    folder = open_folder(write_folder(tmp_path / "set", 4, 0))
    head = model.decoder.head
    assert head.bias is not None
    sample = take_sample(model, folder, 4)
    with torch.no_grad():
        # the other way round, if it knows anything
        sign = -1.0 if fit_presence([sample])[0] > 0 else 1.0
        head.weight.mul_(sign)
        head.bias.mul_(sign)
    before = head.weight.clone()
    assert calibrate(model, [folder], 4) == Fit()
    assert torch.equal(head.weight, before)
    assert model.config.competition == 0
