"""Pictures in memory → label maps: sizes, strips, threshold, batches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from errseg import inference
from errseg.config import PRESETS, Keep
from errseg.errors import ConfigError
from errseg.inference import best_class, segment
from errseg.model.err_seg import ErrSeg
from errseg.records import UNLABELLED, ImageArray

SIZES = [(1, 1), (1, 5000), (5000, 1), (67, 71), (64, 64), (2, 3), (700, 900)]


@pytest.fixture(scope="module")
def model() -> ErrSeg:
    torch.manual_seed(0)
    return ErrSeg(PRESETS["tiny"]).eval()


@pytest.fixture(scope="module")
def text() -> Tensor:
    torch.manual_seed(1)
    return F.normalize(torch.randn(9, 32), dim=-1)


def picture(size: tuple[int, int], seed: int = 0) -> ImageArray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def slow_best_class(maps: Tensor, classes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    whole = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    best, index = whole.max(dim=0)
    return classes[index], best


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [1, 7, 64, inference.TILE_SIDE])
def test_tiles_equal_the_whole(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], side: int
) -> None:
    if side < 64 and max(size) > 500:
        side = 50  # a tile per pixel says nothing new and takes long
    torch.manual_seed(2)
    maps = torch.rand(4, 16, 16)
    classes = torch.tensor([2, 3, 300, 846])
    monkeypatch.setattr(inference, "TILE_SIDE", side)
    labels, scores = best_class(maps, classes, size)
    expected, best = slow_best_class(maps, classes, size)
    np.testing.assert_allclose(scores, best.numpy(), rtol=1e-5, atol=1e-6)
    # rounding may turn the label of a pixel where two classes are as good as equal
    assert np.count_nonzero(labels != expected.numpy()) <= 1


@pytest.mark.parametrize("shape", [(12, 9), (1, 40), (40, 1), (96, 96)])
def test_classes_without_a_chance_are_left_out_unseen(shape: tuple[int, int]) -> None:
    torch.manual_seed(4)
    coarse = torch.rand(6, 4, 4)
    coarse[5] -= 0.4  # wins rarely
    smooth = F.interpolate(coarse[None], size=shape, mode="bicubic")[0].clamp(0, 1)
    size, classes = (333, 470), torch.arange(6)
    labels, scores = best_class(smooth, classes, size)
    expected, best = slow_best_class(smooth, classes, size)
    np.testing.assert_allclose(scores, best.numpy(), atol=1e-6)
    # rounding may turn the label of a pixel where two classes are as good as equal
    assert np.count_nonzero(labels != expected.numpy()) <= 1


@pytest.mark.parametrize("lead", [0.0, 1e-7, 1e-6, 1e-4, 0.1])
def test_a_class_that_leads_everywhere_wins_by_little_or_much(lead: float) -> None:
    torch.manual_seed(5)
    low = torch.rand(16, 16) * 0.5
    labels, scores = best_class(torch.stack([low, low + lead]), torch.tensor([7, 3]), (100, 90))
    alone, best = slow_best_class((low + lead)[None], torch.tensor([3]), (100, 90))
    np.testing.assert_allclose(scores, best.numpy(), atol=1e-6)
    if lead == 0:
        assert (labels == 7).all()
    if lead >= 1e-4:
        np.testing.assert_array_equal(labels, alone.numpy())


def test_one_peak_in_a_sea_of_another_class_is_not_lost() -> None:
    maps = torch.full((2, 96, 96), 0.5)
    maps[1] = 0.1
    maps[1, 40, 50] = 0.9
    labels, _ = best_class(maps, torch.tensor([0, 1]), (960, 960))
    rows, columns = np.nonzero(labels)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (400, 409, 500, 509)


@pytest.mark.parametrize("size", [(16, 16), (5, 7), (33, 40)])
def test_equal_probabilities_go_to_the_lower_class(size: tuple[int, int]) -> None:
    maps = torch.full((3, 16, 16), 0.5)
    labels, scores = best_class(maps, torch.tensor([4, 6, 9]), size)
    assert (labels == 4).all()
    np.testing.assert_allclose(scores, 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.0, [0, 1, 0, 1]),
        (0.5, [UNLABELLED, 1, 0, 1]),
        (0.75, [UNLABELLED, UNLABELLED, 0, 1]),
        (1.0, [UNLABELLED, UNLABELLED, UNLABELLED, 1]),
    ],
)
def test_threshold_leaves_what_is_lower_unlabelled(threshold: float, expected: list[int]) -> None:
    maps = torch.tensor([[[0.25, 0.125, 0.75, 0.0]], [[0.0, 0.5, 0.5, 1.0]]])
    labels, scores = best_class(maps, torch.tensor([0, 1]), (1, 4), threshold)
    assert labels.tolist() == [expected]
    assert scores.tolist() == [[0.25, 0.5, 0.75, 1.0]]  # also where unlabelled


@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_any_size(model: ErrSeg, text: Tensor, size: tuple[int, int]) -> None:
    [(labels, scores)] = segment(model, [picture(size)], text)
    assert labels.shape == scores.shape == size
    assert (labels.dtype, scores.dtype) == (np.uint16, np.float32)
    assert labels.max() < 9
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_a_batch_of_sizes_equals_one_by_one(model: ErrSeg, text: Tensor) -> None:
    pictures = [picture(size, seed) for seed, size in enumerate(SIZES[:6])]
    for image, (labels, scores) in zip(pictures, segment(model, pictures, text), strict=True):
        [(alone, alone_scores)] = segment(model, [image], text)
        np.testing.assert_allclose(scores, alone_scores, atol=1e-5)
        # rounding may turn the label of a pixel where two classes are as good as equal
        assert np.count_nonzero(labels != alone) <= 0.01 * labels.size


def test_labels_are_ids_of_the_vocabulary_not_of_the_kept_classes(model: ErrSeg) -> None:
    torch.manual_seed(3)
    text = F.normalize(torch.randn(847, 32), dim=-1)
    image = picture((67, 71))
    [(labels, scores)] = segment(model, [image], text, keep=3)
    with torch.no_grad():
        batch = inference.preprocess([image], (64, 64), antialias=True)
        prediction = model(batch, text, keep=3)
    kept = prediction.classes[0].tolist()
    assert max(kept) > 3
    everything = torch.full((847, 16, 16), -100.0)
    everything[kept] = prediction.logits[0]
    whole = F.interpolate(
        everything.sigmoid()[None], size=(67, 71), mode="bilinear", align_corners=False
    )[0]
    np.testing.assert_allclose(scores, whole.amax(dim=0).numpy(), atol=1e-5)
    of_label = whole.gather(0, torch.from_numpy(labels.astype(np.int64))[None])[0]
    np.testing.assert_allclose(of_label.numpy(), scores, atol=1e-5)
    assert set(np.unique(labels)) <= set(kept)


@pytest.mark.parametrize("keep", [5, "auto"])
def test_classes_that_compete_share_what_they_have(
    text: Tensor, keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pictures that differ in what they show keep different numbers of classes
    monkeypatch.setattr("errseg.model.channel_reduction.LEAST_VOTES", 0.1)
    torch.manual_seed(0)
    calibrated = {"logit_scale": 2.0, "logit_shift": 0.5, "competition": 1.5}
    model = ErrSeg(dataclasses.replace(PRESETS["tiny"], **calibrated)).eval()
    images = [picture((8, 8), seed) for seed in range(4)]
    with torch.no_grad():
        batch = inference.preprocess(images, (64, 64), antialias=True)
        prediction = model(batch, text, keep=keep)
    found = inference.predict(model, images, text, keep=keep)
    assert (len({len(maps.classes) for maps in found}) > 1) == (keep == "auto")
    for index, maps in enumerate(found):
        logits = prediction.logits[index, : len(maps.classes)].numpy().astype(np.float64)
        logits = 2 * logits + 0.5
        own, weight = 1 / (1 + np.exp(-logits)), np.exp(1.5 * logits)
        expected = own * weight / weight.sum(axis=0)
        np.testing.assert_allclose(maps.probabilities.numpy(), expected, rtol=1e-4)
        assert (maps.probabilities.sum(dim=0) < 1).all()
        # the best is the best as before
        assert np.array_equal(maps.probabilities.numpy().argmax(axis=0), logits.argmax(axis=0))


def test_a_class_alone_has_nothing_to_compete_with() -> None:
    logits = torch.randn(1, 4, 4)
    alone = dataclasses.replace(PRESETS["tiny"], competition=2.0)
    for config in (PRESETS["tiny"], alone, PRESETS["errseg-base"]):
        assert torch.equal(inference.probabilities_of(logits, config), logits.sigmoid())


@pytest.mark.parametrize("name", ["competition", "logit_scale", "logit_shift"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "much"])
def test_calibration_is_made_of_numbers(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(PRESETS["tiny"], **{name: value})  # type: ignore[arg-type]
    if name != "logit_shift":
        with pytest.raises(ConfigError, match=f"{name} is -1; .* from 0"):
            dataclasses.replace(PRESETS["tiny"], **{name: -1})  # type: ignore[arg-type]


def test_threshold_of_a_whole_picture(model: ErrSeg, text: Tensor) -> None:
    image = picture((40, 50))
    [(labels, scores)] = segment(model, [image], text)
    middle = float(np.median(scores))
    [(cut, cut_scores)] = segment(model, [image], text, threshold=middle)
    np.testing.assert_array_equal(cut == UNLABELLED, scores < np.float32(middle))
    np.testing.assert_array_equal(cut[cut != UNLABELLED], labels[cut != UNLABELLED])
    np.testing.assert_array_equal(cut_scores, scores)


def test_lower_precision_is_close(model: ErrSeg, text: Tensor) -> None:
    image = picture((64, 64))
    [(_, exact)] = segment(model, [image], text, keep=9)
    [(_, rough)] = segment(model, [image], text, keep=9, precision=torch.bfloat16)
    assert rough.dtype == np.float32
    assert not np.array_equal(rough, exact)
    np.testing.assert_allclose(rough, exact, atol=0.05)


@pytest.mark.filterwarnings("error")
def test_read_only_pictures_are_taken_and_left_alone(model: ErrSeg, text: Tensor) -> None:
    image = picture((40, 50))
    image.flags.writeable = False  # as Pillow's arrays are
    before = image.copy()
    segment(model, [image], text)
    np.testing.assert_array_equal(image, before)
