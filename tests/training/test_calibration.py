"""Calibration: the fits, and that labels stay what they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from labelled import write_folder
from PIL import Image

from errseg import Segmenter
from errseg.config import TINY
from errseg.datasets import LabelledFolder, open_folder, read_pair
from errseg.model.err_seg import ErrSeg
from errseg.training.calibration import (
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
    found = fit_competition([sample], TINY)
    assert found == pytest.approx(sharpness, abs=0.25)
    said = best_probability(sample.logits, dataclasses.replace(TINY, competition=found))
    assert share_as_said(said, sample.right) == 1
    assert said.mean() == pytest.approx(sample.right.mean(), abs=0.03)
    # each class on its own is far too sure
    assert share_as_said(best_probability(sample.logits, TINY), sample.right) < 0.5


def test_where_sets_differ_most_pixels_are_as_said() -> None:
    samples = [drawn(20_000, 5, sharpness, 7) for sharpness in (0.9, 1.0, 1.5)]
    competing = dataclasses.replace(TINY, competition=fit_competition(samples, TINY))
    shares = [share_as_said(best_probability(s.logits, competing), s.right) for s in samples]
    assert np.mean(shares) > 0.9


def test_classes_that_were_not_kept_take_no_part() -> None:
    logits = np.array([[2.0, 1.0], [2.0, -np.inf]])
    alone = float(1 / (1 + np.exp(-2.0)))
    best = best_probability(logits, dataclasses.replace(TINY, competition=1.0))
    assert best.tolist() == pytest.approx([alone / (1 + np.exp(-1.0)), alone])


def model_with_an_inkling(folder: LabelledFolder, keep: Literal["published", "auto"]) -> ErrSeg:
    """Random weights, but higher logits are more often those of classes shown, by little."""
    torch.manual_seed(1)
    model = ErrSeg(dataclasses.replace(TINY, keep=keep)).eval()
    head = model.decoder.head
    assert head.bias is not None
    with torch.no_grad():
        sign = 1.0 if fit_presence([take_sample(model, folder, 4)])[0] > 0 else -1.0
        # of small logits the scale that tells more from less is large
        head.weight.mul_(0.01 * sign)
        head.bias.mul_(0.01 * sign)
    return model


@pytest.mark.parametrize("keep", ["published", "auto"])
def test_probabilities_change_and_labels_stay(
    tmp_path: Path, keep: Literal["published", "auto"], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pictures that differ in what they show keep different numbers of classes
    monkeypatch.setattr("errseg.model.channel_reduction.LEAST_VOTES", 0.4)
    folder = open_folder(write_folder(tmp_path / "set", 4, 0))
    model = model_with_an_inkling(folder, keep)
    segmenter = Segmenter(model, classes=folder.vocabulary, device="cpu")
    image, _ = read_pair(folder, folder.pairs[0])
    before, sample = segmenter(image), take_sample(model, folder, 4)
    assert sample.logits.shape == sample.true.shape == (len(sample.right), len(folder.vocabulary))
    kept = np.unique(np.isfinite(sample.logits).sum(axis=1)).tolist()
    assert len(kept) > 1 if keep == "auto" else kept == [3]
    calibrate(model, [folder], 4)
    config = model.config
    assert config.logit_scale > 0.1 and config.competition > 0
    assert np.array_equal(take_sample(model, folder, 4).logits, sample.logits)
    after = segmenter(image)
    # the maps are resized as probabilities: at borders the best class may change by a hair
    assert (before.labels == after.labels).mean() > 0.98
    said = best_probability(sample.logits, config)
    mean = float(np.mean([segmenter(read_pair(folder, p)[0]).scores.mean() for p in folder.pairs]))
    assert mean == pytest.approx(said.mean(), abs=0.05)
    assert abs(before.scores.mean() - mean) > 0.05


def test_sets_without_labels_and_sets_of_one_class_say_nothing(tmp_path: Path) -> None:
    folder = open_folder(write_folder(tmp_path / "set", 4, 0))
    bare = write_folder(tmp_path / "bare", 2, 0)
    one = write_folder(tmp_path / "one", 2, 0)
    for set_folder, value in ((bare, 255), (one, 0)):
        for path in (set_folder / "labels").iterdir():
            Image.fromarray(np.full((67, 71), value, np.uint8)).save(path)
    (one / "classes.txt").write_text("brick\n")
    found = []
    for folders in ([folder], [open_folder(bare), folder]):
        model = model_with_an_inkling(folder, "published")
        calibrate(model, folders, 4)
        found.append(model.config)
    assert found[0] == found[1] != TINY
    for nothing in (bare, one):
        model = model_with_an_inkling(folder, "published")
        calibrate(model, [open_folder(nothing)], 2)
        assert model.config == TINY


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
    calibrate(model, [folder], 4)
    assert model.config == TINY
