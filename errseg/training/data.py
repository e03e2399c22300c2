"""Labelled pictures for training: folders in, augmented batches out.

A batch is a pure function of (recipe, step), so that a resumed run sees what an uninterrupted
one would have seen, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from errseg.datasets import LabelledFolder, read_pair
from errseg.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingBatch:
    """One step's material.

    Attributes:
        images: (B, 3, H, W) float32, RGB 0..255.
        labels: (B, H, W) int64, class id in the source's list, −1 = unlabelled.
        source: index of the data set; all of a batch come from one.
        distractors: indices of absent class names, in the list of all sets' names.
    """

    images: Tensor
    labels: Tensor
    source: int
    distractors: Tensor


class TrainingBatches(Dataset[TrainingBatch]):
    """Step number → batch."""

    def __init__(
        self,
        recipe: Recipe,
        folders: Sequence[LabelledFolder],
        candidates: Sequence[NDArray[np.int64]],
    ) -> None:
        """
        Args:
            candidates: per data set, the names (in the list of all sets') that may serve as
                absent classes there.
        """
        self.recipe = recipe
        self.folders = folders
        self.candidates = candidates

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> TrainingBatch:
        rng = np.random.default_rng((self.recipe.seed, step))
        weights = np.array([source.weight for source in self.recipe.data])
        index = int(rng.choice(len(weights), p=weights / weights.sum()))
        source, folder = self.recipe.data[index], self.folders[index]
        chosen = rng.choice(
            len(folder.pairs), self.recipe.batch_size, replace=len(folder.pairs) < 64
        )
        samples = [
            augment(*read_pair(folder.pairs[i]), self.recipe.crop, source.min_scale, rng)
            for i in chosen
        ]
        pool = self.candidates[index]
        distractors = rng.choice(pool, min(source.distractors, len(pool)), replace=False)
        return TrainingBatch(
            torch.from_numpy(np.stack([image for image, _ in samples])).permute(0, 3, 1, 2),
            torch.from_numpy(np.stack([labels for _, labels in samples])),
            index,
            torch.from_numpy(distractors),
        )


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
