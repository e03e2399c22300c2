"""Platt scaling: the fit, and that labels stay what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled import write_folder

from errseg import Segmenter
from errseg.config import TINY
from errseg.datasets import open_folder, read_pair
from errseg.evaluation.folder import evaluate, new_evaluation
from errseg.model.err_seg import ErrSeg
from errseg.training.calibration import best_near, calibrate, fit_logistic, share_as_said


def test_the_fit_finds_scale_and_shift() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 2, 200_000)
    y = rng.random(len(x)) < 1 / (1 + np.exp(-(0.6 * x - 0.8)))
    scale, shift = fit_logistic(x, y, np.ones_like(x))
    assert scale == pytest.approx(0.6, abs=0.02)
    assert shift == pytest.approx(-0.8, abs=0.02)


def test_weights_count() -> None:
    x = np.zeros(4)
    y = np.array([True, True, True, False])
    _, shift = fit_logistic(x, y, np.array([1.0, 1.0, 1.0, 9.0]))
    assert 1 / (1 + np.exp(-shift)) == pytest.approx(0.25, abs=1e-3)


def drawn(count: int, scale: float, shift: float, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, count)
    return x, rng.random(count) < 1 / (1 + np.exp(-(scale * x + shift)))


def test_where_one_pair_serves_all_sets_the_likeliest_stays() -> None:
    samples = [drawn(20_000, 0.8, 0.3, seed) for seed in (0, 1)]
    assert [share_as_said(*sample, 0.8, 0.3) for sample in samples] == [1, 1]
    assert best_near(samples, (0.8, 0.3)) == (0.8, 0.3)


def test_where_sets_differ_most_pixels_are_as_said() -> None:
    samples = [drawn(20_000, *how) for how in ((1.2, 1.8, 0), (1.2, 1.9, 1), (0.5, -0.8, 2))]
    x, y = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    likeliest = fit_logistic(x, y, np.ones_like(x))
    chosen = best_near(samples, likeliest)
    before, after = (
        np.mean([share_as_said(*sample, *pair) for sample in samples])
        for pair in (likeliest, chosen)
    )
    assert after > before + 0.1
    assert [share_as_said(*sample, *chosen) for sample in samples[:2]] == pytest.approx(
        [1, 1], abs=0.05
    )


def test_probabilities_change_and_labels_stay(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = ErrSeg(TINY).eval()
    folder = open_folder(write_folder(tmp_path / "set", 4, 0))
    segmenter = Segmenter(model, classes=folder.vocabulary, device="cpu")
    image, _ = read_pair(folder, folder.pairs[0])
    before = segmenter(image)
    scale, shift = calibrate(model, [folder], 4)
    after = segmenter(image)
    # the maps are resized as probabilities: at borders the best class may change by a hair
    assert (before.labels == after.labels).mean() > 0.98
    evaluation = evaluate(segmenter, folder, new_evaluation(folder))
    calibration = evaluation.calibration
    mean = float(np.mean([segmenter(read_pair(folder, p)[0]).scores.mean() for p in folder.pairs]))
    assert mean == pytest.approx(calibration.right.sum() / calibration.pixels.sum(), abs=0.03)
    assert (scale, shift) != (1.0, 0.0)


def test_a_model_that_is_wrong_where_it_is_sure_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ErrSeg(TINY).eval()
    before = model.decoder.head.weight.clone()
    folder = open_folder(write_folder(tmp_path / "set", 4, 0))
    assert calibrate(model, [folder], 4) == (1.0, 0.0)
    assert torch.equal(model.decoder.head.weight, before)
