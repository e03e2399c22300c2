"""Labelled folders and the batches made of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from errseg.datasets import open_folder
from errseg.training.augmentation import PADDING_VALUE, SsdJitter, draw_published, draw_squash
from errseg.training.data import (
    TrainingBatches,
    draw_naming,
    mosaic,
    picture_chances,
)
from errseg.training.distributed import ALONE, World
from errseg.training.recipe import Recipe

NO_NAMES = np.zeros(0, np.int64)


def batches(recipe: Recipe, world: World = ALONE) -> TrainingBatches:
    folders = [open_folder(source.folder) for source in recipe.data]
    synonyms = [folder.vocabulary.synonyms for folder in folders]
    return TrainingBatches(recipe, folders, synonyms, [np.arange(3), NO_NAMES], world)


def test_a_batch_depends_on_seed_and_step_alone(recipe: Recipe) -> None:
    first, again = batches(recipe)[4], batches(recipe)[4]
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(first.distractors, again.distractors)
    assert not torch.equal(first.images, batches(recipe)[5].images)


def test_a_batch_has_the_crop_size_and_known_labels(recipe: Recipe) -> None:
    batch = batches(recipe)[0]
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.images.dtype == torch.float32
    assert set(batch.labels.unique().tolist()) <= {-1, 0, 1, 2}


def test_augmentation_moves_picture_and_labels_together() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((60, 80), np.int64)
    labels[:, 40:] = 1
    image = np.where(labels[..., None] == 1, 220, 30).repeat(3, axis=2).astype(np.uint8)
    for _ in range(20):
        picture, target = draw_squash((60, 80), (32, 64), 0.5, rng)(image, labels)
        bright = picture.mean(axis=2) > (picture.min() + picture.max()) / 2
        if len(np.unique(target)) == 2:
            assert (bright == (target == 1)).mean() > 0.95


def test_pictures_with_rare_classes_come_more_often(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.txt").write_text("common\nrare\nnever\n")
    for index in range(16):
        labels = np.full((8, 8), 0, np.uint8)
        labels[0, 0] = 1 if index == 5 else 255
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{index:02}.jpg")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{index:02}.png")
    chances = picture_chances(open_folder(tmp_path), rare_share=0.25)
    # the rare class is in 1/16 of the pictures: a quarter of 0.25, so twice as often
    assert chances[5] == pytest.approx(2 * chances[0])
    assert chances.sum() == pytest.approx(1)
    assert np.ptp(picture_chances(open_folder(tmp_path), rare_share=0)) == 0


def test_a_class_goes_by_any_of_its_names() -> None:
    rng = np.random.default_rng(0)
    synonyms = [("a", "b", "c"), ("d",)]
    drawn = np.stack([draw_naming(synonyms, rng, every=False) for _ in range(60)])
    assert drawn.shape == (60, 2, 4)
    np.testing.assert_allclose(drawn.sum(axis=2), 1)
    assert (drawn[:, 0, 3] == 0).all() and (drawn[:, 1, 3] == 1).all()
    assert len(np.unique(drawn[:, 0] > 0, axis=0)) == 7
    assert draw_naming(synonyms, rng, every=True)[0].tolist() == pytest.approx([1 / 3] * 3 + [0])


def test_a_mosaic_keeps_each_picture_with_its_labels(recipe: Recipe) -> None:
    parts = [
        (np.full((4, 6, 3), value, np.float32), np.full((4, 6), value, np.int64))
        for value in range(4)
    ]
    image, labels = mosaic(parts)
    assert image.shape == (8, 12, 3)
    np.testing.assert_array_equal(image[..., 0], labels)
    assert [labels[0, 0], labels[0, -1], labels[-1, 0], labels[-1, -1]] == [0, 1, 2, 3]
    data = tuple(dataclasses.replace(source, mosaic=2) for source in recipe.data)
    batch = batches(dataclasses.replace(recipe, data=data))[0]
    assert batch.images.shape == (2, 3, 64, 64)


@pytest.mark.parametrize("augmentation", ["squash", "published"])
def test_processes_share_the_batch_that_one_would_make(recipe: Recipe, augmentation: str) -> None:
    data = (dataclasses.replace(recipe.data[0], mosaic=2), *recipe.data[1:])
    recipe = dataclasses.replace(
        recipe,
        augmentation=augmentation,  # type: ignore[arg-type]
        data=data,
        batch_size=4,
    )
    for number in range(3):
        whole = batches(recipe)[number]
        parts = [batches(recipe, World(rank, 2))[number] for rank in (0, 1)]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert torch.equal(parts[1].distractors, whole.distractors)
        assert torch.equal(parts[1].naming, whole.naming)


def test_the_published_view_keeps_the_aspect_and_pads_in_grey() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((60, 90), np.int64)
    labels[:, 45:] = 1
    image = np.where(labels[..., None] == 1, 220, 30).repeat(3, axis=2).astype(np.uint8)
    for _ in range(20):
        view = draw_published((60, 90), (64, 128), 0.5, rng)
        assert view.resized == (64, 96)
        picture, target = view(image, labels)
        assert (picture.shape, target.shape) == ((64, 128, 3), (64, 128))
        assert (picture[:, 96:] == PADDING_VALUE).all()
        assert (target[:, 96:] == -1).all()
        known = target >= 0
        assert known.sum() == 64 * 96
        bright = picture.mean(axis=2) > picture[known].mean()
        assert (bright == (target == 1))[known].mean() > 0.95


def test_the_published_view_crops_along_the_long_side() -> None:
    rng = np.random.default_rng(0)
    views = [draw_published((120, 240), (64, 64), 0.5, rng) for _ in range(200)]
    assert {view.resized for view in views} == {(64, 128)}
    assert {view.start[0] for view in views} == {0}
    assert {0, 64} <= {view.start[1] for view in views}
    assert {view.flip for view in views} == {False, True}


def test_ssd_colours_change_each_property_in_half_of_the_pictures() -> None:
    rng = np.random.default_rng(0)
    colours = [draw_published((64, 64), (64, 64), 0.5, rng).colours for _ in range(400)]
    for unchanged in (
        [c.brightness == 0 for c in colours],
        [c.contrast == 1 for c in colours],
        [c.saturation == 1 for c in colours],
        [c.hue == 0 for c in colours],
    ):
        assert 0.4 < np.mean(unchanged) < 0.6
    assert min(c.contrast for c in colours) >= 0.5 and max(c.contrast for c in colours) <= 1.5
    red = np.full((2, 2, 3), (200, 0, 0), np.uint8)
    assert SsdJitter(0, 1, 1, 0, True)(red).tolist() == red.tolist()
    turned = SsdJitter(0, 1, 1, 18, True)(red)[0, 0]
    assert turned[0] > turned[1] > turned[2]
    assert SsdJitter(40, 1, 0.5, 0, False)(red)[0, 0].tolist() == [240, 140, 140]
