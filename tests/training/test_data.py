"""Labelled folders and the batches made of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from errseg.errors import ConfigError
from errseg.training.data import TrainingBatches, augment, open_folder, read_pair
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


def test_16_bit_labels(tmp_path: Path) -> None:
    labels = np.array([[0, 300, 65535]], np.uint16)
    Image.fromarray(labels).save(tmp_path / "l.png")
    Image.new("RGB", (3, 1)).save(tmp_path / "i.jpg")
    _, read = read_pair((tmp_path / "i.jpg", tmp_path / "l.png"))
    assert read.tolist() == [[0, 300, -1]]


def test_8_bit_255_is_unlabelled(recipe: Recipe) -> None:
    _, labels = read_pair(open_folder(recipe.data[0].folder).pairs[0])
    assert (labels[:9, :9] == -1).all()
    assert (labels[9:] >= 0).all()


@pytest.mark.parametrize("missing", ["classes.txt", "images", "labels"])
def test_an_incomplete_folder_is_named(recipe: Recipe, missing: str) -> None:
    folder = recipe.data[0].folder
    path = folder / missing
    path.unlink() if path.is_file() else shutil.rmtree(path)
    with pytest.raises(ConfigError, match=str(folder)):
        open_folder(folder)


def test_a_damaged_pair_is_named(recipe: Recipe) -> None:
    pair = open_folder(recipe.data[0].folder).pairs[0]
    pair[1].write_bytes(b"not a picture")
    with pytest.raises(ConfigError, match=str(pair[1])):
        read_pair(pair)


def test_sizes_that_differ_are_named(recipe: Recipe) -> None:
    pair = open_folder(recipe.data[0].folder).pairs[0]
    Image.new("L", (5, 5)).save(pair[1])
    with pytest.raises(ConfigError, match="5, 5"):
        read_pair(pair)
