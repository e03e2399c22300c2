"""Labelled pictures for training: folders in, augmented batches out.

A batch is a pure function of (recipe, step), so that a resumed run sees what an uninterrupted
one would have seen, whatever the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from errseg.datasets import LabelledFolder, read_labels, read_pair
from errseg.training.recipe import Recipe

NAME_CHANCE = 0.5
"""That a class goes by one of its names at a step; the mean of several is another name still."""


@dataclass(frozen=True)
class TrainingBatch:
    """One step's material.

    Attributes:
        images: (B, 3, H, W) float32, RGB 0..255.
        labels: (B, H, W) int64, class id in the source's list, −1 = unlabelled.
        source: index of the data set; all of a batch come from one.
        naming: (T, N) float32, the weight of each of the set's N names in each class's embedding
            at this step.
        distractors: indices of absent class names, in the list of all sets' names.
    """

    images: Tensor
    labels: Tensor
    source: int
    naming: Tensor
    distractors: Tensor


class TrainingBatches(Dataset[TrainingBatch]):
    """Step number → batch."""

    def __init__(
        self,
        recipe: Recipe,
        folders: Sequence[LabelledFolder],
        synonyms: Sequence[Sequence[Sequence[str]]],
        candidates: Sequence[NDArray[np.int64]],
    ) -> None:
        """
        Args:
            synonyms: per data set and class, its names.
            candidates: per data set, the names (in the list of all sets') that may serve as
                absent classes there.
        """
        self.recipe = recipe
        self.folders = folders
        self.synonyms = synonyms
        self.candidates = candidates
        self.chances = [
            picture_chances(folder, source.rare_share)
            for folder, source in zip(folders, recipe.data, strict=True)
        ]

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> TrainingBatch:
        rng = np.random.default_rng((self.recipe.seed, step))
        weights = np.array([source.weight for source in self.recipe.data])
        index = int(rng.choice(len(weights), p=weights / weights.sum()))
        source, folder = self.recipe.data[index], self.folders[index]
        per_sample = source.mosaic**2
        chances, count = self.chances[index], self.recipe.batch_size * per_sample
        replace = len(chances) < 2 * count
        chosen = rng.choice(np.arange(len(chances)), count, replace=replace, p=chances)
        height, width = (side // source.mosaic for side in self.recipe.crop)
        parts = [
            augment(*read_pair(folder, folder.pairs[i]), (height, width), source.min_scale, rng)
            for i in chosen
        ]
        samples = [
            mosaic(parts[start : start + per_sample]) for start in range(0, count, per_sample)
        ]
        pool = self.candidates[index]
        distractors = rng.choice(pool, min(source.distractors, len(pool)), replace=False)
        return TrainingBatch(
            torch.from_numpy(np.stack([image for image, _ in samples])).permute(0, 3, 1, 2),
            torch.from_numpy(np.stack([labels for _, labels in samples])),
            index,
            torch.from_numpy(draw_naming(self.synonyms[index], rng, every=source.unions)),
            torch.from_numpy(distractors),
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
    synonyms: Sequence[Sequence[str]], rng: np.random.Generator, *, every: bool
) -> NDArray[np.float32]:
    """Which of a class's names it goes by at this step: any, at least one.

    Args:
        synonyms: names per class.
        every: all of them, always.

    Returns:
        (T, N) weights of the N names of all classes together; each row has sum 1.
    """
    lengths = [len(names) for names in synonyms]
    naming = np.zeros((len(synonyms), sum(lengths)), np.float32)
    start = 0
    for row, length in zip(naming, lengths, strict=True):
        used = np.full(length, every) | (rng.random(length) < NAME_CHANCE)
        used[rng.integers(length)] = True
        row[start : start + length] = used / used.sum()
        start += length
    return naming


def mosaic(
    parts: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Put n² pictures with label maps, all of one size, into a square of n a side."""
    side = math.isqrt(len(parts))
    rows = [parts[start : start + side] for start in range(0, len(parts), side)]
    image = np.concatenate([np.concatenate([part[0] for part in row], axis=1) for row in rows])
    labels = np.concatenate([np.concatenate([part[1] for part in row], axis=1) for row in rows])
    return image, labels


def augment(
    image: NDArray[np.uint8],
    labels: NDArray[np.int64],
    size: tuple[int, int],
    min_scale: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Random crop squashed to `size` (H, W), flip, colour jitter.

    Returns:
        (H, W, 3) float32 RGB 0..255 and (H, W) int64.
    """
    height, width = labels.shape
    scale_y, scale_x = np.clip(
        rng.uniform(min_scale, 1.15) * np.exp(rng.uniform(-0.15, 0.15) * np.array([1, -1])),
        0.2,
        1.0,
    )
    crop_h, crop_w = max(1, round(height * scale_y)), max(1, round(width * scale_x))
    top, left = rng.integers(height - crop_h + 1), rng.integers(width - crop_w + 1)
    window = np.s_[top : top + crop_h, left : left + crop_w]
    shrinks = crop_h * crop_w > size[0] * size[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    picture = cv2.resize(image[window], size[::-1], interpolation=how).astype(np.float32)
    target = cv2.resize(
        labels[window].astype(np.int16), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT
    ).astype(np.int64)
    if rng.random() < 0.5:
        picture, target = picture[:, ::-1], target[:, ::-1]
    return np.ascontiguousarray(_jitter(picture, rng)), np.ascontiguousarray(target)


def _jitter(picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Brightness, contrast, saturation and colour cast, each a little."""
    picture = picture * rng.uniform(0.75, 1.25)
    mean = picture.mean()
    picture = (picture - mean) * rng.uniform(0.75, 1.25) + mean
    grey = picture.mean(axis=2, keepdims=True)
    picture = (picture - grey) * rng.uniform(0.6, 1.4) + grey
    cast = rng.uniform(0.93, 1.07, 3).astype(np.float32)
    jittered: NDArray[np.float32] = np.clip(picture * cast, 0, 255)
    return jittered
