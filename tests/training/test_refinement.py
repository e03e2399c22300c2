"""Label maps with sharper outlines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from labelled import write_folder
from numpy.typing import NDArray
from PIL import Image

from errseg.config import TINY, ModelConfig
from errseg.datasets import UNLABELLED_16BIT, open_folder, read_pair
from errseg.errors import ConfigError
from errseg.model.err_seg import ErrSeg
from errseg.records import ImageArray, LabelMap
from errseg.training import loop, refinement
from errseg.training.recipe import FROM_IMAGENET, Recipe
from errseg.training.refinement import (
    DOUBT_WIDTH,
    LONG_SIDE,
    SURROUNDINGS,
    Segment,
    refine,
    refine_labels,
)
from errseg.weights import save_model

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


def says(*regions: Mask) -> Segment:
    """A model that finds the thing in the first region, and in a mirrored picture in the second."""
    found = [np.where(region, 0, 1).astype(np.uint16) for region in regions]
    return lambda images: [found[0], found[-1][:, ::-1]]


def iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_the_outline_is_found_in_the_picture() -> None:
    thing, sloppy, coarse = disc(), disc((104, 72), 48), disc((92, 80), 25)
    refined = refine(says(sloppy), picture(thing), coarse)
    assert iou(sloppy, thing) < 0.75
    # the doubtful stripe is inside the outline
    assert iou(refined, disc(radius=38)) > 0.96
    assert not (refined & ~thing).any()


def test_where_the_model_sees_something_else_the_labels_stay() -> None:
    thing, elsewhere = disc(), disc((150, 110), 25)
    assert np.array_equal(refine(says(disc((30, 30), 25)), picture(thing), elsewhere), elsewhere)
    # the views disagree: nowhere is the thing sure
    views = says(disc((30, 30), 25), disc((150, 110), 25))
    assert np.array_equal(refine(views, picture(thing), thing), thing)


def test_a_thing_that_fills_the_picture_needs_no_outline() -> None:
    everywhere = np.ones(SHAPE, np.bool_)
    assert refine(says(everywhere), picture(everywhere), disc()).mean() > 0.99


def test_an_outline_far_from_the_models_is_not_believed() -> None:
    # half of what the model says looks like what is around it: GrabCut takes the other half alone
    bright, said, coarse = disc((70, 75), 24), disc((100, 75), 60), disc((75, 75), 35)
    refined = refine(says(said), picture(bright), coarse)
    eroded = cv2.erode((said & coarse).astype(np.uint8), np.ones((DOUBT_WIDTH, DOUBT_WIDTH)))
    assert np.array_equal(refined, eroded > 0)


def test_large_pictures_are_refined_small_and_come_back_whole() -> None:
    thing = cv2.resize(disc().astype(np.uint8), (1000, 750), interpolation=cv2.INTER_NEAREST) > 0
    seen = []

    def find(images: Sequence[ImageArray]) -> list[LabelMap]:
        seen.extend(image.shape for image in images)
        return [np.where(image[..., 0] > image[..., 1], 0, 1).astype(np.uint16) for image in images]

    colours = np.where(thing[..., None], (190, 60, 50), (60, 140, 70)).astype(np.uint8)
    refined = refine(find, colours, thing)
    assert refined.shape == (750, 1000)
    assert seen == [(240, LONG_SIDE, 3)] * 2
    assert iou(refined, thing) > 0.9


def coarse_set(folder: Path) -> Path:
    """Three pictures, twenty rows of the first labelled 0, of the third 2, none of the second."""
    write_folder(folder, 3, 0)
    for number, path in enumerate(sorted((folder / "labels").iterdir())):
        labels = np.full(np.asarray(Image.open(path)).shape, UNLABELLED_16BIT, np.uint16)
        labels[: 0 if number == 1 else 20] = number
        Image.fromarray(labels).save(path)
    return folder


def weights(folder: Path, config: ModelConfig = TINY) -> Path:
    torch.manual_seed(0)
    save_model(ErrSeg(config), folder / "start.safetensors")
    return folder / "start.safetensors"


def test_a_data_set_is_refined_picture_by_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def lower_half(find: Segment, image: ImageArray, coarse: Mask) -> Mask:
        (labels,) = find([image])
        seen.append((*labels.shape, len(SURROUNDINGS) - int(labels.max()) >= 0))
        moved = np.zeros_like(coarse)
        moved[40:] = True
        assert coarse[:20].all() and not coarse[20:].any()
        return moved

    monkeypatch.setattr(refinement, "refine", lower_half)
    coarse, out = coarse_set(tmp_path / "coarse"), tmp_path / "out"
    folder = open_folder(refine_labels(weights(tmp_path), coarse, out))
    labels = [read_pair(folder, pair)[1] for pair in folder.pairs]
    assert seen == [(67, 71, True)] * 2
    assert [np.unique(found[:40]).tolist() for found in labels] == [[-1], [-1], [-1]]
    assert [np.unique(found[40:]).tolist() for found in labels] == [[0], [-1], [2]]
    assert (out / "classes.txt").read_bytes() == (coarse / "classes.txt").read_bytes()


def test_what_is_refined_already_is_left_alone(tmp_path: Path) -> None:
    coarse, start, out = coarse_set(tmp_path / "coarse"), weights(tmp_path), tmp_path / "out"
    first = sorted((coarse / "labels").iterdir())[0]
    (out / "labels").mkdir(parents=True)
    (out / "labels" / first.name).write_bytes(first.read_bytes())
    refine_labels(start, coarse, out)
    # a run that was killed left one, and that stayed
    assert (out / "labels" / first.name).read_bytes() == first.read_bytes()
    assert len(list((out / "labels").iterdir())) == 3
    start.unlink()
    refine_labels(start, coarse, out)


def test_a_run_refines_by_the_weights_it_starts_from(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = coarse_set(tmp_path / "coarse")
    monkeypatch.setattr(loop, "make_pseudo_labels", lambda folder, out: coarse)
    start = weights(tmp_path, recipe.model)
    broader = tmp_path / "broader.txt"
    broader.write_text("0-2: surface\n")
    settings = {"pseudo_labels": True, "refined": True, "broader": broader, "distractors": 0}
    source = dataclasses.replace(recipe.data[0], **settings)  # type: ignore[arg-type]
    plan = dataclasses.replace(recipe, data=(source,), init=str(start), steps=1)
    loop.train(plan, tmp_path / "run", device=torch.device("cpu"), workers=0)
    (made,) = (tmp_path / "run").glob("refined-labels-*")
    assert len(list((made / "labels").iterdir())) == 3
    start.unlink()
    with pytest.raises(ConfigError, match=r"start\.safetensors"):
        loop.train(plan, tmp_path / "other", device=torch.device("cpu"), workers=0)


def test_refining_needs_a_model_that_segments(recipe: Recipe) -> None:
    source = dataclasses.replace(recipe.data[0], pseudo_labels=True, refined=True)
    for init in ("", FROM_IMAGENET):
        with pytest.raises(ConfigError, match="segments already"):
            dataclasses.replace(recipe, data=(source,), init=init)
    dataclasses.replace(recipe, data=(source,), init="runs/fourth/model.safetensors")
