"""Broader classes for sets whose own are finer."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import numpy as np
import pytest
from labelled import write_image

from errseg.datasets import LabelledFolder, open_folder, read_pair
from errseg.errors import ConfigError
from errseg.training.broader import broadened
from errseg.training.mini_init import imagenet_names
from errseg.vocabulary import parse_vocabulary


@pytest.fixture
def fine(tmp_path: Path) -> LabelledFolder:
    """Five pictures, the n-th of class n; their upper halves are labelled."""
    folder = tmp_path / "fine"
    for index in range(5):
        labels = np.full((8, 8), index, np.uint16)
        labels[4:] = 65535
        write_image(folder / "images" / f"{index}.jpg", np.zeros((8, 8, 3), np.uint8))
        write_image(folder / "labels" / f"{index}.png", labels)
    (folder / "classes.txt").write_text("whippet\nbeagle\nrobin\nmagpie\ncup\n")
    return open_folder(folder)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "broader.txt"
    path.write_text(text)
    return path


def test_pictures_are_labelled_by_their_broader_class(fine: LabelledFolder, tmp_path: Path) -> None:
    path = written(tmp_path, "# animals\n2-3: bird\n\n0,  1 : dog, hound   # both breeds\n")
    broad = broadened(fine, path)
    assert broad.vocabulary.names == ("bird", "dog")
    assert broad.vocabulary.synonyms == (("bird",), ("dog", "hound"))
    # the cup is of none
    assert [picture.stem for picture, _ in broad.pairs] == ["0", "1", "2", "3"]
    labels = [read_pair(broad, pair)[1] for pair in broad.pairs]
    assert [int(found[0, 0]) for found in labels] == [1, 1, 0, 0]
    assert all((found[4:] == -1).all() for found in labels)
    assert len(fine.pairs) == 5


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("0-1 dog", "broader.txt:1"),
        ("0-1:  # dog", "broader.txt:1"),
        ("0: dog\n1, x: cat", "'x'"),
        ("0: dog\n-1: cat", "'-1'"),
        ("0: dog\n5: cat", "class 5"),
        ("0-1: dog\n1: cat", "class 1"),
    ],
)
def test_what_is_wrong_is_named(
    fine: LabelledFolder, tmp_path: Path, text: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        broadened(fine, written(tmp_path, text))
    with pytest.raises(ConfigError, match="nowhere"):
        broadened(fine, tmp_path / "nowhere.txt")


def test_the_shipped_list_says_what_imagenets_classes_are(tmp_path: Path) -> None:
    names = imagenet_names()
    for index in range(len(names)):
        write_image(tmp_path / "labels" / f"{index:04}.png", np.full((1, 1), index, np.uint16))
    pairs = tuple((path, path) for path in sorted((tmp_path / "labels").iterdir()))
    folder = LabelledFolder(
        tmp_path, "all", pairs, parse_vocabulary("anything", "a test"), tuple(range(1000))
    )
    path = Path(str(importlib.resources.files("errseg") / "assets" / "recipes" / "broader.txt"))
    broad = broadened(folder, path)
    of_name = {
        name: {names[index][0] for index, own in enumerate(broad.ids) if own == place}
        for place, name in enumerate(broad.vocabulary.names)
    }
    assert {"beagle", "whippet", "pug"} <= of_name["dog"] and "red fox" not in of_name["dog"]
    assert of_name["cat"] == {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}
    assert {"robin", "ostrich", "king penguin"} <= of_name["bird"]
    assert of_name["airplane"] == {"airliner", "warplane"}
    assert of_name["bed"] == {"crib", "four-poster"}
    assert of_name["computer mouse"] == {"mouse"}
    assert len(broad.pairs) == sum(own >= 0 for own in broad.ids) > 500
