"""Labelled folders and the batches made of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from errseg.datasets import open_folder, read_pair
from errseg.training.augmentation import (
    PADDING_VALUE,
    Degradation,
    Jitter,
    Sample,
    SsdJitter,
    draw_degradation,
    draw_published,
    draw_squash,
)
from errseg.training.data import (
    Paste,
    Thing,
    TrainingBatches,
    draw_naming,
    draw_parts,
    mosaic,
    picture_chances,
)
from errseg.training.distributed import ALONE, World
from errseg.training.recipe import DataSource, Recipe

NO_NAMES = np.zeros(0, np.int64)
ANY = DataSource(Path())


def batches(recipe: Recipe, world: World = ALONE) -> TrainingBatches:
    folders = [open_folder(source.folder) for source in recipe.data]
    meanings = [[[Thing(names)] for names in folder.vocabulary.synonyms] for folder in folders]
    return TrainingBatches(recipe, folders, meanings, [np.arange(3), NO_NAMES], world)


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
        picture, target = draw_squash((60, 80), (32, 64), ANY, rng)(image, labels)
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
    meanings = [[Thing(("a", "b"), ("c",))], [Thing(("d",))]]
    drawn = np.stack([draw_naming(meanings, rng, own_only=False) for _ in range(60)])
    assert drawn.shape == (60, 2, 4)
    np.testing.assert_allclose(drawn.sum(axis=2), 1)
    assert (drawn[:, 0, 3] == 0).all() and (drawn[:, 1, 3] == 1).all()
    assert len(np.unique(drawn[:, 0] > 0, axis=0)) == 7
    own = np.stack([draw_naming(meanings, rng, own_only=True) for _ in range(60)])
    np.testing.assert_allclose(own.sum(axis=2), 1)
    assert (own[..., 2] == 0).all()
    assert len(np.unique(own[:, 0] > 0, axis=0)) == 3


def test_a_union_means_all_of_its_things_each_by_any_name() -> None:
    rng = np.random.default_rng(0)
    meanings = [[Thing(("car",), ("automobile",)), Thing(("bus",))], [Thing(("sky",))]]
    own = draw_naming(meanings, rng, own_only=True)
    assert own.tolist() == [[0.5, 0, 0.5, 0], [0, 0, 0, 1]]
    drawn = np.stack([draw_naming(meanings, rng, own_only=False) for _ in range(30)])
    np.testing.assert_allclose(drawn[:, 0, :2].sum(axis=1), 0.5)
    assert set(drawn[:, 0, 1].tolist()) == {0, 0.25, 0.5}
    assert (drawn[:, 0, 2] == 0.5).all()


def test_the_things_of_unions_apart() -> None:
    rng = np.random.default_rng(0)
    meanings = [
        [Thing(("car",), ("automobile",)), Thing(("bus",)), Thing(("truck",))],
        [Thing(("sky",))],
    ]
    seen = set()
    for _ in range(60):
        naming, parts_of = draw_parts(meanings, rng, own_only=False)
        assert naming.shape == (len(parts_of), 5)
        np.testing.assert_allclose(naming.sum(axis=1), 1)
        # each row is of one thing, and of the class that the thing belongs to
        things = [tuple(np.flatnonzero(row)) for row in naming]
        assert all(set(row) <= {0, 1} or len(row) == 1 for row in things)
        assert [0 if max(row) < 4 else 1 for row in things] == parts_of.tolist()
        assert 1 in parts_of and 0 in parts_of
        seen.add(len(parts_of))
    assert seen == {2, 3, 4}


def test_the_share_of_batches_with_unions_apart(recipe: Recipe) -> None:
    data = tuple(dataclasses.replace(s, unions=True, apart=0.5) for s in recipe.data)
    made = batches(dataclasses.replace(recipe, data=data, steps=60))
    drawn = [made[i] for i in range(60)]
    assert 0.3 < np.mean([batch.parts_of is not None for batch in drawn]) < 0.7
    for batch in drawn:
        assert batch.class_count == 3
        rows = 3 if batch.parts_of is None else len(batch.parts_of)
        assert len(batch.naming) == rows


def test_the_share_of_batches_by_own_names_alone(recipe: Recipe) -> None:
    folders = [open_folder(source.folder) for source in recipe.data]
    meanings = [
        [[Thing(names, ("another name",))] for names in folder.vocabulary.synonyms]
        for folder in folders
    ]

    def others_used(share: float) -> float:
        data = tuple(dataclasses.replace(source, own_names=share) for source in recipe.data)
        changed = dataclasses.replace(recipe, data=data, steps=60)
        made = TrainingBatches(changed, folders, meanings, [NO_NAMES, NO_NAMES])
        # of the last class, the last column is the name that is not its own
        return float(np.mean([made[i].naming[-1, -1] > 0 for i in range(60)]))

    assert others_used(1) == 0
    assert others_used(0.7) < others_used(0)
    assert others_used(0) > 0.5


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
    drawn = {"degraded": 0.5, "hue": 30.0, "own_names": 0.5, "copy_paste": 0.5}
    data = tuple(
        dataclasses.replace(source, mosaic=2 - index, **drawn)
        for index, source in enumerate(recipe.data)
    )
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
        view = draw_published((60, 90), (64, 128), ANY, rng)
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
    views = [draw_published((120, 240), (64, 64), ANY, rng) for _ in range(200)]
    assert {view.resized for view in views} == {(64, 128)}
    assert {view.start[0] for view in views} == {0}
    assert {0, 64} <= {view.start[1] for view in views}
    assert {view.flip for view in views} == {False, True}


def test_ssd_colours_change_each_property_in_half_of_the_pictures() -> None:
    rng = np.random.default_rng(0)
    colours = [draw_published((64, 64), (64, 64), ANY, rng).colours for _ in range(400)]
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


def test_hue_is_turned_in_half_of_the_pictures_and_greys_stay() -> None:
    rng = np.random.default_rng(0)
    source = dataclasses.replace(ANY, hue=90)
    turns = [draw_squash((64, 64), (64, 64), source, rng).colours.hue for _ in range(400)]
    assert 0.4 < np.mean([turn == 0 for turn in turns]) < 0.6
    assert min(turns) < -45 and max(turns) > 45 and max(np.abs(turns)) <= 90
    plain = np.ones(3, np.float32)
    red = np.full((2, 2, 3), (200, 0, 0), np.float32)
    third = Jitter(1, 1, 1, plain, 120)(red)
    assert sorted(third[0, 0].round().tolist()) == [0, 0, 200]
    grey = np.full((2, 2, 3), 99, np.float32)
    np.testing.assert_allclose(Jitter(1, 1, 1, plain, 77)(grey), 99, rtol=1e-5)


def test_degradations_do_what_they_say() -> None:
    grey = np.full((64, 64, 3), 128, np.float32)
    assert np.array_equal(Degradation(0, 0, 1, None)(grey), grey)
    noisy = Degradation(0, 10, 1, None)(grey)
    assert noisy.dtype == np.float32
    assert 9 < noisy.std() < 11 and abs(noisy.mean() - 128) < 1
    assert np.array_equal(noisy, Degradation(0, 10, 1, None)(grey))
    assert not np.array_equal(noisy, Degradation(0, 10, 2, None)(grey))
    edge = grey.copy()
    edge[:, 32:] = 0
    assert 60 < Degradation(1.5, 0, 1, None)(edge)[0, 31, 0] < 120
    red = np.full((16, 16, 3), (250, 10, 10), np.float32)
    assert np.abs(Degradation(0, 0, 1, 90)(red) - red).max() < 8
    assert np.abs(Degradation(0, 0, 1, 20)(noisy) - noisy).mean() > 2


def test_the_share_of_degraded_pictures(recipe: Recipe) -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_degradation(0.3, rng) for _ in range(400)]
    assert 0.25 < np.mean([degradation is not None for degradation in drawn]) < 0.35
    some = [degradation for degradation in drawn if degradation is not None]
    assert 0.35 < np.mean([degradation.blur > 0 for degradation in some]) < 0.65
    assert 0.35 < np.mean([degradation.jpeg_quality is not None for degradation in some]) < 0.65
    data = tuple(dataclasses.replace(source, degraded=1) for source in recipe.data)
    degraded = batches(dataclasses.replace(recipe, data=data))[0]
    clean = batches(recipe)[0]
    # the first picture's view is drawn before anything that only degraded batches draw
    first = degraded.images[0] - clean.images[0]
    assert 0 < first.abs().mean() < 30
    assert torch.equal(degraded.labels[0], clean.labels[0])


def test_half_of_the_classes_of_another_picture_go_on_top(tmp_path: Path) -> None:
    """Pictures of two halves, each even and of the colour of its class, one of them unlabelled."""
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    for index, (left, right) in enumerate([(0, 1), (2, 3), (255, 2)]):
        labels = np.repeat(np.array([[left, right]], np.uint8), 32, axis=1).repeat(64, axis=0)
        grey = np.where(labels == 255, 240, 50 * labels).astype(np.uint8)
        Image.fromarray(grey).convert("RGB").save(tmp_path / "images" / f"{index}.png")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{index}.png")
    folder = open_folder(tmp_path)
    pasted_from = Paste(folder, folder.pairs[1], plain, np.arange(4) == 3)
    picture, labels = pasted_from(plain(*read_pair(folder, folder.pairs[0])))
    assert np.array_equal(np.unique(labels[:, :32]), [0])
    assert np.array_equal(np.unique(labels[:, 32:]), [3])
    assert np.array_equal(picture[..., 0], 50 * labels)
    # what is unlabelled there is not taken
    pasted_from = Paste(folder, folder.pairs[2], plain, np.ones(4, bool))
    picture, labels = pasted_from(plain(*read_pair(folder, folder.pairs[0])))
    assert (np.unique(labels[:, :32]), np.unique(labels[:, 32:])) == ([0], [2])
    assert picture.max() == 100


def plain(image: NDArray[np.uint8], labels: NDArray[np.int64]) -> Sample:
    return image.astype(np.float32), labels


def test_the_share_of_pictures_that_something_is_pasted_onto(recipe: Recipe) -> None:
    def changed(share: float) -> float:
        data = tuple(dataclasses.replace(source, copy_paste=share) for source in recipe.data)
        pasting = batches(dataclasses.replace(recipe, data=data, steps=60))
        before = batches(dataclasses.replace(recipe, steps=60))
        # the first picture's view is drawn before anything that only such batches draw
        return float(
            np.mean([not torch.equal(pasting[i].images[0], before[i].images[0]) for i in range(60)])
        )

    # of two to three classes each comes along with a chance of a half
    assert 0.2 < changed(0.5) < 0.6
    assert changed(1) > 0.6
