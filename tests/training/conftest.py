"""A small labelled folder and a tiny recipe that learns from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from labelled import write_folder

from errseg.config import TINY
from errseg.training.recipe import DataSource, Recipe


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
