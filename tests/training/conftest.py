"""A small labelled folder and a tiny recipe that learns from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from errseg.config import TINY
from errseg.training.recipe import DataSource, Recipe

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)


def write_folder(folder: Path, count: int, seed: int) -> Path:
    """Pictures of three coloured stripes in random order; a corner is unlabelled."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("brick, red wall\nlawn\nlake\n")
    for index in range(count):
        labels = np.repeat(rng.permutation(3), 24)[:67, None].repeat(71, axis=1).astype(np.uint8)
        image = COLOURS[labels] + rng.integers(0, 30, (*labels.shape, 3), np.uint8)
        labels[:9, :9] = 255
        Image.fromarray(image).save(folder / "images" / f"{index:03}.jpg", quality=95)
        Image.fromarray(labels).save(folder / "labels" / f"{index:03}.png")
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(
        # the names alone: in random text towers the words around them drown them
        model=dataclasses.replace(TINY, drop_path=0.1, prompt="{}"),
        data=(
            DataSource(write_folder(tmp_path / "a", 6, 0), distractors=1),
            DataSource(write_folder(tmp_path / "b", 5, 1), weight=0.5),
        ),
        validation=(write_folder(tmp_path / "val", 3, 2),),
        crop=(64, 64),
        steps=6,
        batch_size=2,
        keep=2,
        learning_rate=1e-3,
        trunk_rate=1.0,
        warmup=2,
        cost_loss=1.0,
        mask_ignored=True,
        average_decay=0.9,
        checkpoint_every=3,
        validate_every=6,
    )
