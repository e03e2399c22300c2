"""Pictures in memory → label maps: resize, model, and the argmax that never builds T channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from errseg.config import Keep, ModelConfig
from errseg.devices import arithmetic
from errseg.model.err_seg import ClassMaps, ErrSeg
from errseg.records import UNLABELLED, ImageArray, LabelMap, ScoreMap
from errseg.stages import stage
from errseg.steady import Steadier

TILE_SIDE = 160
"""Pixels: in larger tiles more classes contend, and the scores leave a CPU's nearest cache."""

_ROUNDING = 1e-5
"""Far above the rounding error of a resized probability."""


def preprocess(images: Sequence[ImageArray], size: tuple[int, int], *, antialias: bool) -> Tensor:
    """Squash pictures to the model's input (bilinear, align_corners=False, aspect not kept).

    Args:
        images: each (H, W, 3) uint8 RGB, of any size.
        size: (H, W) of the input.
        antialias: filter while shrinking.

    Returns:
        (B, 3, H, W) float32, 0..255, on the CPU.
    """
    return torch.cat([_squash(image, size, antialias=antialias) for image in images])


def _squash(image: ImageArray, size: tuple[int, int], *, antialias: bool) -> Tensor:
    if not antialias:
        return _sampled(image, size)
    # Pillow's arrays are read-only, which torch warns of: those are copied
    writable = np.require(image, requirements=("C", "W"))
    # uint8 stays uint8: a float copy of a large picture costs seconds
    pixels = torch.from_numpy(writable).permute(2, 0, 1).unsqueeze(0)
    return F.interpolate(
        pixels, size=size, mode="bilinear", align_corners=False, antialias=True
    ).float()


def _sampled(image: ImageArray, size: tuple[int, int]) -> Tensor:
    """As `F.interpolate` without a filter, from the few pixels of a large picture that count."""
    rows, down = _neighbours(image.shape[0], size[0])
    columns, across = _neighbours(image.shape[1], size[1])
    pixels = torch.from_numpy(image[np.ix_(rows, columns)]).float()
    lines = torch.lerp(pixels[0::2], pixels[1::2], down[:, None, None])
    return torch.lerp(lines[:, 0::2], lines[:, 1::2], across[:, None]).permute(2, 0, 1)[None]


def _neighbours(length: int, count: int) -> tuple[NDArray[np.int64], Tensor]:
    """Of a side resized to `count` pixels: the two sources of each, in turn; the second's share."""
    position = ((torch.arange(count) + 0.5) * (length / count) - 0.5).clamp(min=0)
    first = position.long().clamp(max=length - 1)
    second = (first + 1).clamp(max=length - 1)
    return torch.stack([first, second], dim=1).flatten().numpy(), position - first


@torch.inference_mode()
def segment(
    model: ErrSeg,
    images: Sequence[ImageArray],
    text: Tensor,
    *,
    keep: Keep = None,
    precision: torch.dtype = torch.float32,
    threshold: float = 0.0,
) -> list[tuple[LabelMap, ScoreMap]]:
    """Label maps and scores of pictures, in one batch.

    Args:
        images: each (H, W, 3) uint8 RGB; sizes may differ.
        text: (T, D) class embeddings on the model's device.
        keep: CRM's budget K; None is the model's own way.
        precision: of the model's arithmetic; below float32 by autocast.
        threshold: pixels whose best probability is lower are left unlabelled.

    Returns:
        Per picture (H, W) uint16 class ids and (H, W) float32 probabilities.
    """
    maps = predict(model, images, text, keep=keep, precision=precision)
    return [
        best_class(found.probabilities, found.classes, image.shape[:2], threshold)
        for found, image in zip(maps, images, strict=True)
    ]


@torch.inference_mode()
def predict(
    model: ErrSeg,
    images: Sequence[ImageArray],
    text: Tensor,
    *,
    keep: Keep = None,
    precision: torch.dtype = torch.float32,
    steadier: Steadier | None = None,
) -> list[ClassMaps]:
    """The kept classes' probability maps of pictures, in one batch.

    Args:
        images, text, keep, precision: as for `segment`.
        steadier: carried on through the pictures, which are consecutive frames of one video then.
    """
    config = model.config
    with stage("preprocess"):
        batch = preprocess(images, config.image_size, antialias=config.antialias).to(text.device)
    motions = [] if steadier is None else [steadier.observe(image) for image in images]

    def carried(votes: Tensor) -> Tensor:
        assert steadier is not None
        frames = zip(votes, motions, strict=True)
        return torch.stack([steadier.carry_votes(frame, motion) for frame, motion in frames])

    with arithmetic(text.device, precision):
        prediction = model(
            batch, text, keep=keep, vote_filter=None if steadier is None else carried
        )
    kept = prediction.classes.shape[1]
    counts = [kept] * len(images) if prediction.counts is None else prediction.counts.tolist()
    found = [
        ClassMaps(probabilities_of(logits[:count], config), classes[:count])
        for logits, classes, count in zip(
            prediction.logits.float(), prediction.classes, counts, strict=True
        )
    ]
    if steadier is None:
        return found
    return [steadier.smooth(maps, motion) for maps, motion in zip(found, motions, strict=True)]


def probabilities_of(logits: Tensor, config: ModelConfig) -> Tensor:
    """What a picture's logits say, as probabilities.

    A class's own probability says whether the pixel shows it, whatever else may be named. Of names
    that fit alike (coat, jacket) only one can be right: where they compete, their shares say so.

    Args:
        logits: (K, h, w) of the kept classes.
        config: of the model; how it is calibrated.

    Returns:
        (K, h, w), 0..1, of the logits' dtype; the order of a position's classes is theirs.
    """
    calibrated = config.logit_scale * logits + config.logit_shift
    own = calibrated.sigmoid()
    if not config.competition:
        return own
    return own * (config.competition * calibrated).softmax(dim=0)


def best_class(
    probabilities: Tensor, classes: Tensor, size: tuple[int, int], threshold: float = 0.0
) -> tuple[LabelMap, ScoreMap]:
    """Resize K probability maps to a picture (bilinear, align_corners=False) and take the best.

    Most of a picture has one class that is better than all others everywhere around, so tile by
    tile only the maps that may win are resized. Of equal probabilities the first class wins.

    Args:
        probabilities: (K, h, w), 0..1.
        classes: (K,) class ids of the maps.
        size: (H, W) of the picture.

    Returns:
        (H, W) uint16 class ids (`UNLABELLED` below the threshold), (H, W) float32 probabilities.
    """
    with stage("resize"):
        return _best_class(
            probabilities.cpu().numpy(), classes.cpu().numpy().astype(np.uint16), size, threshold
        )


def _best_class(
    maps: NDArray[np.float32], ids: NDArray[np.uint16], size: tuple[int, int], threshold: float
) -> tuple[LabelMap, ScoreMap]:
    labels = np.empty(size, np.uint16)
    scores = np.empty(size, np.float32)
    columns = _tiles(maps.shape[2], size[1])
    for y in _tiles(maps.shape[1], size[0]):
        for x in columns:
            near = maps[:, y.sources, x.sources]
            first, *others = _contenders(near)
            label, best = labels[y.pixels, x.pixels], scores[y.pixels, x.pixels]
            label.fill(ids[first])
            # torch multiplies, not NumPy, whose threads wait so busily that the next picture's
            # layers take three times as long
            tile = torch.from_numpy(near)
            best[:] = (y.matrix @ tile[first] @ x.matrix.T).numpy()
            for other in others:
                score = (y.matrix @ tile[other] @ x.matrix.T).numpy()
                np.copyto(label, ids[other], where=score > best)
                np.maximum(best, score, out=best)
            if threshold > 0:
                np.copyto(label, UNLABELLED, where=best < threshold)
    return labels, scores


def _contenders(near: NDArray[np.float32]) -> NDArray[np.intp]:
    """Which of the maps (K, h, w) may be the best somewhere between their positions.

    Bilinear values keep the order that holds at all positions around; rounding may not.
    """
    flat = near.reshape(len(near), -1)
    bound = flat[flat.sum(axis=1).argmax()] - _ROUNDING
    return np.flatnonzero(~(flat < bound).all(axis=1))


@dataclass(frozen=True)
class _Tile:
    """Part of one side of a picture: its pixels are `matrix` (pixels, sources) @ the sources."""

    pixels: slice
    sources: slice
    matrix: Tensor


def _tiles(length: int, count: int) -> list[_Tile]:
    """A side of `length` positions resized to `count` pixels (bilinear, align_corners=False)."""
    neighbours, share = _neighbours(length, count)
    first, second, of_second = neighbours[0::2], neighbours[1::2], share.numpy()
    every = np.arange(count)
    matrix = np.zeros((count, length), np.float32)
    matrix[every, first] = 1 - of_second
    matrix[every, second] += of_second
    tiles = []
    for start in range(0, count, TILE_SIDE):
        pixels = slice(start, min(start + TILE_SIDE, count))
        sources = slice(int(first[start]), int(second[pixels.stop - 1]) + 1)
        # A copy, in one piece: products with it are several times as fast
        tiles.append(_Tile(pixels, sources, torch.from_numpy(matrix[pixels, sources].copy())))
    return tiles
