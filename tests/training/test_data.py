"""Labelled folders and the batches made of them."""

from __future__ import annotations

import numpy as np
import torch

from errseg.datasets import open_folder
from errseg.training.data import TrainingBatches, augment
from errseg.training.recipe import Recipe

NO_NAMES = np.zeros(0, np.int64)


def batches(recipe: Recipe) -> TrainingBatches:
    folders = [open_folder(source.folder) for source in recipe.data]
    return TrainingBatches(recipe, folders, [np.arange(3), NO_NAMES])


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
        picture, target = augment(image, labels, (32, 64), 0.5, rng)
        bright = picture.mean(axis=2) > (picture.min() + picture.max()) / 2
        if len(np.unique(target)) == 2:
            assert (bright == (target == 1)).mean() > 0.95
