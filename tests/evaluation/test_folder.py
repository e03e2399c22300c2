"""Evaluation of a folder: counts, failures, and going on after an interruption."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from labelled import COLOURS, write_folder, write_image

from errseg.datasets import LabelledFolder, open_folder, read_pair
from errseg.errors import ConfigError
from errseg.evaluation.folder import Evaluation, evaluate, load_evaluation, new_evaluation
from errseg.evaluation.plots import confusion_png, reliability_png
from errseg.records import UNLABELLED, ImageArray, Segmentation

NAMES = ("brick", "lawn", "lake")


def by_colour(images: Sequence[ImageArray]) -> list[Segmentation]:
    """A model that sees the three stripes, all but the lake."""
    found = []
    for image in images:
        distance = np.abs(image[:, :, None].astype(int) - COLOURS).sum(axis=3)
        labels = distance.argmin(axis=2).astype(np.uint16)
        labels[labels == 2] = UNLABELLED
        found.append(Segmentation(labels, np.full(labels.shape, 0.75, np.float32), NAMES))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> LabelledFolder:
    return open_folder(write_folder(tmp_path / "set", 7, 0))


def test_counts_of_a_model_that_misses_one_class(folder: LabelledFolder) -> None:
    evaluation = evaluate(by_colour, folder, new_evaluation(folder))
    truth = np.concatenate([read_pair(folder, pair)[1].flatten() for pair in folder.pairs])
    pixels = np.bincount(truth[truth >= 0])
    np.testing.assert_array_equal(evaluation.confusion.counts.sum(axis=1), pixels)
    np.testing.assert_allclose(evaluation.metrics.iou, [1, 1, 0], atol=0.02)
    assert evaluation.done == 7 and not evaluation.failures
    # lakes are left unlabelled: they have no probability that could be right
    calibration = evaluation.calibration
    assert np.flatnonzero(calibration.pixels).tolist() == [7]
    assert calibration.pixels[7] == pytest.approx(pixels[:2].sum(), rel=0.01)
    assert calibration.right[7] / calibration.pixels[7] > 0.98


def test_classes_that_count_as_one(folder: LabelledFolder) -> None:
    merged = dataclasses.replace(
        folder, ids=(0, 1, 1), measured_as=(0, 1, 1), measured_names=("brick", "rest")
    )
    evaluation = evaluate(by_colour, merged, new_evaluation(merged))
    assert evaluation.confusion.counts.shape == (2, 3)
    assert evaluation.metrics.iou[0] > 0.97
    assert 0.3 < evaluation.metrics.iou[1] < 0.7


def test_a_damaged_pair_is_named_and_the_rest_goes_on(folder: LabelledFolder) -> None:
    folder.pairs[2][1].write_bytes(b"half")
    write_image(folder.pairs[4][1], np.full((67, 71), 9, np.uint8))
    evaluation = evaluate(by_colour, folder, new_evaluation(folder))
    assert [failure.source for failure in evaluation.failures] == [
        str(folder.pairs[2][0]),
        str(folder.pairs[4][0]),
    ]
    assert "value 9" in evaluation.failures[1].message
    assert evaluation.done == 7 and evaluation.metrics.iou[0] > 0.97


def test_an_interrupted_evaluation_goes_on(folder: LabelledFolder, tmp_path: Path) -> None:
    folder.pairs[1][1].write_bytes(b"half")
    whole = evaluate(by_colour, folder, new_evaluation(folder))
    path = tmp_path / "state" / "set.npz"

    def interrupt(evaluation: Evaluation) -> None:
        if evaluation.done == 4:
            raise KeyboardInterrupt

    first = load_evaluation(folder, "same", path)
    with pytest.raises(KeyboardInterrupt):
        evaluate(by_colour, folder, first, state=path, progress=interrupt)
    second = load_evaluation(folder, "same", path)
    assert second.done == 4 and len(second.failures) == 1
    looked_at = []

    def watched(images: Sequence[ImageArray]) -> list[Segmentation]:
        looked_at.append(len(images))
        return by_colour(images)

    evaluate(watched, folder, second, state=path)
    assert len(looked_at) == 3
    np.testing.assert_array_equal(second.confusion.counts, whole.confusion.counts)
    np.testing.assert_array_equal(second.calibration.right, whole.calibration.right)
    assert second.failures == whole.failures


def test_a_state_of_something_else_is_refused(folder: LabelledFolder, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    evaluate(by_colour, folder, load_evaluation(folder, "one", path), state=path)
    with pytest.raises(ConfigError, match="another model"):
        load_evaluation(folder, "two", path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="no whole"):
        load_evaluation(folder, "one", path)


def test_a_limit_takes_evenly_spaced_pairs(folder: LabelledFolder) -> None:
    evaluation = evaluate(by_colour, folder, new_evaluation(folder), limit=3)
    assert evaluation.done == 3


def test_plots_are_pictures(folder: LabelledFolder) -> None:
    evaluation = evaluate(by_colour, folder, new_evaluation(folder))
    for png in (confusion_png(evaluation, "set"), reliability_png({"set": evaluation})):
        assert png.startswith(b"\x89PNG") and len(png) > 5000
