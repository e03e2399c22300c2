"""Pictures in memory → label maps: resize, model, and the argmax that never builds T channels."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from errseg.model.err_seg import ClassMaps, ErrSeg
from errseg.records import UNLABELLED, ImageArray, LabelMap, ScoreMap
from errseg.steady import Steadier

STRIP_PIXELS = 1 << 18
"""Pixels of the picture resized at once: bounds memory, and K of them fit a CPU's caches."""


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
    keep: int | None = None,
    precision: torch.dtype = torch.float32,
    threshold: float = 0.0,
) -> list[tuple[LabelMap, ScoreMap]]:
    """Label maps and scores of pictures, in one batch.

    Args:
        images: each (H, W, 3) uint8 RGB; sizes may differ.
        text: (T, D) class embeddings on the model's device.
        keep: CRM's budget K; None as published.
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
    keep: int | None = None,
    precision: torch.dtype = torch.float32,
    steadier: Steadier | None = None,
) -> list[ClassMaps]:
    """The kept classes' probability maps of pictures, in one batch.

    Args:
        images, text, keep, precision: as for `segment`.
        steadier: carried on through the pictures, which are consecutive frames of one video then.
    """
    config = model.config
    batch = preprocess(images, config.image_size, antialias=config.antialias).to(text.device)
    casting = (
        contextlib.nullcontext()
        if precision == torch.float32
        else torch.autocast(text.device.type, precision)
    )
    motions = [] if steadier is None else [steadier.observe(image) for image in images]

    def carried(votes: Tensor) -> Tensor:
        assert steadier is not None
        frames = zip(votes, motions, strict=True)
        return torch.stack([steadier.carry_votes(frame, motion) for frame, motion in frames])

    with casting:
        prediction = model(
            batch, text, keep=keep, vote_filter=None if steadier is None else carried
        )
    probabilities = prediction.logits.float().sigmoid()
    found = [
        ClassMaps(maps, classes)
        for maps, classes in zip(probabilities, prediction.classes, strict=True)
    ]
    if steadier is None:
        return found
    return [steadier.smooth(maps, motion) for maps, motion in zip(found, motions, strict=True)]


def best_class(
    probabilities: Tensor, classes: Tensor, size: tuple[int, int], threshold: float = 0.0
) -> tuple[LabelMap, ScoreMap]:
    """Resize K probability maps to a picture and take the best, strip by strip.

    Args:
        probabilities: (K, h, w), 0..1.
        classes: (K,) class ids of the maps.
        size: (H, W) of the picture.

    Returns:
        (H, W) uint16 class ids (`UNLABELLED` below the threshold), (H, W) float32 probabilities.
    """
    height, width = size
    labels = np.empty(size, np.uint16)
    scores = np.empty(size, np.float32)
    rows = max(1, STRIP_PIXELS // width)
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        strip = _resized_rows(probabilities, size, start, stop)
        best, index = strip.max(dim=0)
        ids = classes[index]
        if threshold > 0:
            ids = torch.where(best < threshold, UNLABELLED, ids)
        labels[start:stop] = ids.cpu().numpy().astype(np.uint16)
        scores[start:stop] = best.cpu().numpy()
    return labels, scores


def _resized_rows(maps: Tensor, size: tuple[int, int], start: int, stop: int) -> Tensor:
    """Rows start..stop of `maps` (K, h, w) resized to `size` (bilinear, align_corners=False)."""
    source_height = maps.shape[1]
    row = torch.arange(start, stop, device=maps.device, dtype=torch.float32)
    position = ((row + 0.5) * (source_height / size[0]) - 0.5).clamp(min=0)
    above = position.long().clamp(max=source_height - 1)
    below = (above + 1).clamp(max=source_height - 1)
    weight = (position - above)[:, None]
    rows = torch.lerp(maps[:, above], maps[:, below], weight.expand(-1, maps.shape[2]))
    return F.interpolate(
        rows[None], size=(stop - start, size[1]), mode="bilinear", align_corners=False
    )[0]
