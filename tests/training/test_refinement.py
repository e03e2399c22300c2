"""Label maps with sharper outlines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest
from labelled import write_folder
from numpy.typing import NDArray
from PIL import Image

from errseg.config import TINY
from errseg.datasets import UNLABELLED_16BIT, open_folder, read_pair
from errseg.errors import ConfigError
from errseg.model.err_seg import ErrSeg
from errseg.records import ImageArray, Segmentation
from errseg.segmenter import Segmenter
from errseg.training.recipe import Recipe
from errseg.training.refinement import LONG_SIDE, refine, refine_labels

Mask = NDArray[np.bool_]
SHAPE = (150, 200)


def disc(centre: tuple[int, int] = (100, 75), radius: int = 40) -> Mask:
    drawn = cv2.circle(np.zeros(SHAPE, np.uint8), centre, radius, 1, -1)
    return np.asarray(drawn, np.bool_)


def picture(thing: Mask) -> ImageArray:
    """Reddish where the thing is, greenish around it, with grain."""
    grain = np.random.default_rng(0).normal(0, 12, (*SHAPE, 3))
    colours = np.where(thing[..., None], (190, 60, 50), (60, 140, 70))
    return (colours + grain).clip(0, 255).astype(np.uint8)


def says(*regions: Mask) -> Segmenter:
    """A model that finds the thing in the first region, and in a mirrored picture in the second."""

    def segment(images: Sequence[ImageArray]) -> list[Segmentation]:
        first, second = regions[0], regions[-1][:, ::-1]
        scores = np.ones(SHAPE, np.float32)
        return [
            Segmentation(np.where(region, 0, 1).astype(np.uint16), scores, ("thing", "sky"))
            for region, _ in zip((first, second), images, strict=True)
        ]

    return cast(Segmenter, segment)


def iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_the_outline_is_found_in_the_picture() -> None:
    thing, sloppy, coarse = disc(), disc((104, 72), 48), disc((92, 80), 25)
    refined = refine(says(sloppy), picture(thing), coarse)
    assert iou(sloppy, thing) < 0.75
    # the doubtful stripe is inside the outline
    assert iou(refined, disc(radius=38)) > 0.96
    assert not (refined & ~thing).any()


def test_where_model_and_classifier_disagree_only_what_both_say_is_kept() -> None:
    thing = disc()
    assert not refine(says(disc((30, 30), 25)), picture(thing), disc((150, 110), 25)).any()
    # the views disagree as well: nowhere is the thing sure
    views = says(disc((30, 30), 25), disc((150, 110), 25))
    assert not refine(views, picture(thing), thing).any()


def test_a_thing_that_fills_the_picture_needs_no_outline() -> None:
    everywhere = np.ones(SHAPE, np.bool_)
    assert refine(says(everywhere), picture(everywhere), disc()).mean() > 0.99


def test_an_outline_far_from_the_models_is_not_believed() -> None:
    # the picture is one even surface: GrabCut has nothing to go by
    flat = picture(np.zeros(SHAPE, np.bool_))
    said, coarse = disc(radius=60), disc(radius=30)
    refined = refine(says(said), flat, coarse)
    assert not (refined & ~said).any()
    assert refined.any()


def test_large_pictures_are_refined_small_and_come_back_whole() -> None:
    thing = cv2.resize(disc().astype(np.uint8), (1000, 750), interpolation=cv2.INTER_NEAREST) > 0
    seen = []

    def segment(images: Sequence[ImageArray]) -> list[Segmentation]:
        seen.extend(image.shape for image in images)
        red = [image[..., 0] > image[..., 1] for image in images]
        scores = np.ones(red[0].shape, np.float32)
        return [
            Segmentation(np.where(region, 0, 1).astype(np.uint16), scores, ("thing", "sky"))
            for region in red
        ]

    colours = np.where(thing[..., None], (190, 60, 50), (60, 140, 70)).astype(np.uint8)
    refined = refine(cast(Segmenter, segment), colours, thing)
    assert refined.shape == (750, 1000)
    assert seen == [(240, LONG_SIDE, 3)] * 2
    assert iou(refined, thing) > 0.9


def test_a_data_set_is_refined_once(tmp_path: Path) -> None:
    coarse = write_folder(tmp_path / "coarse", 3, 0)
    for number, path in enumerate(sorted((coarse / "labels").iterdir())):
        labels = np.full(np.asarray(Image.open(path)).shape, UNLABELLED_16BIT, np.uint16)
        # one picture holds nothing that is known
        labels[: 0 if number == 1 else 20] = number
        Image.fromarray(labels).save(path)
    model = ErrSeg(dataclasses.replace(TINY, prompt="{}")).eval()
    done = tmp_path / "out" / "labels" / "0.png"
    done.parent.mkdir(parents=True)
    first = sorted((coarse / "labels").iterdir())[0]
    done = done.with_name(first.name)
    done.write_bytes(first.read_bytes())
    folder = open_folder(refine_labels(model, coarse, tmp_path / "out"))
    assert len(folder.pairs) == 3
    assert done.read_bytes() == first.read_bytes()
    found = [set(np.unique(read_pair(folder, pair)[1])) for pair in folder.pairs]
    assert found[0] == {-1, 0} and found[1] == {-1} and found[2] <= {-1, 2}
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    refine_labels(model, coarse, tmp_path / "out")
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}


def test_refining_needs_a_model_that_segments(recipe: Recipe) -> None:
    source = dataclasses.replace(recipe.data[0], pseudo_labels=True, refined=True)
    for init in ("", recipe.model.name):
        with pytest.raises(ConfigError, match="segments already"):
            dataclasses.replace(recipe, data=(source,), init=init)
    dataclasses.replace(recipe, data=(source,), init="runs/fourth/model.safetensors")
