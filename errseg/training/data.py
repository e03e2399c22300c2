"""Labelled pictures for training: folders in, augmented batches out.

A batch is a pure function of (recipe, its number), so that a resumed run sees what an uninterrupted
one would have seen, whatever the number of workers and of processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from errseg.datasets import LabelledFolder, Pair, read_labels, read_pair
from errseg.errors import ConfigError
from errseg.training.augmentation import DRAW_VIEW, Sample, View, draw_degradation
from errseg.training.distributed import ALONE, World
from errseg.training.recipe import Recipe

NAME_CHANCE = 0.5
"""That a class goes by one of its names at a step; the mean of several is another name still."""

PART_CHANCE = 0.6
"""That a thing of a class is there to be chosen at a step."""

PASTE_CHANCE = 0.5
"""That a class of the picture that is pasted from comes along."""


@dataclass(frozen=True)
class Thing:
    """What is meant by a class, or by a part of one that is a union of several.

    Attributes:
        own: its names in the set's list.
        others: further names that mean the same.
    """

    own: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.own + self.others


Meanings = Sequence[Sequence[Thing]]
"""Per class of a data set, the things it consists of."""


@dataclass(frozen=True)
class TrainingBatch:
    """A batch, or a process's share of it.

    Attributes:
        images: (B, 3, H, W) float32, RGB 0..255.
        labels: (B, H, W) int64, class id in the source's list, −1 = unlabelled.
        source: index of the data set; all of a batch come from one.
        naming: (R, N) float32, the weight of each of the set's N names in the embedding of each
            class at this step, or of each part of one.
        distractors: indices of absent class names, in the list of all sets' names.
        class_count: T.
        parts_of: (R,) int64, the class that each row of `naming` is a part of; None where the rows
            are the T classes.
    """

    images: Tensor
    labels: Tensor
    source: int
    naming: Tensor
    distractors: Tensor
    class_count: int
    parts_of: Tensor | None = None


class TrainingBatches(Dataset[TrainingBatch]):
    """Batch number → batch; a step takes the recipe's `accumulate` batches."""

    def __init__(
        self,
        recipe: Recipe,
        folders: Sequence[LabelledFolder],
        meanings: Sequence[Meanings],
        candidates: Sequence[NDArray[np.int64]],
        world: World = ALONE,
    ) -> None:
        """
        Args:
            meanings: per data set.
            candidates: per data set, the names (in the list of all sets') that may serve as
                absent classes there.
            world: the processes that share each batch.
        """
        self.recipe = recipe
        self.folders = folders
        self.meanings = meanings
        self.candidates = candidates
        self.world = world
        self.draw_view = DRAW_VIEW[recipe.augmentation]
        self.chances = [
            picture_chances(folder, source.rare_share)
            for folder, source in zip(folders, recipe.data, strict=True)
        ]

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.accumulate

    def __getitem__(self, number: int) -> TrainingBatch:
        rng = np.random.default_rng((self.recipe.seed, number))
        weights = np.array([source.weight for source in self.recipe.data])
        index = int(rng.choice(len(weights), p=weights / weights.sum()))
        source, folder = self.recipe.data[index], self.folders[index]
        per_sample = source.mosaic**2
        chances, count = self.chances[index], self.recipe.batch_size * per_sample
        replace = len(chances) < 2 * count
        chosen = rng.choice(np.arange(len(chances)), count, replace=replace, p=chances)
        size = self.recipe.crop[0] // source.mosaic, self.recipe.crop[1] // source.mosaic
        share = count // self.world.size
        own = range(self.world.rank * share, (self.world.rank + 1) * share)
        parts: list[Sample] = []
        for place, pair in enumerate(folder.pairs[i] for i in chosen):
            content = read_pair(folder, pair) if place in own else None
            shape = _size_of(pair[1]) if content is None else content[1].shape
            view = self.draw_view((shape[0], shape[1]), size, source, rng)
            degradation = draw_degradation(source.degraded, rng)
            paste = self._draw_paste(index, size, rng)
            if content is not None:
                picture, labels = view(*content)
                if paste is not None:
                    picture, labels = paste((picture, labels))
                parts.append((degradation(picture) if degradation else picture, labels))
        samples = [
            mosaic(parts[start : start + per_sample]) for start in range(0, share, per_sample)
        ]
        pool = self.candidates[index]
        distractors = rng.choice(pool, min(source.distractors, len(pool)), replace=False)
        own_only = bool(source.own_names and rng.random() < source.own_names)
        meanings = self.meanings[index]
        if source.apart and rng.random() < source.apart:
            naming, parts_of = draw_parts(meanings, rng, own_only=own_only)
        else:
            naming, parts_of = draw_naming(meanings, rng, own_only=own_only), None
        return TrainingBatch(
            torch.from_numpy(np.stack([image for image, _ in samples])).permute(0, 3, 1, 2),
            torch.from_numpy(np.stack([labels for _, labels in samples])),
            index,
            torch.from_numpy(naming),
            torch.from_numpy(distractors),
            len(meanings),
            None if parts_of is None else torch.from_numpy(parts_of),
        )

    def _draw_paste(
        self, index: int, size: tuple[int, int], rng: np.random.Generator
    ) -> Paste | None:
        """What goes on top of a picture of a set, if anything does."""
        source, folder = self.recipe.data[index], self.folders[index]
        # nothing is drawn in vain: recipes of before there was this setting go on as they began
        if not source.copy_paste:
            return None
        happens = rng.random() < source.copy_paste
        pair = folder.pairs[rng.choice(len(folder.pairs), p=self.chances[index])]
        view = self.draw_view(_size_of(pair[1]), size, source, rng)
        pasted = rng.random(len(folder.vocabulary)) < PASTE_CHANCE
        return Paste(folder, pair, view, pasted) if happens else None


@dataclass(frozen=True)
class Paste:
    """Some of the classes of another picture, to put on top of one.

    Attributes:
        pair: that picture and its label map.
        view: how it is looked at.
        pasted: (T,), which classes are taken.
    """

    folder: LabelledFolder
    pair: Pair
    view: View
    pasted: NDArray[np.bool_]

    def __call__(self, sample: Sample) -> Sample:
        picture, labels = sample
        other, other_labels = self.view(*read_pair(self.folder, self.pair))
        on_top = (other_labels >= 0) & self.pasted[other_labels]
        return (
            np.where(on_top[..., None], other, picture),
            np.where(on_top, other_labels, labels),
        )


def picture_chances(folder: LabelledFolder, rare_share: float) -> NDArray[np.float64]:
    """How likely each picture is drawn: more so with rare classes (repeat factor sampling).

    Args:
        rare_share: a class in fewer pictures than this share is rare; 0 = all pictures alike.

    Returns:
        (N,), sum 1.
    """
    count = len(folder.pairs)
    if not rare_share:
        return np.full(count, 1 / count)
    held = np.zeros((count, len(folder.vocabulary)), bool)
    for row, pair in zip(held, folder.pairs, strict=True):
        labels = np.unique(read_labels(pair[1], folder.ids))
        row[labels[labels >= 0]] = True
    shares = np.maximum(held.mean(axis=0), 1 / count)
    factors = np.where(held, np.sqrt(rare_share / shares), 0).max(axis=1).clip(min=1)
    chances: NDArray[np.float64] = factors / factors.sum()
    return chances


def draw_naming(
    meanings: Meanings, rng: np.random.Generator, *, own_only: bool
) -> NDArray[np.float32]:
    """Which of their names the things of each class go by at this step: any, at least one.

    Args:
        own_only: by names of the set's own list alone.

    Returns:
        (T, N) weights of the embeddings of the N names of all classes together; each row has sum 1,
        of which each thing of the class has an equal share.
    """
    total = sum(len(thing.names) for things in meanings for thing in things)
    naming = np.zeros((len(meanings), total), np.float32)
    start = 0
    for row, things in zip(naming, meanings, strict=True):
        for thing in things:
            allowed = len(thing.own if own_only else thing.names)
            used = rng.random(allowed) < NAME_CHANCE
            used[rng.integers(allowed)] = True
            row[start : start + allowed] = used / (used.sum() * len(things))
            start += len(thing.names)
    return naming


def draw_parts(
    meanings: Meanings, rng: np.random.Generator, *, own_only: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Some of the things that the classes consist of, of each class at least one, and their names.

    That some are left out keeps one thing of a class from standing for all of it: each has to do
    without the others.

    Returns:
        (R, N) weights as of `draw_naming`, by thing, and (R,) the class of each.
    """
    apart = [[thing] for things in meanings for thing in things]
    naming = draw_naming(apart, rng, own_only=own_only)
    used = rng.random(len(apart)) < PART_CHANCE
    start = 0
    for things in meanings:
        used[start + rng.integers(len(things))] = True
        start += len(things)
    parts_of = np.repeat(np.arange(len(meanings)), [len(things) for things in meanings])
    return naming[used], parts_of[used]


def mosaic(
    parts: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Put n² pictures with label maps, all of one size, into a square of n a side."""
    side = math.isqrt(len(parts))
    rows = [parts[start : start + side] for start in range(0, len(parts), side)]
    image = np.concatenate([np.concatenate([part[0] for part in row], axis=1) for row in rows])
    labels = np.concatenate([np.concatenate([part[1] for part in row], axis=1) for row in rows])
    return image, labels


def _size_of(path: Path) -> tuple[int, int]:
    """(H, W) of a picture that is not decoded."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise ConfigError(f"cannot decode {path}.") from error
