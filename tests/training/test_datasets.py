"""Labelled folders: what is read, and what is wrong with those that cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from errseg.datasets import open_folder, read_pair
from errseg.errors import ConfigError
from errseg.training.recipe import Recipe


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
